"""Single-scale evaluation at every image's original size, on the device up to the confusion matrix."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax import lax

from isnet_jax import sharding
from isnet_jax.layers import interpolation_matrix, precision
from isnet_jax.metrics import confusion_matrix, scores
from isnet_jax.photometry import normalize

BLOCK_ROWS = 64  # output rows resized at once


def predict_classes(logits, shape, in_size, out_size):
    """argmax of logits (B, h, w, K) whose valid part `in_size` (B, 2) is resized to `out_size` (B, 2) in (B, *shape).

    uint8 (B, *shape); bilinear, align_corners=False; what lies outside `out_size` is unspecified. Logits at full
    resolution exist for one block of rows at a time.
    """
    height, width = shape
    num_blocks = -(-height // BLOCK_ROWS)
    padded = num_blocks * BLOCK_ROWS
    rows = interpolation_matrix(padded, logits.shape[1], out_size[:, 0], in_size[:, 0], logits.dtype)  # (B, H, h)
    columns = interpolation_matrix(width, logits.shape[2], out_size[:, 1], in_size[:, 1], logits.dtype)
    rows = rows.reshape(-1, num_blocks, BLOCK_ROWS, logits.shape[1]).swapaxes(0, 1)

    def block(block_rows):
        x = jnp.einsum("brh,bhwk->brwk", block_rows, logits, precision=precision(logits.dtype))
        x = jnp.einsum("bcw,brwk->brck", columns, x, precision=precision(logits.dtype))
        return x.argmax(-1).astype(jnp.uint8)

    blocks = lax.map(block, rows)  # (blocks, B, BLOCK_ROWS, W)
    return blocks.swapaxes(0, 1).reshape(-1, padded, width)[:, :height]


def eval_step(variables, batch, model):
    """Predictions uint8 (B, Hl, Wl) at the original size, and the batch's confusion matrix int32 (K, K)."""
    outputs = model.apply(variables, normalize(batch["image"]), train=False, valid_size=batch["image_size"])
    predictions = predict_classes(outputs["logits"], batch["label"].shape[1:],
                                  -(-batch["image_size"] // model.output_stride), batch["label_size"])
    return predictions, confusion_matrix(predictions, batch["label"], model.num_classes)


def make_eval_step(model, mesh):
    """Jitted `eval_step(variables, batch)` over the mesh."""
    return jax.jit(partial(eval_step, model=model), in_shardings=(sharding.replicated(mesh), sharding.split_batch(mesh)),
                   out_shardings=(sharding.split_batch(mesh), sharding.replicated(mesh)))


def evaluate(step, variables, batches, num_batches, mesh, on_batch=None):
    """Scores, as `metrics.scores`, over all batches, plus "confusion" int64 (K, K).

    `on_batch(batch, predictions)`, if given, sees the NumPy batch of each and its predictions on the device.
    """
    total, pending = 0, None
    for batch in tqdm.tqdm(batches, "evaluating", num_batches, leave=False, disable=None, unit="batch"):
        predictions, confusion = step(variables, sharding.to_devices(
            {name: batch[name] for name in ("image", "label", "image_size", "label_size")}, mesh))
        if on_batch:
            on_batch(batch, predictions)
        if pending is not None:  # fetched a batch late, so that the device never waits
            total = total + np.asarray(pending, np.int64)
        pending = confusion
    total = total + np.asarray(pending, np.int64)
    return {**scores(total), "confusion": total}
