"""Confusion matrices, counted on the device, and the scores computed from them on the host."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int32, Integer
from numpy.typing import ArrayLike

from isnet_jax.labels import IGNORED
from isnet_jax.runtime.console import aligned

# The scores of classes in tables, and their means. Two have second names, which tables do not repeat.
CLASS_SCORES = {"iou": "miou", "dice": "mean_dice", "precision": "mean_precision", "recall": "mean_recall"}
TERMS = {"iou": "IoU", "dice": "Dice", "precision": "precision", "recall": "recall", "share": "share"}
OTHER_NAMES = "Dice is also called F1, and recall class accuracy."
NOTHING_LABELLED = "No pixel is labelled, so no score is defined."
BLOCK_ROWS = 64  # image rows whose one-hot vectors exist at once


def confusion_matrices(
    predictions: Integer[Array | np.ndarray, "b h w"], labels: Integer[Array | np.ndarray, "b h w"], num_classes: int
) -> Int32[Array, "b {num_classes} {num_classes}"]:
    """Pixel counts of each image: rows are ground-truth classes, columns predicted classes.

    Pixels labelled 255 are ignored.
    """
    return lax.platform_dependent(
        jnp.asarray(predictions),
        jnp.asarray(labels),
        cpu=partial(_count_one_by_one, num_classes=num_classes),
        default=partial(_count_by_products, num_classes=num_classes),
    )


def _count_one_by_one(predictions, labels, num_classes):
    """A scatter, which a CPU computes in a hundredth of the products' time."""

    def count(pairs):
        return jnp.zeros(num_classes**2, jnp.int32).at[pairs.reshape(-1)].add(1, mode="drop")

    pairs = labels.astype(jnp.int32) * num_classes + predictions  # 255 lies beyond the counters and is dropped
    return jax.vmap(count)(pairs).reshape(-1, num_classes, num_classes)


