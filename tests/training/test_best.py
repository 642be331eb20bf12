"""The best checkpoint: which state is kept, through restarts and faults. test_resumption.py has whole runs."""

import json
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isnet_jax import config
from isnet_jax.checkpoints.manager import Checkpoints, load_variables, newest_step
from isnet_jax.config import checks
from isnet_jax.errors import UserError
from isnet_jax.evaluation import metrics
from isnet_jax.runtime import sharding
from isnet_jax.training.best import BestCheckpoint, make_score
from isnet_jax.training.step import TrainState

NAMES = "road", "sky/blue"
LIKE = {"params": {"kernel": np.zeros((300, 1000), np.float32)}, "batch_stats": {"mean": np.zeros(1000, np.float32)}}


def state_at(step):
    kernel = jnp.asarray(np.random.default_rng(step).standard_normal((300, 1000)), jnp.float32)
    return TrainState(jnp.int32(step), {"kernel": kernel}, {"mean": kernel[0]}, (kernel,), None)


def results(hits):
    """An evaluation in which `hits` of 100 pixels of the first class are right, and none of the second exists."""
    confusion = np.array([[hits, 100 - hits], [0, 0]])
    return {"weights": {**metrics.scores(confusion), "confusion": confusion}}


@pytest.fixture
def opened(tmp_path):
    """A function that opens the workdir as a start does: (checkpoints, best); the previous ones are closed."""
    before = []

    def start(metric="iou/road", limit=0):
        for directory in before:
            directory.close()
        c = config.default("resnet18")
        c.model.num_classes, c.run.best_metric, c.run.stop_after_evaluations = 2, metric, limit
        checkpoints = Checkpoints(tmp_path, {"name": "run"}, keep=1)
        checkpoints.record_config()
        before[:] = checkpoints, BestCheckpoint(checkpoints, c, make_score(metric, NAMES))
        return before

    yield start
    for directory in before:
        directory.close()


def kept(workdir):
    """The step whose weights the best checkpoint holds."""
    found, step = load_variables(workdir, LIKE, best=True), newest_step(workdir, best=True)
    np.testing.assert_array_equal(found["params"]["kernel"], state_at(step).params["kernel"])
    return step


def test_best_is_kept_with_its_score_through_restarts(opened, tmp_path, capsys):
    """Worse, equal and undefined scores replace nothing; other metrics are computed from the counts that are kept."""
    _, best = opened()
    for step, hits in ((1, 20), (2, 50), (3, 50), (4, 40)):
        best.offer(step, state_at(step), results(hits))
    assert kept(tmp_path) == 2 and os.listdir(tmp_path / "best") == ["2"]
    assert best.record() == {"step": 2, "metric": "iou/road", "score": 50.0}
    _, best = opened()
    assert (best.step, best.score) == (2, 0.5)
    best.offer(2, state_at(2), results(90))  # the same step, evaluated again
    best.offer(5, state_at(5), results(49))
    assert kept(tmp_path) == 2 and "step 5  iou/road 49.00 %; the best is 50.00 % at step 2" in capsys.readouterr().out
    _, best = opened("miou")
    assert best.score == 0.25  # of 50 % and, where the absent class is predicted, 0 %
    _, best = opened("recall/sky/blue")
    assert np.isnan(best.score) and best.record() == {"step": 2, "metric": "recall/sky/blue", "score": None}
    best.offer(6, state_at(6), results(99))
    assert "recall/sky/blue is undefined" in capsys.readouterr().out and kept(tmp_path) == 2
    best.close()


def test_best_is_kept_while_newest_checkpoints_are_deleted(opened, tmp_path):
    checkpoints, best = opened()
    for step, hits in ((1, 50), (2, 20), (3, 10)):
        checkpoints.save(step, state_at(step))
        best.offer(step, state_at(step), results(hits))
    checkpoints.wait()
    assert checkpoints.steps() == [3] and newest_step(tmp_path) == 3 and kept(tmp_path) == 1


def test_best_survives_a_write_that_fails(opened, tmp_path):
    """The operating system refuses the bytes of the new one in the middle."""
    _, best = opened()
    best.offer(1, state_at(1), results(20))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            UserError, match=f"cannot be written to {tmp_path}/best: .*Make room.*resumes from the start"
        ):
            best.offer(2, state_at(2), results(50))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert kept(tmp_path) == 1
    _, best = opened()
    assert (best.step, best.score) == (1, 0.2)
    best.offer(2, state_at(2), results(50))
    assert kept(tmp_path) == 2 and os.listdir(tmp_path / "best") == ["2"]


