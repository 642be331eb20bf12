"""Runs of several processes: how they find each other, agree, and notice that one has died.

On Cloud TPU, under Slurm and in Kubernetes JAX finds the processes by itself; elsewhere flags name them.
"""

import contextlib
import glob
import importlib.util
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from isnet_jax.errors import UserError, first_line, paragraph
from isnet_jax.runtime import console, heartbeat, interrupts

FIELDS = "coordinator", "num_processes", "process_id"
CONNECT_SECONDS = 300
WAIT_NOTICE_SECONDS = 10  # after which a process says that it waits for the others

# What the errors of JAX, Gloo and NCCL contain where a process cannot reach another one.
PEER_FAILURE_MARKERS = (
    "Gloo",
    "gloo",
    "NCCL",
    "coordination",
    "Coordination",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "heartbeat",
    "Connection reset",
    "Connection closed",
    "preempted",
    "Barrier",
)
_sync_points = 0  # calls of `stop_requested`
_all_stop = False  # all processes have agreed to stop


class PeerLost(UserError):
    """Another process of this run is gone."""

    code = interrupts.RESUME_EXIT_CODE


def initialize(flag_values: Any) -> None:
    """Connects this process with the others of the run, if there are any; to be called before JAX is used.

    flag_values: the flags `FIELDS`. Raises flags.Error if they contradict each other, UserError if the processes do not
    find each other.
    """
    given = _process_flags(flag_values)
    if given["coordinator"] is None and not _is_cluster():
        return
    notice = threading.Timer(
        WAIT_NOTICE_SECONDS,
        print,
        [f"waiting for the other processes of this run: start all of them within {CONNECT_SECONDS} s, or all exit"],
        {"file": sys.stderr},
    )
    notice.daemon = True
    notice.start()
    try:
        _connect(**given)
    except (RuntimeError, ValueError) as error:  # the coordination service; JAX reading the environment
        raise UserError(
            f"The processes of this run do not find each other ({first_line(error)}); "
            f"name them yourself with --{', --'.join(FIELDS)}."
        ) from None
    finally:
        notice.cancel()
    if is_single_process():
        interrupts.install()  # JAX has taken SIGTERM, and reports it to runs of several processes only
    elif not is_first():
        console.mute()


def _process_flags(flag_values: Any) -> dict[str, Any]:
    """The flags `FIELDS`, all None if the user gave none; raises flags.Error if they contradict each other."""
    given = {name: getattr(flag_values, name) for name in FIELDS}
    named = [name for name in FIELDS if given[name] is not None]
    if not named:
        return given
    if len(named) < len(FIELDS):
        raise flags.Error(f"give --{', --'.join(FIELDS)} all or none; there is only --{', --'.join(named)}")
    if given["process_id"] >= given["num_processes"]:
        raise flags.Error(f"--process_id={given['process_id']} is not below --num_processes={given['num_processes']}")
    host, _, port = given["coordinator"].rpartition(":")
    if not host or not port.isdigit():
        raise flags.Error(f"--coordinator={given['coordinator']} is not HOST:PORT")
    return given


def _connect(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Starts JAX's distributed runtime; returns once all processes are connected."""
    if coordinator and process_id:
        _require_listener(coordinator)  # without a listener JAX aborts the process
    console.drop_native_output()  # Gloo announces each group of devices
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=3 * heartbeat.SECONDS,  # then JAX aborts this process
        initialization_timeout=CONNECT_SECONDS,
    )
    barrier("joined")