def _count_by_products(predictions, labels, num_classes):
    """Products of one-hot vectors, which accelerators compute faster than they scatter."""
    blocks = -(-labels.shape[1] // BLOCK_ROWS)
    padding = ((0, 0), (0, blocks * BLOCK_ROWS - labels.shape[1]), (0, 0))

    def split(x, fill):
        x = jnp.pad(x, padding, constant_values=fill)
        return x.reshape(x.shape[0], blocks, -1).swapaxes(0, 1)  # (blocks, B, pixels)

    def count(total, block):
        one_hot = (jax.nn.one_hot(x, num_classes, dtype=jnp.float32) for x in block)  # all zeros where ignored
        counts = jnp.einsum("bnt,bnp->btp", *one_hot)  # integers below 2^24 for each block: exact in float32
        return total + counts.astype(jnp.int32), None

    start = jnp.zeros((labels.shape[0], num_classes, num_classes), jnp.int32)
    return lax.scan(count, start, (split(labels, IGNORED), split(predictions, 0)))[0]


def pixel_counts(classes: Integer[Array | np.ndarray, "b h w"], num_classes: int) -> Int32[Array, "b {num_classes}"]:
    """Pixels of each class in each image; values outside the classes, such as 255, are not counted."""

    def count(row):  # (B, W): the one-hot vectors of one image row exist at once
        return jax.nn.one_hot(row, num_classes, dtype=jnp.int32).sum(1, dtype=jnp.int32)

    start = jnp.zeros((classes.shape[0], num_classes), jnp.int32)
    return lax.scan(lambda total, row: (total + count(row), None), start, classes.swapaxes(0, 1))[0]


def class_counts(confusion: ArrayLike) -> np.ndarray:
    """(3, K) int64: the hit, predicted and ground-truth pixels of each class.

    confusion (K, K): rows are ground truth, columns predictions.
    """
    confusion = np.asarray(confusion, np.int64)
    return np.stack([np.diag(confusion), confusion.sum(0), confusion.sum(1)])


def most_frequent_confusions(matrix: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Up to `count` non-zero entries (row, column) off the diagonal of a matrix (K, K), the largest first."""
    wrong = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    rows, columns = np.unravel_index(order, wrong.shape)
    return [(int(t), int(p)) for t, p in zip(rows, columns) if wrong[t, p]]


def iou(counts: ArrayLike) -> np.ndarray:
    """Intersection over union (..., K), float64, NaN where the union is empty.

    counts (..., 3, K): hit, predicted and ground-truth pixels, of whole classes or of their boundary bands.
    """
    hits, predicted, ground_truth = np.moveaxis(np.asarray(counts), -2, 0)
    return ratio(hits, ground_truth + predicted - hits)


def mean(values: np.ndarray) -> np.ndarray | np.float64:
    """Mean over the last axis, ignoring NaN; NaN where all values are."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0).sum(-1), known.sum(-1))


def scores(confusion: ArrayLike, absent: float = np.nan, predicted_only: float = 0.0) -> dict[str, Any]:
    """Scores in [0, 1] from integer counts (K, K); rows are ground truth, and ignored pixels are not counted.

    By class (K,): `iou` is tp / (pred + gt - tp), `dice` 2 tp / (pred + gt), `precision` tp / pred, `recall` tp / gt.
    `f1` is `dice`, and `accuracy` is `recall`, under their other names. `miou`, `mean_dice`, ... are means over the
    classes, ignoring NaN. `frequency_weighted_iou` weights IoU by `share` (K,), the share of each class in the ground
    truth. `pixel_accuracy` is over all pixels.

    absent: the IoU, Dice and precision of a class in neither prediction nor ground truth, and the recall of a class
    without ground truth; predicted_only: the IoU, Dice and precision of a class that occurs only in predictions. The
    defaults are the official convention; protocols.py lists the others. The precision of a class that has ground truth
    but is never predicted is NaN.
    """
    counts = hits, predicted, ground_truth = class_counts(confusion)

    def of_classes(values):
        return np.select([ground_truth > 0, predicted > 0], [values, predicted_only], absent)

    per_class = {
        "iou": of_classes(iou(counts)),
        "dice": of_classes(ratio(2 * hits, predicted + ground_truth)),
        "precision": of_classes(ratio(hits, predicted)),
        "recall": np.where(ground_truth > 0, ratio(hits, ground_truth), absent),
    }
    per_class |= {"f1": per_class["dice"], "accuracy": per_class["recall"]}
    weighted = np.where(ground_truth > 0, per_class["iou"] * ground_truth, 0).sum()
    return {
        "miou": float(mean(per_class["iou"])),
        "pixel_accuracy": float(ratio(hits.sum(), ground_truth.sum())),
        **{f"mean_{name}": float(mean(values)) for name, values in per_class.items() if name != "iou"},
        "frequency_weighted_iou": float(ratio(weighted, ground_truth.sum())),
        **per_class,
        "share": ground_truth / max(ground_truth.sum(), 1),
    }


def majority_class_scores(confusion: ArrayLike) -> dict[str, Any]:
    """`scores` of the majority-class baseline, which predicts the most frequent class everywhere.

    confusion (K, K): supplies the ground truth, its rows.
    """
    ground_truth = np.asarray(confusion, np.int64).sum(1)
    constant = np.zeros((len(ground_truth), len(ground_truth)), np.int64)
    constant[:, ground_truth.argmax()] = ground_truth
    return scores(constant)


def ratio(a: ArrayLike, b: ArrayLike) -> Any:
    """a / b, NaN or infinite where b is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(a, b)


def percent(share: SupportsFloat, sign: str = "", unit: str = "") -> str:
    """A share as a percentage with two digits and `unit`, or "n/a"; `sign` "+" shows the sign of a difference."""
    share = float(share)
    return f"{100 * share:{sign}.2f}{unit}" if math.isfinite(share) else "n/a"


def in_percent(scores: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Scores for JSON: percentages rounded to four digits, null where undefined.

    Arrays (K,) become {class name: percentage}. A confusion matrix (K, K) becomes nested lists of its counts.
    """

    def rounded(share):
        return round(100 * float(share), 4) if math.isfinite(share) else None

    result: dict[str, Any] = {}
    for key, value in scores.items():
        if np.ndim(value) == 2:
            result[key] = np.asarray(value).tolist()
        elif np.ndim(value) == 1:
            result[key] = {name: rounded(share) for name, share in zip(names, value)}
        else:
            result[key] = rounded(value)
    return result


def format_table(scores: Mapping[str, Any], names: Sequence[str]) -> str:
    """`scores` by class as an aligned text table, in percent; "n/a" where undefined."""
    columns = (*CLASS_SCORES, "share")
    rows = [("class", *(f"{TERMS[column]} %" for column in columns))]
    rows += [(name, *(percent(scores[column][i]) for column in columns)) for i, name in enumerate(names)]
    rows.append(("mean", *(percent(scores[mean]) for mean in CLASS_SCORES.values()), ""))
    lines = [aligned(rows), f"pixel accuracy {percent(scores['pixel_accuracy'], unit=' %')}", OTHER_NAMES]
    return "\n".join(lines if np.any(scores["share"]) else [*lines, NOTHING_LABELLED])
