"""Real faults in real runs; afterwards the weights are, bit for bit, those of a run that nothing happened to."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from paths import ROOT
from small_run import (
    Started,
    assert_same_weights,
    command,
    environment,
    overrides,
    run,
    small_config,
    unwrapped,
)

from isnet_jax.checkpoints.manager import Checkpoints
from isnet_jax.errors import UserError
from isnet_jax.input import pipeline
from isnet_jax.runtime import sharding
from isnet_jax.training.loop import train_and_evaluate

pytestmark = pytest.mark.usefixtures("tiny_network", "one_device")

STEPS = 12  # of a run here
FIELDS = {"train.epochs": STEPS // 2, "run.eval_every_epochs": 4, "run.keep_checkpoints": 2}
KILLED = {
    "run.checkpoint_every_steps": 1,
    "run.eval_every_epochs": 1,
    "run.best_metric": "miou",
}  # it saves all the time


def arguments(camvid, workdir, **more):
    return ["--config=tests/tiny_camvid.py:resnet18", f"--workdir={workdir}", *overrides(camvid, **{**FIELDS, **more})]


@pytest.fixture(scope="module")
def undisturbed(camvid, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    code, _, err = run(*arguments(camvid, workdir))
    assert (code, err) == (0, "")
    return workdir


@pytest.mark.parametrize(
    "number, code, line",
    [
        (signal.SIGTERM, 75, "stopped by SIGTERM"),
        pytest.param(signal.SIGINT, 130, "interrupted", marks=pytest.mark.slow),
    ],
)
def test_signal_saves_the_step_and_the_run_resumes(number, code, line, camvid, undisturbed, tmp_path):
    started = Started(command(*arguments(camvid, tmp_path / "run", **{"run.checkpoint_every_steps": 100})))
    started.wait_for("^step +2/")
    started.process.send_signal(number)
    found, err = started.end()
    assert found == code and err.endswith(f"\n{line}; the same command resumes from the last checkpoint\n"), err
    [saved] = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert 2 <= int(saved) < STEPS
    code, out, err = run(*arguments(camvid, tmp_path / "run"))
    assert code == 0 and f"resuming from step {saved}\n" in out, err
    assert_same_weights(undisturbed, tmp_path / "run", STEPS)


@pytest.mark.slow
def test_signal_while_evaluating_repeats_only_the_evaluation(camvid, undisturbed, tmp_path):
    started = Started(command(*arguments(camvid, tmp_path / "run")))
    started.wait_for("^step +8/")  # which is evaluated
    os.kill(started.process.pid, signal.SIGTERM)
    assert started.end()[0] == 75
    code, out, err = run(*arguments(camvid, tmp_path / "run"))
    assert code == 0, err
    rows = [row for row in _metrics(tmp_path / "run") if "weights/miou" in row]
    assert rows == [row for row in _metrics(undisturbed) if "weights/miou" in row] and len(rows) == 2
    assert_same_weights(undisturbed, tmp_path / "run", STEPS)


def _metrics(workdir):
    from isnet_jax.evaluation.results import read_metrics

    return read_metrics(workdir / "metrics.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, 22])
def test_run_killed_at_random_moments_equals_undisturbed(kills, camvid, undisturbed, tmp_path):
    """Starting, restoring, training, saving, evaluating: whatever it is doing."""
    rng, words = random.Random(0), command(*arguments(camvid, tmp_path / "run", **KILLED))
    start = time.monotonic()
    shutil.copytree(undisturbed, tmp_path / "clock")  # a finished run: how long a start takes
    subprocess.run(
        command(*arguments(camvid, tmp_path / "clock")), cwd=ROOT, env=environment(), check=True, capture_output=True
    )
    usual = time.monotonic() - start
    for _ in range(kills):
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            stderr=subprocess.PIPE,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, 1.5 * usual))
            assert process.returncode == 0, process.stderr.read()
        process.send_signal(signal.SIGKILL)
        process.wait()
    code, _, err = run(*arguments(camvid, tmp_path / "run"))
    assert (code, err) == (0, "")
    assert_same_weights(undisturbed, tmp_path / "run", STEPS)
    steps = [row["step"] for row in _metrics(tmp_path / "run") if "loss/total" in row]
    assert steps == list(range(1, STEPS + 1))
    assert not list((tmp_path / "run").rglob("*.partial"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 22 MB: one checkpoint, and most of another."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=22m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small file system takes root's rights")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.slow
def test_full_disk_is_reported_and_the_run_resumes(camvid, undisturbed, small_disk):
    workdir = small_disk / "run"
    code, out, err = run(*arguments(camvid, workdir))
    assert code == 1 and "Traceback" not in err + out, err
    assert re.search(
        "cannot be written .*No space left.*Make room.*resumes from the checkpoint of step 3", unwrapped(err)
    ), err
    subprocess.run(["mount", "-o", "remount,size=2g", small_disk], check=True)
    code, out, err = run(*arguments(camvid, workdir))
    assert code == 0 and "resuming from step 3\n" in out, err
    assert_same_weights(undisturbed, workdir, STEPS)


def _largest(path):
    return max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a bit": lambda step: _flip(_largest(step)),
    "cut": lambda step: os.truncate(_largest(step), 1000),
    "a file gone": lambda step: _largest(step).unlink(),
    "metadata": lambda step: (step / "default" / "_METADATA").write_text('{"tree_metadata": 5}'),
    "all gone": lambda step: shutil.rmtree(step / "default"),
    "empty files": lambda step: [os.truncate(path, 0) for path in step.rglob("*") if path.is_file()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoint_is_quarantined_for_the_previous_one(damage, tmp_path, capsys):
    """Each kind of damage is reported, and the next start no longer sees it."""
    mesh = sharding.make_mesh("data=2", devices=jax.devices()[:2])

    def state(step):
        import jax.numpy as jnp

        from isnet_jax.training.step import TrainState

        kernel = jnp.asarray(np.random.default_rng(step).standard_normal((64, 1000)), jnp.float32)
        return TrainState(jnp.int32(step), {"a": {"kernel": kernel}}, {"mean": kernel[0]}, (kernel,), None)

    saved = Checkpoints(tmp_path, {"name": "run"})
    for step in (1, 2, 3):
        saved.save(step, state(step))
    saved.close()
    for step in ("3", "2")[: 1 + (damage == "a bit")]:
        DAMAGE[damage](tmp_path / "checkpoints" / step)
    last = 1 if damage == "a bit" else 2
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh)), state(0)
    )
    saved = Checkpoints(tmp_path, {"name": "run"})
    found = saved.restore(template)
    jax.tree.map(np.testing.assert_array_equal, found, state(last))
    err = capsys.readouterr().err
    assert f"The checkpoint {tmp_path}/checkpoints/3 is damaged: " in err and f"{tmp_path}/damaged-checkpoints" in err
    assert saved.steps()[0] == last and (tmp_path / "damaged-checkpoints" / "3").is_dir()
    saved.save(3, state(3))
    saved.close()
    again = Checkpoints(tmp_path, {"name": "run"})
    jax.tree.map(np.testing.assert_array_equal, again.restore(template), state(3))
    again.close()


def test_run_without_intact_checkpoint_never_restarts_silently(camvid, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    for step in (workdir / "checkpoints").iterdir():
        _flip(_largest(step))
    for _ in range(2):
        with pytest.raises(UserError, match="None of the checkpoints .* is intact.*storage.*same command again"):
            train_and_evaluate(small_config(camvid, **FIELDS), workdir)
    before = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert before == {path.name for path in (undisturbed / "checkpoints").iterdir()}  # nothing is moved
    shutil.move(workdir / "checkpoints", workdir / "damaged-checkpoints")
    with pytest.raises(UserError, match="None of the checkpoints .* is intact"):
        train_and_evaluate(small_config(camvid, **FIELDS), workdir)


def test_run_resumes_from_the_last_intact_checkpoint(camvid, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    newest, before = sorted(map(int, os.listdir(workdir / "checkpoints")), reverse=True)
    _flip(_largest(workdir / "checkpoints" / str(newest)))
    code, out, err = run(*arguments(camvid, workdir))
    assert code == 0 and f"checkpoints/{newest} is damaged" in err and f"resuming from step {before}\n" in out, err
    assert_same_weights(undisturbed, workdir, STEPS)


def test_train_stops_on_non_finite_loss(camvid, tmp_path):
    c = small_config(camvid, **{"train.base_lr": 1e30, "run.checkpoint_every_steps": 1})
    with pytest.raises(UserError) as raised:
        train_and_evaluate(c, tmp_path / "run")
    found = re.search(
        r"At step (\d+) the loss is .*; the batch held (.*)\. The last checkpoint, of step (\d+), is "
        r"from before it\. Look at those",
        str(raised.value),
    )
    step = int(found[1])
    assert int(found[3]) == step - 1 and sorted(os.listdir(tmp_path / "run" / "checkpoints"))[-1] == str(step - 1)
    _, indices = pipeline.batch_indices(step - 1, 18, 8, 0)
    assert found[2].split(", ") == [f"{i:03d}" for i in indices]


def test_unreadable_records_are_named(camvid, undisturbed, tmp_path, monkeypatch):
    """The shard itself is damaged, as by a failing disk; nothing of the run is lost."""
    from isnet_jax.input import records

    monkeypatch.setattr(records, "RETRY_DELAYS", (0.01, 0.01))
    shutil.copytree(camvid[1], tmp_path / "data")
    [shard] = (tmp_path / "data").rglob("*train.array_record*")
    data = bytearray(shard.read_bytes())
    for place in range(2000, len(data) - 2000, 1500):
        data[place] ^= 0xFF
    shard.write_bytes(data)
    c = small_config((camvid[0], tmp_path / "data"), **FIELDS)
    with pytest.raises(UserError, match=r"The example \d{3} (cannot be read from|in) .*camvid.*prepare"):
        train_and_evaluate(c, tmp_path / "run")
