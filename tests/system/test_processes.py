"""Many processes: the same run as in one; elastic resumption; a process that dies."""

import json
import os
import re
import signal
import socket
import subprocess
import time
import types

import numpy as np
import pytest
from paths import ROOT
from small_run import Started, command, environment, overrides, run_inside, unwrapped, weights_at

from isnet_jax.evaluation.results import read_metrics
from isnet_jax.runtime import distributed, heartbeat

# In float64 another order of sums does not show after a few steps; parameters stay float32.
FIELDS = {
    "model.dtype": "float64",
    "augment.crop_size": (64, 48),
    "train.epochs": 2,
    "run.eval_every_epochs": 1,
    "run.checkpoint_every_steps": 2,
    "run.best_metric": "miou",
}
STEPS = 4


def arguments(camvid, workdir, **more):
    return ["--config=tests/tiny_camvid.py:resnet18", f"--workdir={workdir}", *overrides(camvid, **{**FIELDS, **more})]


@pytest.fixture(scope="module")
def single(camvid, tmp_path_factory):
    """A run in one process, on one device."""
    workdir = tmp_path_factory.mktemp("single") / "run"
    started = Started(command(*arguments(camvid, workdir)), JAX_ENABLE_X64="1")
    code, err = started.end(300)
    assert code == 0, err
    return workdir


