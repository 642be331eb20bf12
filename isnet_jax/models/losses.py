"""ISNet's three losses (paper, section 3.4), without logits at full resolution.

Bilinear resizing, cross entropy and its gradient are fused and computed for one block of output rows at a time. Memory
grows with one block, not with H x W x K; only the gradient, of the logits' own resolution, is kept. So are the options,
which the official recipes leave off: class weights, label smoothing, online hard example mining and the Dice loss.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int, Integer

from isnet_jax.labels import IGNORED
from isnet_jax.models.layers import Array, interpolation_matrix, precision

WEIGHTS = {"auxiliary": 0.4, "stage1": 0.4, "stage2": 1.0}
BLOCK_ROWS = 32  # output rows per block
EXACT_FACTORS = {2.0**n for n in range(8)}  # of resizing whose bilinear weights fit bfloat16's 8 significant bits


@jax.named_scope("losses")
def resized_cross_entropy(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b h2 w2"],
    class_weights: Sequence[float] = (),
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Int[Array, ""] | Float[Array, ""]]:
    """Cross entropy of logits resized to labels, bilinear, align_corners=False.

    Returns its sum over the pixels that are not ignored, and their number; with `class_weights` (K), the sum of their
    classes' weights. The quotient is PyTorch's `cross_entropy(weight=, label_smoothing=, ignore_index=255)`.
    """
    logits, labels, class_weights = jnp.asarray(logits), jnp.asarray(labels), tuple(class_weights)
    total = _summed_loss(logits, labels, class_weights, label_smoothing)
    if not class_weights:
        return total, (labels != IGNORED).sum()
    weights = np.zeros(IGNORED + 1)
    weights[: len(class_weights)] = class_weights
    return total, jnp.asarray(weights, logits.dtype)[labels.astype(jnp.int32)].sum()


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _summed_loss(logits, labels, class_weights, label_smoothing):
    # XLA drops the gradient where nothing uses it.
    return _forward(logits, labels, class_weights, label_smoothing)[0]


def _forward(logits, labels, class_weights, label_smoothing):
    """The loss and its gradient, the probabilities minus the labels, from the same resized block."""
    rows, columns, label_blocks = _blocks(logits, labels)

    def add_block(state, block):
        (totals, grad), (block_rows, block_labels) = state, block
        x = _resize(logits, block_rows, columns)
        loss, x_grad = cross_entropy(x, block_labels, class_weights, label_smoothing)
        x_grad = _transposed_resize(x_grad, block_rows, columns)
        return (totals + loss.sum((1, 2)), grad + x_grad), None

    # Sums of each image: a sum over the batch would wait for all devices, block by block.
    start = jnp.zeros(len(logits), logits.dtype), jnp.zeros_like(logits)
    (totals, grad), _ = lax.scan(add_block, start, (rows, label_blocks))
    return totals.sum(), grad


def cross_entropy(
    x: Float[Array, "b h w k"],
    labels: Integer[Array, "b h w"],
    class_weights: Sequence[float] = (),
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, "b h w"], Float[Array, "b h w k"]]:
    """The loss of each pixel of logits x, 0 where it is ignored, and its gradient; options as in config.loss."""
    x = x - x.max(-1, keepdims=True)
    # A comparison instead of a gather: one pass over x.
    is_label, counts = labels[..., None] == jnp.arange(x.shape[-1]), labels != IGNORED
    exponentials = jnp.exp(x)
    total = exponentials.sum(-1)
    if not class_weights and not label_smoothing:
        loss = jnp.where(counts, jnp.log(total) - jnp.where(is_label, x, 0).sum(-1), 0)
        return loss, exponentials * jnp.where(counts, 1 / total, 0)[..., None] - (is_label & counts[..., None])
    smooth = label_smoothing / x.shape[-1]
    targets = jnp.where(is_label, 1 - label_smoothing + smooth, smooth).astype(x.dtype)
    if class_weights:
        targets = targets * jnp.asarray(class_weights, x.dtype)
    weight = targets.sum(-1)
    loss = jnp.where(counts, weight * jnp.log(total) - (targets * x).sum(-1), 0)
    return loss, exponentials * jnp.where(counts, weight / total, 0)[..., None] - targets * counts[..., None]


def _backward(class_weights, label_smoothing, grad, total_grad):
    return grad * total_grad, None


_summed_loss.defvjp(_forward, _backward)


@jax.named_scope("losses")
def resized_dice_loss(logits: Float[Array, "b h w k"], labels: Integer[Array, "b h2 w2"]) -> Float[Array, ""]:
    """Soft Dice loss of logits resized as in `resized_cross_entropy`.

    1 - 2 sum(p y) / (sum(p) + sum(y)), averaged over the classes that occur in the labels. The sums, of softmax
    probabilities p and one-hot labels y, run over all pixels of the batch that are not ignored. As in V-Net (Milletari
    et al., 2016), without its squares, like `DiceLoss` of segmentation_models_pytorch. 0 where every pixel is ignored.
    """
    overlap, predicted, labelled = (x.sum(0) for x in _class_sums(jnp.asarray(logits), jnp.asarray(labels)))
    occurs = labelled > 0
    dice = 2 * overlap / jnp.where(occurs, predicted + labelled, 1)
    return jnp.where(occurs, 1 - dice, 0).sum() / jnp.maximum(occurs.sum(), 1)


@jax.custom_vjp
def _class_sums(logits, labels):
    """Of each image and class (B, K): the sums of p y, p and y over the pixels that are not ignored."""
    rows, columns, label_blocks = _blocks(logits, labels)

    def add_block(sums, block):
        p, is_label, counts = _probabilities(logits, columns, *block)
        parts = jnp.where(is_label, p, 0), jnp.where(counts, p, 0), is_label.astype(p.dtype)
        return tuple(total + part.sum((1, 2)) for total, part in zip(sums, parts)), None

    start = (jnp.zeros((len(logits), logits.shape[-1]), logits.dtype),) * 3
    return lax.scan(add_block, start, (rows, label_blocks))[0]


def _class_sums_backward(residuals, cotangents):
    logits, labels = residuals
    overlap_grad, predicted_grad, _ = (x[:, None, None] for x in cotangents)
    rows, columns, label_blocks = _blocks(logits, labels)

    def add_block(grad, block):
        p, is_label, counts = _probabilities(logits, columns, *block)
        p_grad = jnp.where(counts, jnp.where(is_label, overlap_grad, 0) + predicted_grad, 0)
        x_grad = p * (p_grad - (p * p_grad).sum(-1, keepdims=True))
        return grad + _transposed_resize(x_grad, block[0], columns), None

    return lax.scan(add_block, jnp.zeros_like(logits), (rows, label_blocks))[0], None


_class_sums.defvjp(lambda logits, labels: (_class_sums(logits, labels), (logits, labels)), _class_sums_backward)


@jax.named_scope("losses")
def hard_labels(
    logits: Float[Array, "b h w k"], labels: Integer[Array, "b h2 w2"], threshold: float, min_kept: int
) -> Integer[Array, "b h2 w2"]:
    """The labels, with easy pixels ignored: online hard example mining (OHEM).

    A pixel is hard if its label's probability, of logits resized as in `resized_cross_entropy`, is below `threshold`.
    The threshold rises, where it must, to the probability that min_kept * B pixels of the batch lie below. The same
    pixels as of mmsegmentation's OHEMPixelSampler; there a batch is that of one device, here it is the global one.
    """
    labels = jnp.asarray(labels)
    probabilities = _label_probabilities(lax.stop_gradient(jnp.asarray(logits)), labels)
    rank = jnp.minimum(min(min_kept * len(labels), labels.size), (labels != IGNORED).sum() - 1)
    is_easy = probabilities >= jnp.maximum(_order_statistic(probabilities, rank), threshold)
    return jnp.where(is_easy, IGNORED, labels)  # keeps NaN, so that the loss tells of it


def _label_probabilities(logits, labels):
    """The probability (B, H, W) of each pixel's label; infinity where it is ignored."""
    rows, columns, label_blocks = _blocks(logits, labels)

    def of_block(_, block):
        p, is_label, counts = _probabilities(logits, columns, *block)
        return None, jnp.where(counts[..., 0], jnp.where(is_label, p, 0).sum(-1), jnp.inf)

    blocks = lax.scan(of_block, None, (rows, label_blocks))[1]  # (blocks, B, block, W)
    return blocks.swapaxes(0, 1).reshape(len(labels), -1, labels.shape[2])[:, : labels.shape[1]]


