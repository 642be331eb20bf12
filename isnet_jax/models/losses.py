"""ISNet's three cross entropies (paper, section 3.4), without logits at full resolution.

Bilinear resizing and cross entropy are fused and computed for one block of output rows at a time; the backward pass
rematerialises each block. Memory grows with one block, not with H x W x K.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int, Integer

from isnet_jax.labels import IGNORED
from isnet_jax.models.layers import Array, interpolation_matrix, precision

WEIGHTS = {"auxiliary": 0.4, "stage1": 0.4, "stage2": 1.0}
BLOCK_ROWS = 32  # output rows per block


def resized_cross_entropy(
    logits: Float[Array, "b h w k"], labels: Integer[Array, "b h2 w2"]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Cross entropy of logits resized to labels, bilinear, align_corners=False.

    Returns its sum over the pixels that are not ignored, and their number.
    """
    (height, width), dtype = labels.shape[1:], logits.dtype
    rows = interpolation_matrix(height, logits.shape[1], height, logits.shape[1], dtype)  # (H, h)
    columns = interpolation_matrix(width, logits.shape[2], width, logits.shape[2], dtype)  # (W, w)
    block = min(BLOCK_ROWS, height)
    num_blocks = -(-height // block)
    extra = num_blocks * block - height
    rows = jnp.pad(rows, ((0, extra), (0, 0))).reshape(num_blocks, block, -1)
    padded = jnp.pad(labels.astype(jnp.int32), ((0, 0), (0, extra), (0, 0)), constant_values=IGNORED)
    padded = padded.reshape(-1, num_blocks, block, width).swapaxes(0, 1)  # (blocks, B, block, W)

    @jax.checkpoint
    def add_block(total, rows_and_labels):
        block_rows, block_labels = rows_and_labels
        x = jnp.einsum("rh,bhwk->brwk", block_rows, logits, precision=precision(dtype))
        x = jnp.einsum("cw,brwk->brck", columns, x, precision=precision(dtype))
        # A comparison instead of a gather: one pass over x, and no scatter in the gradient.
        picked = jnp.where(block_labels[..., None] == jnp.arange(x.shape[-1]), x, 0).sum(-1)
        loss = jax.nn.logsumexp(x, axis=-1) - picked
        return total + jnp.where(block_labels != IGNORED, loss, 0).sum(), None

    total, _ = lax.scan(add_block, jnp.zeros((), dtype), (rows, padded))
    return total, jnp.asarray(labels != IGNORED).sum()


def isnet_losses(
    outputs: Mapping[str, Float[Array, "b _ _ k"]], labels: Integer[Array, "b h w"]
) -> dict[str, Float[Array, ""]]:
    """Weighted losses of a training forward pass, each the mean over the pixels that are not ignored.

    outputs: the mapping that ISNet returns with train=True. Returns "auxiliary", "stage1", "stage2" and "total"; 0
    where every pixel is ignored.
    """
    logits = {
        "auxiliary": outputs["auxiliary_logits"],
        "stage1": outputs["stage1_logits"],
        "stage2": outputs["logits"],
    }
    losses = {}
    for name, weight in WEIGHTS.items():
        total, count = resized_cross_entropy(logits[name], labels)
        losses[name] = weight * total / jnp.maximum(count, 1)
    losses["total"] = losses["auxiliary"] + losses["stage1"] + losses["stage2"]
    return losses
