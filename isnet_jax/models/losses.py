"""ISNet's three cross entropies (paper, section 3.4), without logits at full resolution.

Bilinear resizing, cross entropy and its gradient are fused and computed for one block of output rows at a time. Memory
grows with one block, not with H x W x K; only the gradient, of the logits' own resolution, is kept.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int, Integer

from isnet_jax.labels import IGNORED
from isnet_jax.models.layers import Array, interpolation_matrix, precision

WEIGHTS = {"auxiliary": 0.4, "stage1": 0.4, "stage2": 1.0}
BLOCK_ROWS = 32  # output rows per block
EXACT_FACTORS = {2.0**n for n in range(8)}  # of resizing whose bilinear weights fit bfloat16's 8 significant bits


@jax.named_scope("losses")
def resized_cross_entropy(
    logits: Float[Array, "b h w k"], labels: Integer[Array, "b h2 w2"]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Cross entropy of logits resized to labels, bilinear, align_corners=False.

    Returns its sum over the pixels that are not ignored, and their number.
    """
    return _summed_loss(jnp.asarray(logits), jnp.asarray(labels)), jnp.asarray(labels != IGNORED).sum()


@jax.custom_vjp
def _summed_loss(logits, labels):
    return _forward(logits, labels)[0]  # XLA drops the gradient where nothing uses it


def _forward(logits, labels):
    """The loss and its gradient, the probabilities minus the labels, from the same resized block."""
    rows, columns, label_blocks = _blocks(logits, labels)

    def add_block(state, block):
        (totals, grad), (block_rows, block_labels) = state, block
        x = _product("cw,brwk->brck", columns, _product("rh,bhwk->brwk", block_rows, logits))
        x = x - x.max(-1, keepdims=True)
        # A comparison instead of a gather: one pass over x.
        is_label, counts = block_labels[..., None] == jnp.arange(x.shape[-1]), block_labels != IGNORED
        exponentials = jnp.exp(x)
        total = exponentials.sum(-1)
        loss = jnp.where(counts, jnp.log(total) - jnp.where(is_label, x, 0).sum(-1), 0)
        x_grad = exponentials * jnp.where(counts, 1 / total, 0)[..., None] - (is_label & counts[..., None])
        x_grad = _product("rh,brwk->bhwk", block_rows, _product("cw,brck->brwk", columns, x_grad))
        return (totals + loss.sum((1, 2)), grad + x_grad), None

    # Sums of each image: a sum over the batch would wait for all devices, block by block.
    start = jnp.zeros(len(logits), logits.dtype), jnp.zeros_like(logits)
    (totals, grad), _ = lax.scan(add_block, start, (rows, label_blocks))
    return totals.sum(), grad


def _backward(grad, total_grad):
    return grad * total_grad, None


_summed_loss.defvjp(_forward, _backward)


def _product(subscripts: str, weights: Array, x: Array) -> Array:
    """An einsum in the precision of x.

    With bfloat16 weights and float32 x, three bfloat16 products replace the float32 product, except on a CPU.
    """
    if weights.dtype != jnp.bfloat16:
        return _single_product(subscripts, weights, x)
    return lax.platform_dependent(
        weights, x, cpu=partial(_single_product, subscripts), default=partial(_product_of_parts, subscripts)
    )


def _single_product(subscripts: str, weights: Array, x: Array) -> Array:
    return jnp.einsum(subscripts, weights.astype(x.dtype), x, precision=precision(x.dtype))


def _product_of_parts(subscripts: str, weights: Array, x: Array) -> Array:
    products = [jnp.einsum(subscripts, weights, part, preferred_element_type=x.dtype) for part in _split(x)]
    return products[0] + products[1] + products[2]


def _split(x: Array) -> Sequence[Array]:
    """Three bfloat16 arrays that sum to the float32 array x, if finite; each holds 8 of its 24 significant bits."""
    parts = []
    for _ in range(3):
        part = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)  # XLA may drop a conversion and its inverse
        parts.append(part.astype(jnp.bfloat16))
        x = x - part
    return parts


def _blocks(logits: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Weights of the rows (blocks, block, h) and of the columns (W, w), and labels (blocks, B, block, W).

    Weights of float32 are bfloat16 where that holds them exactly: for a factor 2^n they are multiples of 2^-(n+1).
    """
    (height, width), dtype = labels.shape[1:], logits.dtype
    rows = interpolation_matrix(height, logits.shape[1], height, logits.shape[1], dtype)  # (H, h)
    columns = interpolation_matrix(width, logits.shape[2], width, logits.shape[2], dtype)
    if dtype == jnp.float32 and {height / logits.shape[1], width / logits.shape[2]} <= EXACT_FACTORS:
        rows, columns = rows.astype(jnp.bfloat16), columns.astype(jnp.bfloat16)
    block = min(BLOCK_ROWS, height)
    num_blocks = -(-height // block)
    extra = num_blocks * block - height
    rows = jnp.pad(rows, ((0, extra), (0, 0))).reshape(num_blocks, block, -1)
    padded = jnp.pad(labels.astype(jnp.int32), ((0, 0), (0, extra), (0, 0)), constant_values=IGNORED)
    return rows, columns, padded.reshape(-1, num_blocks, block, width).swapaxes(0, 1)


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