def _order_statistic(values: Array, rank: Array) -> Array:
    """The element of non-negative `values` that `rank` others precede in their order; 0 if `rank` is negative.

    Found bit by bit, since such floats are ordered as their bits are: no sort, and devices only add counts.
    """
    integer = jnp.dtype(f"int{8 * values.dtype.itemsize}")
    bits = lax.bitcast_convert_type(values, integer)

    def set_bit(i, found):
        larger = found | jnp.ones((), integer) << (8 * integer.itemsize - 2 - i).astype(integer)
        return jnp.where((bits < larger).sum() <= rank, larger, found)

    found = lax.fori_loop(0, 8 * integer.itemsize - 1, set_bit, jnp.zeros((), integer))
    return lax.bitcast_convert_type(found, values.dtype)


def _probabilities(logits: Array, columns: Array, block_rows: Array, block_labels: Array) -> tuple[Array, Array, Array]:
    """Of a block: probabilities (B, rows, W, K), which of them are the label's, and which pixels (..., 1) count."""
    p = jax.nn.softmax(_resize(logits, block_rows, columns))
    return p, block_labels[..., None] == jnp.arange(p.shape[-1]), (block_labels != IGNORED)[..., None]


def _resize(logits: Array, block_rows: Array, columns: Array) -> Array:
    """Logits (B, h, w, K) at a block of output rows, (B, rows, W, K)."""
    return _product("cw,brwk->brck", columns, _product("rh,bhwk->brwk", block_rows, logits))