def test_half_written_best_is_none(opened, tmp_path):
    """What a kill leaves behind, of the first best state or of a later one: Orbax's temporary directory."""
    (tmp_path / "best" / "1.orbax-checkpoint-tmp").mkdir(parents=True)
    _, best = opened()
    best.offer(1, state_at(1), results(20))
    shutil.copytree(tmp_path / "best" / "1", tmp_path / "best" / "3.orbax-checkpoint-tmp")
    assert kept(tmp_path) == 1
    assert opened()[1].step == 1


def test_damaged_best_is_quarantined(opened, tmp_path, capsys):
    _, best = opened()
    best.offer(4, state_at(4), results(50))
    best.close()
    (tmp_path / "best" / "4" / "default" / "_METADATA").write_text("{}")
    _, best = opened()
    assert best.step == 0 and os.listdir(tmp_path / "damaged-checkpoints") == ["best-4"]
    assert f"The checkpoint {tmp_path}/best/4 is damaged" in capsys.readouterr().err
    best.offer(5, state_at(5), results(1))
    assert kept(tmp_path) == 5


@pytest.mark.parametrize("others", [[1], [3], [1, 3]])
def test_run_resumes_from_the_best_where_it_is_the_newest_intact(others, opened, tmp_path):
    """Killed before the next regular checkpoint; or the later one is damaged."""
    checkpoints, best = opened()
    best.offer(2, state_at(2), results(50))
    checkpoints.close()
    with Checkpoints(tmp_path, {"name": "run"}) as checkpoints:
        for step in others:
            checkpoints.save(step, state_at(step))
        checkpoints.wait()
        if 3 in others:
            (tmp_path / "checkpoints" / "3" / "default" / "_METADATA").write_text("{}")
        replicated = sharding.replicated(sharding.make_mesh("data=2", devices=jax.devices()[:2]))
        template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), state_at(0))
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(template), state_at(2))


def test_run_is_over_after_evaluations_without_improvement(opened, tmp_path):
    """Counted in metrics.jsonl, so that a resumed run stops where an uninterrupted one does."""
    _, best = opened(limit=2)
    rows = [{"step": step, "weights/miou": None} for step in (2, 4, 6, 8)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, {"step": 7, "lr": 1}]))
    assert not best.is_over(8)  # no score was ever defined
    best.offer(4, state_at(4), results(50))
    for _ in range(2):
        assert [best.is_over(step) for step in (4, 6, 7, 8)] == [False, False, False, True]
        _, best = opened(limit=2)
    assert not opened(limit=0)[1].is_over(8)


@pytest.mark.parametrize(
    "metric, expected",
    [
        ("miou", 0.1),
        ("pixel_accuracy", 0.2),
        ("ema/miou", 0.5),
        ("weights/iou/road", 0.3),
        ("ema/recall/sky/blue", 0.7),
    ],
)
def test_metric_names_a_score(metric, expected):
    weights = {"miou": 0.1, "pixel_accuracy": 0.2, "iou": np.array([0.3, 0.4])}
    ema = {"miou": 0.5, "recall": np.array([0.6, 0.7])}
    assert make_score(metric, NAMES)({"weights": weights, "ema": ema}) == expected


def test_metric_of_an_unknown_class_is_refused():
    with pytest.raises(UserError, match="'iou/tree'.*its classes are road, sky/blue"):
        make_score("iou/tree", NAMES)


def test_scores_of_the_config_exist():
    found = metrics.scores(np.eye(2, dtype=int))
    assert {name: np.ndim(found[name]) for name in checks.SCORES} == dict.fromkeys(checks.SCORES, 0)
    assert {name: np.ndim(found[name]) for name in checks.CLASS_SCORES} == dict.fromkeys(checks.CLASS_SCORES, 1)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"stop_after_evaluations": 3}, "stop_after_evaluations is 3, but config.run.best_metric is empty"),
        ({"stop_after_evaluations": -1}, "stop_after_evaluations is -1; it must be 0 or more"),
        ({"best_metric": "mIoU"}, "best_metric is 'mIoU'; it must be miou, .*iou/NAME"),
        ({"best_metric": "iou"}, "best_metric is 'iou'; it must be"),
        ({"best_metric": "miou/road"}, "best_metric is 'miou/road'; it must be"),
        ({"best_metric": "ema/miou"}, "no moving averages are kept: set config.train.ema_decay"),
    ],
)
def test_config_refuses_metrics_that_cannot_be(fields, message):
    c = config.default("resnet18")
    c.model.num_classes = 2
    c.run.update(fields)
    with pytest.raises(UserError, match=message):
        config.check(c)


def test_directory_without_best_is_named(tmp_path):
    with Checkpoints(tmp_path, {"name": "run"}) as checkpoints:
        checkpoints.save(1, state_at(1))
    with pytest.raises(
        UserError, match=f"{tmp_path} holds no best checkpoint.*config.run.best_metric.*Leave out --best"
    ):
        load_variables(tmp_path, LIKE, best=True)
