"""Many processes: who they are, what they agree on, and how the others learn of one that dies.

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

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from isnet_jax import console, interrupts
from isnet_jax.errors import UserError

FIELDS = "coordinator", "num_processes", "process_id"
HEARTBEAT_SECONDS = 30  # a process silent for so long is dead, and all others stop
CONNECT_SECONDS = 300
TELL_SECONDS = 10  # after so long a wait for them is told of

_LOST = (
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
)  # words of a process that misses another
_ticks = 0  # how often `stop_asked` was called
_all_stop = False


class OthersLost(UserError):
    """Another process of this run is gone."""

    code = interrupts.RESUME


def define_flags():
    """Defines the flags that name the processes of a run."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0")
    flags.DEFINE_integer("num_processes", None, "how many processes there are", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "which of them this is", lower_bound=0)


def initialize(values):
    """Joins the other processes, if there are any; call it before JAX is used.

    values: the flags. Raises flags.Error where they do not fit together, UserError where processes do not meet.
    """
    given = {name: getattr(values, name) for name in FIELDS}
    named = {name for name, value in given.items() if value is not None}
    if named and len(named) < len(FIELDS):
        raise flags.Error(f"of --{', --'.join(FIELDS)} all are needed, or none; there is only --{', --'.join(named)}")
    if named:
        if not given["process_id"] < given["num_processes"]:
            raise flags.Error(
                f"--process_id={given['process_id']} is not below --num_processes={given['num_processes']}"
            )
        host, _, port = given["coordinator"].rpartition(":")
        if not host or not port.isdigit():
            raise flags.Error(f"--coordinator={given['coordinator']} is not HOST:PORT")
    elif not _is_cluster():
        return
    given["coordinator_address"] = given.pop("coordinator")
    waiting = threading.Timer(
        TELL_SECONDS,
        print,
        [f"waiting for the other processes of this run: start all of them within {CONNECT_SECONDS} s, or all end"],
        {"file": sys.stderr},
    )
    waiting.daemon = True
    waiting.start()
    try:
        if given["process_id"]:
            _require_listener(given["coordinator_address"])  # JAX aborts where there is none
        with console.no_native_output():
            jax.distributed.initialize(
                **given, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, initialization_timeout=CONNECT_SECONDS
            )
            wait_for_all("joined")  # Gloo announces itself
    except (RuntimeError, ValueError) as error:  # of the service; of what JAX makes of the environment
        raise UserError(
            f"The processes of this run do not find each other ({str(error).strip().splitlines()[0]}); "
            f"name them yourself with --{', --'.join(FIELDS)}."
        ) from None
    finally:
        waiting.cancel()
    if alone():
        interrupts.install()  # JAX has taken SIGTERM for itself, which it tells of to many processes alone
    elif not is_first():
        console.mute()


def _require_listener(address):
    """Returns when process 0 listens; raises UserError if it does not in CONNECT_SECONDS."""
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
                    "it, and see that this host reaches that port of its."
                ) from None
        time.sleep(0.2)


def _is_cluster():
    """Whether the environment tells of other processes, in a way that JAX reads."""
    e = os.environ
    slurm = {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"} <= set(e)
    kubernetes = "KUBERNETES_SERVICE_HOST" in e and "JOB_COMPLETION_INDEX" in e
    tpu = bool(importlib.util.find_spec("libtpu") and (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")))
    on_tpu = tpu and e.get("JAX_PLATFORMS", "tpu").startswith("tpu") and "TPU_SKIP_MDS_QUERY" not in e
    return slurm and int(e.get("SLURM_NTASKS", 1)) > 1 or kubernetes or on_tpu


def alone():
    """Whether this is the only process of the run."""
    return jax.process_count() == 1


def is_first():
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def stop_asked():
    """Whether to stop here, because a signal came: the same answer on all processes, if all ask equally often."""
    global _ticks, _all_stop
    if alone():
        return interrupts.asked()
    if interrupts.asked() and not _all_stop:  # Ctrl-C in this process: JAX tells the others of SIGTERM alone
        os.kill(os.getpid(), signal.SIGTERM)
    _ticks += 1
    _all_stop = multihost_utils.reached_preemption_sync_point(_ticks)
    if _all_stop:
        interrupts.note(signal.SIGTERM)
    return _all_stop


def agree(value):
    """The first process's `value`, a number or an array, on all of them."""
    return value if alone() else np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def all_of(value):
    """Whether `value` is true on all processes."""
    return bool(value) if alone() else bool(multihost_utils.process_allgather(np.asarray(bool(value))).all())


def wait_for_all(name):
    """Returns when every process has come here."""
    if not alone():
        multihost_utils.sync_global_devices(name)


def is_loss(error):
    """Whether an exception is what a process sees when another one has died."""
    return not alone() and any(word in str(error) for word in _LOST)


def leave(code):
    """Ends the process at once if it is one of several: an orderly end would wait for those that wait for it."""
    if not alone():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def joined(values, goes_on):
    """Inside, this process is one of those that `initialize` finds, and an error ends it at once.

    Raises OthersLost where another process is gone; goes_on: where the same command begins again, for its message.
    """
    initialize(values)
    try:
        yield
    except KeyboardInterrupt:
        if _all_stop:  # or the first to end would look dead to the others
            jax.distributed.shutdown()
        raise
    except UserError:
        raise
    except Exception as error:
        if alone():
            raise
        if is_loss(error):
            raise OthersLost(
                "Another process of this run has died, or cannot be reached any more (its own message "
                f"says why; here: {str(error).strip().splitlines()[0][:200]}). Run the same command again "
                f"on all hosts: it goes on {goes_on}."
            ) from error
        traceback.print_exc()
        leave(1)