def _require_listener(address: str) -> None:
    """Returns when process 0 listens at `address`; raises UserError after CONNECT_SECONDS."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f"Process 0 of this run does not listen at --coordinator={address} ({error}): start "
                    "it, and check that this host can reach that port."
                ) from None
        time.sleep(0.2)


def _is_cluster() -> bool:
    """Whether the environment describes other processes, in a form that JAX reads."""
    e = os.environ
    slurm = {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"} <= set(e)
    kubernetes = "KUBERNETES_SERVICE_HOST" in e and "JOB_COMPLETION_INDEX" in e
    tpu = bool(importlib.util.find_spec("libtpu") and (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")))
    on_tpu = tpu and e.get("JAX_PLATFORMS", "tpu").startswith("tpu") and "TPU_SKIP_MDS_QUERY" not in e
    return slurm and int(e.get("SLURM_NTASKS", 1)) > 1 or kubernetes or on_tpu


def is_single_process() -> bool:
    """Whether this is the only process of the run."""
    return jax.process_count() == 1


def is_first() -> bool:
    """Whether this is process 0, which writes the files that a run has once."""
    return jax.process_index() == 0


def stop_requested() -> bool:
    """Whether a signal to any process has asked the run to stop.

    The answer is the same on all processes, provided that all call this equally often.
    """
    global _sync_points, _all_stop
    if is_single_process():
        return interrupts.stop_requested()
    if interrupts.stop_requested() and not _all_stop:  # Ctrl-C in this process: JAX passes on SIGTERM only
        os.kill(os.getpid(), signal.SIGTERM)
    _sync_points += 1
    _all_stop = multihost_utils.reached_preemption_sync_point(_sync_points)
    if _all_stop:
        interrupts.record_signal(signal.SIGTERM)
    return _all_stop


def broadcast_from_first(value: Any) -> Any:
    """The first process's `value`, a number or an array, on all of them."""
    return value if is_single_process() else np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def all_processes(value: Any) -> bool:
    """Whether `value` is true on all processes."""
    if is_single_process():
        return bool(value)
    return bool(multihost_utils.process_allgather(np.asarray(bool(value))).all())


def barrier(name: str) -> None:
    """Returns once every process has called it with the same `name`."""
    if not is_single_process():
        multihost_utils.sync_global_devices(name)


def is_peer_failure(error: BaseException) -> bool:
    """Whether an exception is what a process gets when another one has died."""
    return not is_single_process() and any(marker in str(error) for marker in PEER_FAILURE_MARKERS)


def exit_without_barrier(code: int) -> None:
    """Exits if the run has several processes, without JAX's shutdown barrier, where this one would wait."""
    if not is_single_process():
        sys.stdout.flush()
        sys.stderr.flush()
        _exit(code)


def _exit(code: int) -> None:
    if code == PeerLost.code and is_first() and jax.process_count() > 2:
        # The others must notice first: without the coordination service of this process JAX aborts them.
        time.sleep(3 * heartbeat.INTERVAL)
    os._exit(code)


@contextlib.contextmanager
def process_group(flag_values: Any, resume_hint: str) -> Iterator[None]:
    """Connects this process with the others as `initialize` does; an error inside then ends it without a barrier.

    resume_hint: where the same command resumes. Raises PeerLost if another process is gone.
    """

    def peer_lost(reason: str) -> PeerLost:
        return PeerLost(
            "Another process of this run has died or can no longer be reached (its own message says why; here: "
            f"{reason}). Run the same command again on all hosts: it resumes {resume_hint}."
        )

    def exit_after_silence(silent: list[int]) -> None:
        lost = peer_lost(f"nothing from process {', '.join(map(str, silent))} for {heartbeat.SECONDS} s")
        os.write(2, f"{paragraph(lost)}\n".encode())  # the main thread may hold the locks of sys.stderr
        _exit(PeerLost.code)

    initialize(flag_values)
    if not is_single_process():
        heartbeat.watch(exit_after_silence)
    try:
        yield
    except (KeyboardInterrupt, interrupts.StopRequested):
        if _all_stop:  # or the first process to exit would count as dead
            jax.distributed.shutdown()
        raise
    except UserError:
        raise
    except Exception as error:
        if is_single_process() or interrupts.was_raised():
            raise
        if is_peer_failure(error):
            raise peer_lost(first_line(error)[:200]) from error
        traceback.print_exc()
        exit_without_barrier(1)
