"""The end of a run whose scores are undefined: no evaluated pixel is labelled, or a class occurs nowhere."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from isnet_jax import config
from isnet_jax.evaluation import metrics
from isnet_jax.evaluation.results import read_metrics
from isnet_jax.training.log import Log, has_evaluation
from isnet_jax.training.results import evaluate, write_results

NAMES = ["road", "sky"]


@pytest.fixture
def end_run(tmp_path):
    """A function that evaluates a run with a confusion matrix (2, 2), logs and writes the results: results.json."""

    def end(confusion):
        state = SimpleNamespace(variables={}, ema={"a": 0}, step=3)
        c = config.default("resnet18")
        data = SimpleNamespace(
            config=c, class_names=NAMES, palette=[[0, 0, 0], [9, 9, 9]], total_steps=3, evaluation=["an image"]
        )
        result = {**metrics.scores(confusion), "confusion": np.array(confusion)}
        result["loss"] = 0.25 if np.sum(confusion) else np.nan
        with Log(tmp_path, c, 0, 3) as log:
            results, rows = evaluate(lambda *_: result, state, data, log)
        assert rows == []
        image, ignored = np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 255, np.uint8)
        write_results(tmp_path, results, data, [(image, ignored, np.ones((8, 8), np.uint8))], {"step": 3})
        return json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)

    return end


def test_run_ends_where_no_pixel_is_labelled(end_run, tmp_path, capsys):
    content = end_run([[0, 0], [0, 0]])
    assert content["weights"]["miou"] is content["ema"]["pixel_accuracy"] is None
    assert content["weights"]["iou"] == content["weights"]["f1"] == {"road": None, "sky": None}
    assert content["weights"]["loss"] is None
    out = capsys.readouterr().out
    assert "step 3  weights on val: mIoU n/a, pixel accuracy n/a, loss n/a" in out and metrics.NOTHING_LABELLED in out
    assert "majority-class baseline: mIoU n/a, pixel accuracy n/a" in out and not re.search(r"\bnan\b", out)
    (row,) = [json.loads(x, parse_constant=pytest.fail) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert row["weights/miou"] is row["weights/loss"] is row["iou/sky"] is row["ema/iou/road"] is None
    assert read_metrics(tmp_path / "metrics.jsonl") == [row]
    assert has_evaluation(tmp_path, 3)  # a resumed run does not evaluate again
    assert Image.open(tmp_path / "predictions.png").size[0] > 3 * 8


def test_run_ends_where_a_class_never_occurs(end_run, tmp_path, capsys):
    content = end_run([[5, 0], [0, 0]])
    assert content["weights"]["loss"] == 0.25  # no percentage
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert (row["weights/loss"], row["iou/road"], row["iou/sky"]) == (0.25, 1.0, None)
    assert content["weights"]["dice"] == {"road": 100.0, "sky": None} and content["weights"]["mean_dice"] == 100
    out = capsys.readouterr().out
    assert re.search(r"^sky +n/a +n/a +n/a +n/a +0\.00$", out, re.M) and metrics.NOTHING_LABELLED not in out
