"""Confusion matrix on the device, scores from it on the host."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from isnet_jax.losses import IGNORED

BLOCK_ROWS = 64  # image rows counted at once: one-hot vectors exist for so many


def confusion_matrices(predictions, labels, num_classes):
    """(B, K, K) int32 counts, rows truth, columns prediction, of integers (B, H, W); 255 in labels is ignored."""
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


def pixel_counts(classes, num_classes):
    """(B, K) int32: how many pixels of classes (B, H, W) are of each; others, such as 255, count nowhere."""

    def count(row_classes):  # (B, W), one-hot vectors of a row at a time
        return jax.nn.one_hot(row_classes, num_classes, dtype=jnp.int32).sum(1, dtype=jnp.int32)

    start = jnp.zeros((classes.shape[0], num_classes), jnp.int32)
    return lax.scan(lambda total, row: (total + count(row), None), start, classes.swapaxes(0, 1))[0]


def class_counts(confusion):
    """(3, K) int64 pixel counts, of each class hits, predicted and truth, of a confusion matrix (K, K), rows truth."""
    confusion = np.asarray(confusion, np.int64)
    return np.stack([np.diag(confusion), confusion.sum(0), confusion.sum(1)])


def iou(counts):
    """Intersection over union (..., K), float64, NaN where the union is empty.

    counts (..., 3, K): hits, predicted and truth, of whole classes or of their boundary bands.
    """
    hits, predicted, truth = np.moveaxis(np.asarray(counts), -2, 0)
    return _ratio(hits, truth + predicted - hits)


def mean(values):
    """Mean over the last axis of what is not NaN; NaN where all is."""
    kept = ~np.isnan(values)
    return _ratio(np.where(kept, values, 0).sum(-1), kept.sum(-1))


def scores(confusion, absent=np.nan, predicted_only=0.0):
    """Scores, in [0, 1], from an integer confusion matrix (K, K), rows truth, in which no pixel labelled 255 is.

    `iou` (K,) = tp / (pred + gt - tp), `accuracy` (K,) = tp / gt, their means `miou` and `mean_accuracy` over what is
    not NaN; `pixel_accuracy`; `frequency_weighted_iou`, weighted by `share` (K,), the classes' share of the truth.
    `absent` is the IoU of a class that occurs neither in prediction nor in truth, and the accuracy of one without
    truth; `predicted_only` is the IoU of a class that occurs in predictions alone. The defaults are the official
    convention; protocols.py names the others.
    """
    counts = hits, predicted, truth = class_counts(confusion)
    per_class = np.select([truth > 0, predicted > 0], [iou(counts), predicted_only], absent)
    accuracy = np.where(truth > 0, _ratio(hits, truth), absent)
    weighted = np.where(truth > 0, per_class * truth, 0).sum()
    return {
        "miou": float(mean(per_class)),
        "pixel_accuracy": float(_ratio(hits.sum(), truth.sum())),
        "mean_accuracy": float(mean(accuracy)),
        "frequency_weighted_iou": float(_ratio(weighted, truth.sum())),
        "iou": per_class,
        "accuracy": accuracy,
        "share": truth / max(truth.sum(), 1),
    }


def commonest_class_scores(confusion):
    """`scores` of predicting the commonest class everywhere, on the pixels of `confusion` (K, K): what to beat."""
    truth = np.asarray(confusion, np.int64).sum(1)
    constant = np.zeros((len(truth), len(truth)), np.int64)
    constant[:, truth.argmax()] = truth
    return scores(constant)


def _ratio(a, b):
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(a, b)


def format_table(result, names):
    """Aligned text table of `scores` per class, in percent; `-` where a class does not occur."""

    def percent(x):
        return f"{100 * x:8.2f}" if np.isfinite(x) else f"{'-':>8}"

    width = max(map(len, (*names, "mean")))
    lines = [f"{'class':<{width}} {'IoU %':>8} {'acc %':>8} {'share %':>8}"]
    lines += [
        f"{name:<{width}} {percent(result['iou'][i])} {percent(result['accuracy'][i])} {percent(result['share'][i])}"
        for i, name in enumerate(names)
    ]
    lines += [
        f"{'mean':<{width}} {percent(result['miou'])} {percent(result['mean_accuracy'])}",
        f"pixel accuracy {100 * result['pixel_accuracy']:.2f} %",
    ]
    return "\n".join(lines)
