"""Whole runs with a best checkpoint, runs that stop early, and runs that go on under another config."""

import itertools
import json
import shutil

import numpy as np
import pytest
from small_run import assert_same_weights, overrides, run_inside, small_config, unwrapped, weights_at

from isnet_jax.evaluation.results import read_metrics
from isnet_jax.runtime import interrupts
from isnet_jax.training import loop, trainer
from isnet_jax.training.changes import Resumption
from isnet_jax.training.log import Log
from isnet_jax.training.loop import train_and_evaluate

pytestmark = pytest.mark.usefixtures("tiny_network", "one_device")

BEST = {
    "train.ema_decay": 0.5,
    "run.best_metric": "ema/pixel_accuracy",
    "run.keep_checkpoints": 1,
    "run.eval_every_epochs": 1,
}


@pytest.fixture(scope="module")
def finished(camvid, tiny_network, one_device, tmp_path_factory):
    """A run of 6 steps that is evaluated after 2, 4 and 6, with a best checkpoint."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    train_and_evaluate(small_config(camvid, **BEST), workdir)
    return workdir


def scores(workdir):
    return [row for row in read_metrics(workdir / "metrics.jsonl") if "weights/miou" in row]


def test_best_is_that_of_the_logged_evaluations(finished):
    """Its state is the one that training had at that step, ready to go on."""
    rows = scores(finished)
    best = max(rows, key=lambda row: row["ema/pixel_accuracy"])  # the first of equal ones
    record = json.loads((finished / "results.json").read_text())["best"]
    assert [row["step"] for row in rows] == [2, 4, 6] and (finished / "best" / str(best["step"])).is_dir()
    assert record["step"] == best["step"] and record["metric"] == "ema/pixel_accuracy"
    assert record["score"] == pytest.approx(100 * best["ema/pixel_accuracy"], abs=1e-4)


FAULTS = {"stopped": (trainer.distributed, "stop_requested"), "killed once the best is saved": (Log, "write")}


@pytest.mark.parametrize("fault", [pytest.param("stopped", marks=pytest.mark.slow), "killed once the best is saved"])
def test_resumed_run_keeps_the_same_best(fault, finished, camvid, tmp_path, monkeypatch):
    """Stopped by a signal in step 4, or killed between the best checkpoint of step 4 and the line of its evaluation."""
    c, calls, (owner, name) = small_config(camvid, **BEST), itertools.count(), FAULTS[fault]
    intact = getattr(owner, name)

    def write(log, step, values):
        if step == 4 and "weights/miou" in values:
            raise MemoryError("killed")
        intact(log, step, values)

    replacement = write if owner is Log else lambda: next(calls) >= 5
    with monkeypatch.context() as patch, pytest.raises((MemoryError, interrupts.StopRequested)):
        patch.setattr(owner, name, replacement)
        train_and_evaluate(c, tmp_path)
    assert not (tmp_path / "results.json").exists()
    train_and_evaluate(c, tmp_path)
    assert_same_weights(finished, tmp_path, 6)
    assert scores(tmp_path) == scores(finished)
    best = [json.loads((workdir / "results.json").read_text())["best"] for workdir in (finished, tmp_path)]
    assert best[0] == best[1]
    assert_same_weights(finished, tmp_path, best[0]["step"], "best")


def test_run_stops_without_improvement_and_stays_stopped(camvid, tmp_path, monkeypatch, capsys):
    """After evaluations of 50, 60, 60 and 40 % of 8; more patience lets it train on."""
    script = []  # what the next evaluations score
    monkeypatch.setattr(loop, "make_score", lambda *_: lambda results: script.pop(0) if script else 0.1)
    fields = {"run.best_metric": "miou", "run.eval_every_epochs": 1, "train.epochs": 5}
    for limit, following, last, evaluations, says in (
        (2, [0.5, 0.6, 0.6, 0.4], 8, 4, "stopped at step 8 of 10, because miou has not improved since step 4"),
        (2, [0.6], 8, 1, "stopped at step 8 of 10"),
        (3, [0.6], 10, 1, "best miou so far: 60.00 % at step 4"),
    ):
        script[:] = following
        train_and_evaluate(small_config(camvid, **fields, **{"run.stop_after_evaluations": limit}), tmp_path)
        record, out = json.loads((tmp_path / "results.json").read_text()), capsys.readouterr().out
        assert record["step"] == last and record["best"] == {"step": 4, "metric": "miou", "score": 60.0}
        assert says in out and out.count("weights on val") == evaluations
        assert [row["step"] for row in scores(tmp_path)] == list(range(2, last + 1, 2))
    assert "loss" in out and int(weights_at(tmp_path, 10)["['step']"]) == 10


def test_finished_run_goes_on_for_more_epochs(finished, camvid, tmp_path):
    """In its workdir or from a new one, alike, with the rates of the longer schedule from there on."""
    c = small_config(camvid, **BEST | {"train.epochs": 5, "run.keep_checkpoints": 5})
    here, new = tmp_path / "here", tmp_path / "new"
    shutil.copytree(finished, here)
    train_and_evaluate(c, here, Resumption(with_changes=True))
    train_and_evaluate(c, new, Resumption(source=str(finished)))
    assert_same_weights(here, new, 10)
    for workdir in (here, new):
        rates = {row["step"]: row["lr"] for row in read_metrics(workdir / "metrics.jsonl") if "lr" in row}
        for step in (7, 8, 9, 10):  # the rate of a step is that of the count before it
            assert rates[step] == pytest.approx(0.0099 * (1 - (step - 1) / 10) ** 0.9 + 1e-4, rel=1e-5)
    assert [row["step"] for row in scores(here)] == [2, 4, 6, 8, 10]
    assert json.loads((here / "before-6" / "results.json").read_text())["step"] == 6
    assert not np.array_equal(
        *(weights_at(here, step)["['params']['bottleneck']['conv']['kernel']"] for step in (9, 10))
    )


def test_commands_name_flags_that_exclude_each_other(camvid, tmp_path):
    arguments = ["--config=tests/tiny_camvid.py:resnet18", f"--workdir={tmp_path}/w", *overrides(camvid)]
    for flags, message in (
        (["--best"], "--best goes with --resume_from=DIR"),
        (["--resume_from=a", "--resume_with_changes"], "--resume_from goes on in a new --workdir"),
    ):
        code, _, err = run_inside(*arguments, *flags)
        assert code == 2 and message in unwrapped(err)
