"""Confusion matrix on the device, scores from it on the host."""
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from isnet_jax.losses import IGNORED

BLOCK_ROWS = 64  # image rows counted at once: one-hot vectors exist for so many


def confusion_matrix(predictions, labels, num_classes):
    """(K, K) int32 counts, rows truth, columns prediction, of integers (B, H, W); 255 in labels is ignored."""
    blocks = -(-labels.shape[1] // BLOCK_ROWS)
    padding = ((0, 0), (0, blocks * BLOCK_ROWS - labels.shape[1]), (0, 0))

    def split(x, fill):
        x = jnp.pad(x, padding, constant_values=fill)
        return x.reshape(x.shape[0], blocks, -1).swapaxes(0, 1)  # (blocks, B, pixels)

    def count(total, block):
        one_hot = (jax.nn.one_hot(x, num_classes, dtype=jnp.float32) for x in block)  # all zeros where ignored
        counts = jnp.einsum("bnt,bnp->btp", *one_hot)  # integers below 2^24 for each image: exact in float32
        return total + counts.astype(jnp.int32).sum(0, dtype=jnp.int32), None

    start = jnp.zeros((num_classes, num_classes), jnp.int32)
    return lax.scan(count, start, (split(labels, IGNORED), split(predictions, 0)))[0]


def scores(confusion):
    """Scores, in [0, 1], from an integer confusion matrix (K, K), rows truth.

    `iou` (K,) = tp / (pred + gt - tp), NaN for classes that occur neither in prediction nor in truth; `miou` is
    its mean over the others; `accuracy` (K,), NaN without truth, and its mean; `pixel_accuracy`. Pixels labelled
    255 were never counted.
    """
    confusion = np.asarray(confusion, np.int64)
    hits, truth, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = hits / (truth + predicted - hits)
        accuracy = hits / truth
        pixel_accuracy = hits.sum() / truth.sum()
    return {"miou": _mean(iou), "pixel_accuracy": float(pixel_accuracy), "mean_accuracy": _mean(accuracy),
            "iou": iou, "accuracy": accuracy, "share": truth / max(truth.sum(), 1)}


def commonest_class_scores(confusion):
    """`scores` of predicting the commonest class everywhere, on the pixels of `confusion` (K, K): what to beat."""
    truth = np.asarray(confusion, np.int64).sum(1)
    constant = np.zeros((len(truth), len(truth)), np.int64)
    constant[:, truth.argmax()] = truth
    return scores(constant)


def _mean(values):
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def format_table(result, names):
    """Aligned text table of `scores` per class, in percent; `-` where a class does not occur."""
    def percent(x):
        return f"{100 * x:8.2f}" if np.isfinite(x) else f"{'-':>8}"

    width = max(map(len, (*names, "mean")))
    lines = [f"{'class':<{width}} {'IoU %':>8} {'acc %':>8} {'share %':>8}"]
    lines += [f"{name:<{width}} {percent(result['iou'][i])} {percent(result['accuracy'][i])} "
              f"{percent(result['share'][i])}" for i, name in enumerate(names)]
    lines += [f"{'mean':<{width}} {percent(result['miou'])} {percent(result['mean_accuracy'])}",
              f"pixel accuracy {100 * result['pixel_accuracy']:.2f} %"]
    return "\n".join(lines)
