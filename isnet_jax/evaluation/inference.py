"""Test-time inference as in the official ISNet: whole images or sliding windows, several scales, horizontal flips.

The network's score maps (softmax or logits) are flipped back, resized once to the output's resolution and averaged.
Resizing is linear, so the two maps of a scale are averaged before it. All functions are pure and can be jitted, with
every keyword argument except the sizes static.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Shaped, UInt8

from isnet_jax.errors import UserError
from isnet_jax.labels import IGNORED, flipped_classes
from isnet_jax.models.isnet import ISNet
from isnet_jax.models.layers import Sizes, apply_mask, interpolation_matrix, precision, resize, valid_mask
from isnet_jax.models.losses import cross_entropy

BLOCK_ROWS = 64  # rows of the output resized at once

ScoreMap = tuple[Float[Array, "b _ _ k"], Sizes | None]  # scores, and the valid (h, w) of each
Starts = tuple[Sizes, Sizes]  # (row, column) where a region begins in the output, and in the score maps


def predict(
    model: ISNet,
    variables: Mapping[str, Any],
    images: Float[Array | np.ndarray, "b h w 3"],
    output_shape: Sequence[int],
    *,
    valid_size: Sizes | None = None,
    output_size: Sizes | None = None,
    **settings: Any,
) -> Float[Array, "b {output_shape[0]} {output_shape[1]} k"]:
    """Scores of every class at the output's resolution, float32 or wider; their argmax is the prediction.

    Images are normalised. With `valid_size` and `output_size`, each image is the (h, w) at the top left of its padded
    input, and its scores are the first `output_size` of the output. `settings` and errors as in `score_maps`.
    """
    maps = score_maps(model, variables, images, valid_size=valid_size, **settings)
    resized = [resize(scores, output_shape, size, output_size) for scores, size in maps]
    return jnp.asarray(sum(resized)) / len(maps)


def predict_classes(
    maps: Sequence[ScoreMap],
    output_shape: Sequence[int],
    output_size: Sizes | None = None,
    starts: Starts | None = None,
) -> UInt8[Array, "b {output_shape[0]} {output_shape[1]}"]:
    """The argmax of the scores that `predict` computes from the same maps; unspecified outside `output_size`.

    Scores at the output's resolution exist for one block of rows at a time. With `starts`, only a region of the output
    is computed, from a region of the maps; the sizes are still those of the whole.
    """
    blocks = _map_blocks(lambda scores: scores.argmax(-1).astype(jnp.uint8), maps, output_shape, output_size, starts)
    return _join_blocks(blocks, output_shape[0])


def predict_probabilities(
    maps: Sequence[ScoreMap],
    output_shape: Sequence[int],
    output_size: Sizes | None = None,
    average: str = "softmax",
    top: int | None = None,
    starts: Starts | None = None,
) -> Any:
    """Probabilities (B, H, W, K) whose argmax is that of `predict_classes`, float32 or wider.

    `average` is that of the maps. With `top`, only the largest are computed: their classes, uint8 (B, H, W, top), and
    the probabilities themselves, in falling order. Unspecified outside `output_size`. `starts` as there.
    """

    def of_block(scores):
        mean = scores / len(maps)
        probabilities = jax.nn.softmax(mean) if average == "logits" else mean
        if top is None:
            return probabilities
        values, classes = jax.lax.top_k(probabilities, top)
        return classes.astype(jnp.uint8), values

    blocks = _map_blocks(of_block, maps, output_shape, output_size, starts)
    return jax.tree.map(lambda x: _join_blocks(x, output_shape[0]), blocks)


def predict_classes_and_loss(
    maps: Sequence[ScoreMap], labels: Integer[Array | np.ndarray, "b h w"], output_size: Sizes | None = None
) -> tuple[UInt8[Array, "b h w"], Float[Array, ""]]:
    """What `predict_classes` returns at the labels' size, and the cross entropy of the logits that it takes apart.

    Scores must be logits. The cross entropy is the sum over the pixels that are not ignored.
    """
    extra = -labels.shape[1] % BLOCK_ROWS
    padded = jnp.pad(labels, ((0, 0), (0, extra), (0, 0)), constant_values=IGNORED)
    label_blocks = padded.reshape(len(labels), -1, BLOCK_ROWS, labels.shape[2]).swapaxes(0, 1)

    def classes_and_loss(scores, block_labels):
        classes = scores.argmax(-1).astype(jnp.uint8)
        loss, _ = cross_entropy(scores / len(maps), block_labels)  # XLA drops the gradient
        # Sums of each image: a sum over the batch would wait for all devices, block by block.
        return classes, loss.sum((1, 2))

    blocks, losses = _map_blocks(classes_and_loss, maps, labels.shape[1:], output_size, None, label_blocks)
    return _join_blocks(blocks, labels.shape[1]), losses.sum()


def _map_blocks(
    function: Callable[..., Any],
    maps: Sequence[ScoreMap],
    output_shape: Sequence[int],
    output_size: Sizes | None,
    starts: Starts | None,
    *more: Array,
) -> Any:
    """The results of `function` for each block of rows: of the maps' sum there (B, BLOCK_ROWS, W, K), and of `more`."""
    height, width = output_shape
    num_blocks = -(-height // BLOCK_ROWS)
    output_size = jnp.asarray(output_shape) if output_size is None else output_size
    weights = []
    for scores, size in maps:
        size = jnp.asarray(scores.shape[1:3]) if size is None else size

        def matrix(axis, n, scores=scores, size=size):  # (B, n, length of the map)
            start = {} if starts is None else {"out_start": starts[0][..., axis], "in_start": starts[1][..., axis]}
            length, sizes = scores.shape[1 + axis], (output_size[..., axis], size[..., axis])
            one = interpolation_matrix(n, length, *sizes, scores.dtype, **start)
            return jnp.broadcast_to(one, (scores.shape[0], n, length))

        rows, columns = matrix(0, num_blocks * BLOCK_ROWS), matrix(1, width)
        rows = rows.reshape(rows.shape[0], num_blocks, BLOCK_ROWS, -1).swapaxes(0, 1)
        weights.append((rows, columns))

    def of_block(block):
        block_rows, more = block
        total = 0
        for rows, (_, columns), (scores, _) in zip(block_rows, weights, maps):
            x = jnp.einsum("brh,bhwk->brwk", rows, scores, precision=precision(scores.dtype))
            total = total + jnp.einsum("bcw,brwk->brck", columns, x, precision=precision(scores.dtype))
        return function(total, *more)

    return jax.lax.map(of_block, ([rows for rows, _ in weights], more))


def _join_blocks(blocks: Array, height: int) -> Array:
    """(blocks, B, BLOCK_ROWS, W, ...) -> (B, height, W, ...)."""
    return blocks.swapaxes(0, 1).reshape(blocks.shape[1], -1, *blocks.shape[3:])[:, :height]


def score_maps(
    model: ISNet,
    variables: Mapping[str, Any],
    images: Float[Array | np.ndarray, "b h w 3"],
    *,
    valid_size: Sizes | None = None,
    mode: str = "whole",
    crop_size: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    scales: Sequence[float | int] = (1.0,),
    flip: bool = False,
    flip_pairs: Sequence[Sequence[int]] = (),
    average: str = "softmax",
) -> list[ScoreMap]:
    """Scores (B, h, w, K) for each scale and, with `valid_size`, the valid (h, w) of each image in them.

    Images are normalised. With `valid_size`, each image is the (h, w) at the top left of its padded input: images of
    mixed sizes share one compilation, and the padding never changes their scores. `mode="slide"` moves a window of
    `crop_size` by `stride`, both (height, width). `flip` averages in the horizontally flipped image, whose classes are
    swapped by `flip_pairs` (LIP: left and right). `average` selects whether softmax or logits are averaged. Raises
    UserError for arguments that do not fit together.
    """
    _check_settings(mode, crop_size, stride, average)
    window = crop_size or (), stride or ()

    def network(x, size=None):
        """x (B, h, w, 3) -> scores at stride 8 (4 with the shortcut) or, for windows, at their own resolution."""
        logits = model.apply(variables, x, valid_size=size)["logits"]
        if mode == "slide":
            logits = resize(logits, x.shape[1:3], None if size is None else -(-size // model.output_stride), size)
        return jax.nn.softmax(logits) if average == "softmax" else logits

    result = []
    for scale in scales:
        x, size = rescale(images, scale, valid_size)
        map_size = size if size is None or mode == "slide" else -(-size // model.output_stride)
        if flip:  # each flipped image follows its image, so that a batch sharded over devices stays in place
            x = jnp.stack([x, flip_horizontally(x, size)], axis=1).reshape(-1, *x.shape[1:])
            size = None if size is None else size.repeat(2, axis=0)
        maps = network(x, size) if mode == "whole" else sliding_window(network, x, *window, size)
        if flip:
            maps = maps.reshape(-1, 2, *maps.shape[1:])
            flipped_back = flip_horizontally(maps[:, 1], map_size)[..., flipped_classes(maps.shape[-1], flip_pairs)]
            maps = (maps[:, 0] + flipped_back) / 2
        result.append((maps, map_size))
    return result


def _check_settings(mode: str, crop_size: Sequence[int] | None, stride: Sequence[int] | None, average: str) -> None:
    if mode not in ("whole", "slide") or average not in ("softmax", "logits"):
        raise UserError(f"mode is {mode!r} and average {average!r}; choose 'whole' or 'slide', 'softmax' or 'logits'.")
    if mode == "slide" and not (crop_size and stride and all(0 < s <= c for s, c in zip(stride, crop_size))):
        raise UserError("mode 'slide' needs crop_size and a stride that is no larger: windows must meet.")


def rescale(
    images: Float[Array | np.ndarray, "b h w c"], scale: float | int, valid_size: Sizes | None = None
) -> tuple[Float[Array | np.ndarray, "b h2 w2 c"], Sizes | None]:
    """Images resized by `scale`, which is static, and their new valid sizes; None if `valid_size` is.

    Sizes are rounded down, but never below 1. Positions follow `scale` itself, not the ratio of the sizes (as in
    PyTorch's `interpolate(scale_factor=scale)`).
    """
    if scale == 1:
        return images, valid_size
    scale = float(scale)
    scaled = [
        np.maximum(np.floor(np.arange(n + 1) * scale), 1).astype(np.int32)  # n -> floor(n s)
        for n in images.shape[1:3]
    ]
    shape = [int(lengths[-1]) for lengths in scaled]
    if valid_size is None:
        return resize(images, shape, scale=scale), None
    images = apply_mask(images, valid_mask(valid_size, *images.shape[1:3]))
    size = jnp.stack([jnp.asarray(lengths)[valid_size[:, axis]] for axis, lengths in enumerate(scaled)], axis=1)
    return resize(images, shape, valid_size, size, scale), size


def flip_horizontally(
    x: Shaped[Array | np.ndarray, "b h w c"], size: Sizes | None = None
) -> Shaped[Array | np.ndarray, "b h w c"]:
    """x with left and right exchanged, within the first w columns of each image if `size` = (h, w) is given."""
    if size is None:
        return x[:, :, ::-1]
    columns = jnp.arange(x.shape[2])
    columns = jnp.where(columns < size[:, 1:], size[:, 1:] - 1 - columns, columns)  # (B, W)
    return jnp.take_along_axis(x, columns[:, None, :, None], axis=2)


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Starts of the windows along one axis: every `stride` pixels, the last one shifted back inside the image."""
    count = max(math.ceil((length - crop) / stride), 0) + 1
    return [max(min(i * stride, length - crop), 0) for i in range(count)]


def sliding_window(
    network: Callable[..., Array],
    images: Float[Array | np.ndarray, "b h w c"],
    crop_size: Sequence[int],
    stride: Sequence[int],
    size: Sizes | None = None,
) -> Float[Array, "b h w k"]:
    """Mean at each pixel of the scores from all windows that cover it.

    network: (B, h, w, C) and the valid sizes -> (B, h, w, K). Windows are visited one after the other, each for the
    whole batch, so memory does not grow with their number. They are cropped at the border of images smaller than
    `crop_size`. With `size`, each image is the (h, w) at the top left of its padded input, and windows beyond the ones
    that it needs add nothing. Without, `network` is called with None for the sizes.
    """
    b, channels = images.shape[0], images.shape[3]
    h, w = shape = np.minimum(crop_size, images.shape[1:3])
    full = jnp.broadcast_to(jnp.array(images.shape[1:3]), (b, 2)) if size is None else size
    window_size = None if size is None else jnp.minimum(size, shape)  # (B, 2)
    inside = valid_mask(jnp.minimum(full, shape), int(h), int(w))
    rows, columns, used = _windows(full, images.shape[1:3], crop_size, stride)

    def add(total, update, y, x):
        start = (y, x, 0)
        return jax.lax.dynamic_update_slice(total, jax.lax.dynamic_slice(total, start, update.shape) + update, start)

    def visit(carry, window):
        total, count = carry
        y, x, use = window  # (B,)
        crops = jax.vmap(lambda image, y, x: jax.lax.dynamic_slice(image, (y, x, 0), (h, w, channels)))(images, y, x)
        weight = (inside & use[:, None, None, None]).astype(total.dtype)
        scores = jnp.where(weight > 0, network(crops, window_size), 0)
        return (jax.vmap(add)(total, scores, y, x), jax.vmap(add)(count, weight, y, x)), None

    scores = jax.eval_shape(network, jax.ShapeDtypeStruct((b, h, w, channels), images.dtype), window_size)
    total = jnp.zeros((*images.shape[:3], scores.shape[-1]), scores.dtype)
    total, count = jax.lax.scan(visit, (total, jnp.zeros_like(total[..., :1])), (rows, columns, used))[0]
    return total / jnp.maximum(count, 1)


def _windows(
    size: Sizes, shape: Sequence[int], crop_size: Sequence[int], stride: Sequence[int]
) -> tuple[Array, Array, Array]:
    """Top rows and left columns of all windows over a padded `shape`, and whether each image needs them: (windows, B).

    The last windows that an image of `size` needs are shifted back inside it.
    """
    starts, used = [], []
    for axis in (0, 1):
        index = jnp.arange(len(window_starts(shape[axis], crop_size[axis], stride[axis])))[:, None]
        last = size[:, axis] - crop_size[axis]  # (B,): start of the last window
        starts.append(jnp.clip(index * stride[axis], 0, jnp.maximum(last, 0)))
        used.append((index == 0) | ((index - 1) * stride[axis] < last))
    rows, columns = jnp.broadcast_arrays(starts[0][:, None], starts[1][None])
    is_used = used[0][:, None] & used[1][None]
    rows, columns, is_used = (grid.reshape(-1, len(size)) for grid in (rows, columns, is_used))
    return rows, columns, is_used
