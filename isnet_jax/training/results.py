"""The evaluations of a run: what is printed, logged and written of each."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isnet_jax.evaluation import metrics, pictures
from isnet_jax.evaluation.loop import Evaluator
from isnet_jax.input.data import Data
from isnet_jax.runtime import distributed
from isnet_jax.runtime.console import say
from isnet_jax.runtime.files import atomic_write_text
from isnet_jax.training.best import BestCheckpoint
from isnet_jax.training.log import Log
from isnet_jax.training.step import TrainState

LOGGED_SCORES = "miou", "pixel_accuracy", "mean_accuracy", "loss"
LOGGED_SIDE = 480  # pixels of an image in the log


def evaluate(
    evaluator: Evaluator, state: TrainState, data: Data, log: Log | None, best: BestCheckpoint | None = None
) -> tuple[dict[str, dict[str, Any]], list[pictures.Row]]:
    """Scores and loss of the weights and of their moving average, if there is one; prints and logs them.

    best: is offered the state. Also returns rows of pictures, (image, ground truth, prediction by the weights), whose
    sheet is logged, too.
    """
    variables = {"weights": state.variables} | ({"ema": state.ema} if state.ema else {})
    sheet = pictures.ComparisonSheet(data.config.run.num_pictures, len(data.evaluation))
    step, results = int(state.step), {}
    for kind in variables:
        results[kind] = evaluator(variables[kind], sheet.add if kind == "weights" else None)
        loss = results[kind]["loss"]
        say(
            f"step {step}  {kind} on {data.config.data.eval_split}: {_in_words(results[kind])}, "
            f"loss {f'{loss:.4f}' if math.isfinite(loss) else 'n/a'}"
        )
    if best:
        best.offer(step, state, results)
    if log:
        log.write(step, _logged(results, data.class_names))
        if sheet.rows and distributed.is_first():
            rows = [pictures.shrunk(row, LOGGED_SIDE) for row in sheet.rows]
            log.picture(step, "predictions", np.asarray(pictures.comparison(rows, data.palette, data.class_names)))
    return results, sheet.rows


def _logged(results: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """What the log says about an evaluation; IoU by class is iou/NAME, or ema/iou/NAME."""
    logged = {f"{kind}/{name}": result[name] for kind, result in results.items() for name in LOGGED_SCORES}
    for kind, result in results.items():
        prefix = "iou" if kind == "weights" else f"{kind}/iou"
        logged |= {f"{prefix}/{name}": value for name, value in zip(names, result["iou"])}
    return logged


def write_results(
    workdir: Path, results: dict[str, dict[str, Any]], data: Data, rows: list, facts: Mapping[str, Any]
) -> None:
    """Prints the final scores as a table, and writes results.json and predictions.png.

    rows: (image, ground truth, prediction) for the picture; facts: what results.json holds before the scores.
    """
    names = data.class_names
    for kind, result in results.items():
        say((f"\n{kind}\n" if len(results) > 1 else "") + metrics.format_table(result, names))
    baseline = metrics.majority_class_scores(next(iter(results.values()))["confusion"])
    say(f"majority-class baseline: {_in_words(baseline)}")
    if rows:
        path = workdir / "predictions.png"
        pictures.save_image(path, pictures.comparison(rows, data.palette, names))
        say(f"image, ground truth and prediction side by side: {path}")
    content: dict[str, Any] = dict(facts)
    for kind, result in results.items():
        scores, loss = {name: value for name, value in result.items() if name != "loss"}, result["loss"]
        content[kind] = metrics.in_percent(scores, names) | {"loss": loss if math.isfinite(loss) else None}
    atomic_write_text(workdir / "results.json", json.dumps(content, indent=1) + "\n")


def _in_words(scores: Mapping[str, Any]) -> str:
    miou, accuracy = (metrics.percent(scores[name], unit=" %") for name in ("miou", "pixel_accuracy"))
    return f"mIoU {miou}, pixel accuracy {accuracy}"