def _transposed_resize(x_grad: Array, block_rows: Array, columns: Array) -> Array:
    """The gradient of the logits from that of `_resize`."""
    return _product("rh,brwk->bhwk", block_rows, _product("cw,brck->brwk", columns, x_grad))


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
    outputs: Mapping[str, Float[Array, "b _ _ k"]],
    labels: Integer[Array, "b h w"],
    *,
    class_weights: Sequence[float] = (),
    label_smoothing: float = 0.0,
    ohem_threshold: float = 0.0,
    ohem_min_kept: int = 0,
    dice_weight: float = 0.0,
) -> dict[str, Float[Array, ""]]:
    """Weighted losses of a training forward pass, each the mean over the pixels that are not ignored.

    outputs: the mapping that ISNet returns with train=True. Returns "auxiliary", "stage1", "stage2" and "total"; 0
    where every pixel is ignored. The options, as in config.loss, apply to each of the three: class weights (K) and
    label smoothing as in `resized_cross_entropy`, above 0 `ohem_threshold` as in `hard_labels`, whose pixels alone
    count in the cross entropy, and `dice_weight` times the `resized_dice_loss` is added.
    """
    logits = {
        "auxiliary": outputs["auxiliary_logits"],
        "stage1": outputs["stage1_logits"],
        "stage2": outputs["logits"],
    }
    least = min((weight for weight in class_weights if weight > 0), default=1)  # that a pixel which counts adds
    losses = {}
    for name, weight in WEIGHTS.items():
        counted = hard_labels(logits[name], labels, ohem_threshold, ohem_min_kept) if ohem_threshold else labels
        total, count = resized_cross_entropy(logits[name], counted, class_weights, label_smoothing)
        losses[name] = weight * total / jnp.maximum(count, least)
        if dice_weight:
            losses[name] += weight * dice_weight * resized_dice_loss(logits[name], labels)
    losses["total"] = losses["auxiliary"] + losses["stage1"] + losses["stage2"]
    return losses