def start(count, words, devices=1):
    """`count` processes of a command that know of each other."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    return [
        Started(
            [*words, f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={i}"],
            JAX_NUM_CPU_DEVICES=str(devices),
            JAX_ENABLE_X64="1",
        )
        for i in range(count)
    ]


def assert_same_run(a, b, tolerance=1e-5):
    """Losses and confusion matrices of two workdirs, and their last weights, to rounding."""
    rows, others = ([row for row in read_metrics(path / "metrics.jsonl") if "loss/total" in row] for path in (a, b))
    assert [row["step"] for row in rows] == [row["step"] for row in others] == list(range(1, STEPS + 1))
    for row, other in zip(rows, others):
        for name in ("loss/auxiliary", "loss/stage1", "loss/stage2", "grad_norm"):
            assert row[name] == pytest.approx(other[name], rel=tolerance), (row["step"], name)
    weights, others = weights_at(a, STEPS), weights_at(b, STEPS)
    for name, value in weights.items():
        if "digest" not in name:
            scale = max(np.abs(value).max(initial=0), 1e-3)
            assert np.abs(value - others[name]).max(initial=0) <= 50 * tolerance * scale, name
    counted, others = (
        np.array(json.loads((path / "results.json").read_text())["weights"]["confusion"]) for path in (a, b)
    )
    np.testing.assert_array_equal(counted.sum(1), others.sum(1))
    assert all(len(list((workdir / "best").iterdir())) == 1 for workdir in (a, b))
    assert np.abs(counted - others).sum() <= 0.001 * counted.sum()  # ties of scores


PROCESSES = [
    (2, 1, "auto"),
    pytest.param(4, 1, "data=2,spatial=2", marks=pytest.mark.slow),
    pytest.param(2, 4, "data=4,spatial=2", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("count, devices, mesh", PROCESSES)
def test_processes_equal_one_process(count, devices, mesh, camvid, single, tmp_path):
    """Strips of an image may lie in two processes. Only the first one speaks; the others wait for what it writes."""
    processes = start(count, command(*arguments(camvid, tmp_path / "run", mesh=mesh)), devices)
    ends = [process.end(400) for process in processes]
    assert [code for code, _ in ends] == [0] * count, ends
    assert {err for _, err in ends} == {""} and not any(process.lines for process in processes[1:])
    out = "".join(processes[0].lines)
    assert f"{count * devices} cpu devices of {count} processes" in out and "mIoU" in out
    assert_same_run(single, tmp_path / "run")
    assert (tmp_path / "run" / "predictions.png").exists()


@pytest.mark.slow
def test_run_resumes_on_other_devices_and_processes(camvid, single, tmp_path):
    """One device, then 2 processes of two in strips, then 4 devices: the same run to rounding."""
    for epochs, count, devices, mesh in ((1, 1, 1, "auto"), (2, 2, 2, "data=2,spatial=2"), (2, 1, 4, "data=4")):
        words = command(*arguments(camvid, tmp_path / "run", mesh=mesh, **{"run.checkpoint_every_steps": 1}))
        processes = (
            start(count, words, devices)
            if count > 1
            else [Started(words, JAX_NUM_CPU_DEVICES=str(devices), JAX_ENABLE_X64="1")]
        )
        if (count, devices) != (1, 4):  # stopped on the way
            processes[0].wait_for(f"^step {2 * epochs - 1}/")
            os.kill(processes[-1].process.pid, signal.SIGTERM)
        ends = [process.end(400) for process in processes]
        assert {code for code, _ in ends} <= {0, 75}, ends
    assert {code for code, _ in ends} == {0}
    assert_same_run(single, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_signal_to_one_process_stops_all_after_the_same_step(count, camvid, tmp_path):
    """In a new run, and in a resumed one, after evaluations."""
    words = command(*arguments(camvid, tmp_path / "run", **{"train.epochs": 200, "run.checkpoint_every_steps": 3}))
    last = 0
    for _ in range(2):
        processes = start(count, words)
        processes[0].wait_for(f"^step +{last + 5}/")
        os.kill(processes[-1].process.pid, signal.SIGTERM)
        ends = [process.end(60) for process in processes]
        assert [code for code, _ in ends] == [75] * count, ends
        assert all("stopped by SIGTERM; the same command resumes from the last checkpoint" in err for _, err in ends)
        steps = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
        assert last + 5 <= max(steps) < 400
        last = max(steps)
        assert processes[0].lines[-1].startswith(f"step {last} is saved in ")


@pytest.mark.parametrize(
    "death",
    [
        signal.SIGKILL,  # connections break
        pytest.param(signal.SIGSTOP, marks=pytest.mark.slow),  # they do not, as on a host that hangs
    ],
)
def test_death_of_a_process_stops_the_rest_and_the_run_resumes(death, camvid, tmp_path):
    words = command(*arguments(camvid, tmp_path / "run", **{"run.checkpoint_every_steps": 1}))
    processes = start(2, words)
    processes[0].wait_for("^step +2/")  # of four: an evaluation follows
    processes[1].process.send_signal(death)
    begin = time.monotonic()
    code, err = processes[0].end(2 * heartbeat.SECONDS + 30)
    assert time.monotonic() - begin < 2 * heartbeat.SECONDS + 20
    assert code == 75 and "Traceback" not in err, err
    assert "Another process of this run has died" in unwrapped(err), err
    processes[1].process.kill()
    processes[1].end()
    last = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit())
    again = Started(words, JAX_ENABLE_X64="1")
    again.wait_for(f"resuming from step {last}$")
    again.process.kill()


@pytest.mark.slow
def test_evaluation_in_processes_equals_one_process(camvid, single, tmp_path):
    flags = [
        "--config=tests/tiny_camvid.py:resnet18",
        f"--checkpoint={single}",
        *[word for word in overrides(camvid, **FIELDS) if "=config.run" not in word],
    ]
    one = Started(command(*flags, f"--output={tmp_path}/one", module="evaluate"), JAX_ENABLE_X64="1")
    assert one.end(300) == (0, "")
    processes = start(2, command(*flags, f"--output={tmp_path}/two", module="evaluate"))
    ends = [process.end(400) for process in processes]
    assert [code for code, _ in ends] == [0, 0], ends
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one["confusion"] == two["confusion"]
    assert two["run"]["processes"] == 2 and two["images"] == 5
    flags += [f"--output={tmp_path}/strips", "--config.mesh=data=1,spatial=2"]
    strips = start(2, command(*flags, module="evaluate"))
    ends = [process.end(400) for process in strips]  # both processes hold every image
    assert [code for code, _ in ends] == [0, 0], ends
    assert json.loads((tmp_path / "strips" / "results.json").read_text())["confusion"] == one["confusion"]
    names = sorted(path.name for path in (tmp_path / "two" / "predictions").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "one" / "predictions").iterdir()) and len(names) == 5


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["--num_processes=2"],
            "give --coordinator, --num_processes, --process_id all or none; there is only --num_processes",
        ),
        (
            ["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"],
            "--process_id=2 is not below --num_processes=2",
        ),
        (
            ["--coordinator=localhost", "--num_processes=2", "--process_id=1"],
            "--coordinator=localhost is not HOST:PORT",
        ),
    ],
)
def test_process_flags_that_conflict_are_refused(words, message):
    code, _, err = run_inside("--config=configs/quickstart.py", *words)
    assert code == 2 and err.startswith("error: ") and message in unwrapped(err)


def test_initialize_without_flags_leaves_discovery_to_jax(monkeypatch):
    """As under Slurm."""
    seen = []

    def initialize(
        coordinator_address=None,
        num_processes=None,
        process_id=None,
        local_device_ids=None,
        *,
        initialization_timeout=300,
        heartbeat_timeout_seconds=100,
    ):
        seen.append((coordinator_address, num_processes, process_id))

    monkeypatch.setattr(distributed.jax.distributed, "initialize", initialize)
    monkeypatch.setattr(distributed.interrupts, "install", lambda: None)
    values = types.SimpleNamespace(coordinator=None, num_processes=None, process_id=None)
    distributed.initialize(values)
    assert not seen
    monkeypatch.setattr(distributed, "_is_cluster", lambda: True)
    distributed.initialize(values)
    assert seen == [(None, None, None)]


def test_missing_first_process_is_reported():
    code = (
        "import isnet_jax.main as main; from isnet_jax import cli; from isnet_jax.runtime import distributed; "
        "distributed.CONNECT_SECONDS, distributed.WAIT_NOTICE_SECONDS = 3, 1; "
        "cli.run(main._main, main.__doc__, main._define_flags)"
    )
    words = ["--config=configs/quickstart.py", "--coordinator=localhost:1", "--num_processes=2", "--process_id=1"]
    done = subprocess.run(
        [*command()[:1], "-c", code, *words], cwd=ROOT, text=True, capture_output=True, env=environment(), timeout=120
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(
        "waiting for the other processes .* error: Process 0 of this run does not listen at --coordinator=localhost:1 ",
        unwrapped(done.stderr),
    ), done


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, False),
        ({"SLURM_JOB_ID": "1"}, False),
        (
            {
                "SLURM_JOB_ID": "1",
                "SLURM_STEP_NODELIST": "a[1-2]",
                "SLURM_PROCID": "0",
                "SLURM_LOCALID": "0",
                "SLURM_NTASKS": "2",
            },
            True,
        ),
        (
            {
                "SLURM_JOB_ID": "1",
                "SLURM_STEP_NODELIST": "a",
                "SLURM_PROCID": "0",
                "SLURM_LOCALID": "0",
                "SLURM_NTASKS": "1",
            },
            False,
        ),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}, True),
    ],
)
def test_is_cluster_reads_the_environment(variables, expected, monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert distributed._is_cluster() == expected
