"""Test-time inference as the official ISNet does it: whole images or sliding windows, scales, mirroring.

The network's score maps (softmax or logits) are mirrored back, resized once to the output and averaged. Resizing is
linear, so the maps of one scale are averaged before it. Everything is a pure function of arrays and may be jitted with
the keyword arguments other than the sizes as constants.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from isnet_jax.errors import UserError
from isnet_jax.layers import apply_mask, interpolation_matrix, precision, resize, valid_mask

BLOCK_ROWS = 64  # rows of the output resized at once


def predict(model, variables, images, output_shape, *, valid_size=None, output_size=None, **settings):
    """Scores of every class at the output's resolution; their argmax is the prediction.

    images (B, H, W, 3), normalised -> (B, *output_shape, K), float32 or wider. With `valid_size` and `output_size`
    (B, 2), each image is the (h, w) at the top left of its canvas, and its scores are the first `output_size` of the
    output. `settings` and errors as in `score_maps`.
    """
    maps = score_maps(model, variables, images, valid_size=valid_size, **settings)
    return sum(resize(scores, output_shape, size, output_size) for scores, size in maps) / len(maps)


def predict_classes(maps, output_shape, output_size=None):
    """The argmax of what `predict` makes of the score maps: uint8 (B, *output_shape), unspecified outside output_size.

    Scores at the output's resolution exist for one block of rows at a time.
    """
    height, width = output_shape
    num_blocks = -(-height // BLOCK_ROWS)
    output_size = jnp.asarray(output_shape) if output_size is None else output_size
    weights = []
    for scores, size in maps:
        size = jnp.asarray(scores.shape[1:3]) if size is None else size
        rows, columns = (
            jnp.broadcast_to(
                interpolation_matrix(n, scores.shape[1 + axis], output_size[..., axis], size[..., axis], scores.dtype),
                (scores.shape[0], n, scores.shape[1 + axis]),
            )  # (B, H, h), (B, W, w)
            for axis, n in enumerate((num_blocks * BLOCK_ROWS, width))
        )
        rows = rows.reshape(rows.shape[0], num_blocks, BLOCK_ROWS, -1).swapaxes(0, 1)
        weights.append((rows, columns))

    def block(block_rows):
        total = 0
        for rows, (_, columns), (scores, _) in zip(block_rows, weights, maps):
            x = jnp.einsum("brh,bhwk->brwk", rows, scores, precision=precision(scores.dtype))
            total = total + jnp.einsum("bcw,brwk->brck", columns, x, precision=precision(scores.dtype))
        return total.argmax(-1).astype(jnp.uint8)

    blocks = jax.lax.map(block, [rows for rows, _ in weights])  # (blocks, B, BLOCK_ROWS, W)
    return blocks.swapaxes(0, 1).reshape(-1, num_blocks * BLOCK_ROWS, width)[:, :height]


def score_maps(
    model,
    variables,
    images,
    *,
    valid_size=None,
    mode="whole",
    crop_size=None,
    stride=None,
    scales=(1.0,),
    flip=False,
    flip_pairs=(),
    average="softmax",
):
    """For each scale, scores (B, h, w, K) and, with `valid_size`, the valid (h, w) (B, 2) of each, else None.

    images (B, H, W, 3), normalised. With `valid_size` (B, 2), each image is the (h, w) at the top left of its canvas:
    images of mixed sizes share one program, and what lies outside them changes nothing. `mode="slide"` moves a
    window of `crop_size` by `stride`, both (height, width). `flip` adds the mirrored image, whose classes are swapped
    by `flip_pairs` (LIP: left and right); `average` says whether softmax or logits are averaged. Raises UserError for
    arguments that do not fit together.
    """
    if mode not in ("whole", "slide") or average not in ("softmax", "logits"):
        raise UserError(f"mode is {mode!r} and average {average!r}; choose 'whole' or 'slide', 'softmax' or 'logits'.")
    if mode == "slide" and not (crop_size and stride and all(0 < s <= c for s, c in zip(stride, crop_size))):
        raise UserError("mode 'slide' needs crop_size and a stride that is no larger: windows must meet.")

    def network(x, size=None):
        """x (B, h, w, 3) -> scores at stride 8 (4 with the shortcut) or, of windows, at their own resolution."""
        logits = model.apply(variables, x, valid_size=size)["logits"]
        if mode == "slide":
            logits = resize(logits, x.shape[1:3], None if size is None else -(-size // model.output_stride), size)
        return jax.nn.softmax(logits) if average == "softmax" else logits

    result = []
    for scale in scales:
        x, size = rescale(images, scale, valid_size)
        map_size = size if size is None or mode == "slide" else -(-size // model.output_stride)
        if flip:  # the mirrored image goes next to the image, so that a batch sharded over devices stays in place
            x = jnp.stack([x, mirror(x, size)], axis=1).reshape(-1, *x.shape[1:])
            size = None if size is None else size.repeat(2, axis=0)
        maps = network(x, size) if mode == "whole" else sliding_window(network, x, crop_size, stride, size)
        if flip:
            maps = maps.reshape(-1, 2, *maps.shape[1:])
            mirrored = mirror(maps[:, 1], map_size)[..., swapped_classes(maps.shape[-1], flip_pairs)]
            maps = (maps[:, 0] + mirrored) / 2
        result.append((maps, map_size))
    return result


def rescale(images, scale, valid_size=None):
    """images (B, H, W, C) resized by `scale`, a constant, and their sizes (B, 2) then (None: no canvas).

    Sizes round down, to 1 at least; positions follow `scale` itself, not the ratio of the sizes (PyTorch's
    `interpolate(scale_factor=scale)`).
    """
    if scale == 1:
        return images, valid_size
    scaled = [
        np.maximum(np.floor(np.arange(n + 1) * float(scale)), 1).astype(np.int32)  # n -> floor(n s)
        for n in images.shape[1:3]
    ]
    shape = [int(lengths[-1]) for lengths in scaled]
    if valid_size is None:
        return resize(images, shape, scale=scale), None
    images = apply_mask(images, valid_mask(valid_size, *images.shape[1:3]))
    size = jnp.stack([jnp.asarray(lengths)[valid_size[:, axis]] for axis, lengths in enumerate(scaled)], axis=1)
    return resize(images, shape, valid_size, size, scale), size


def mirror(x, size=None):
    """x (B, H, W, C) with left and right exchanged, within the first w columns where `size` (B, 2) = (h, w)."""
    if size is None:
        return x[:, :, ::-1]
    columns = jnp.arange(x.shape[2])
    columns = jnp.where(columns < size[:, 1:], size[:, 1:] - 1 - columns, columns)  # (B, W)
    return jnp.take_along_axis(x, columns[:, None, :, None], axis=2)


def swapped_classes(num_classes, pairs):
    """Order of the classes after each of `pairs` has changed places."""
    order = np.arange(num_classes)
    for a, b in pairs:
        order[[a, b]] = b, a
    return order


def window_starts(length, crop, stride):
    """Where windows begin along one axis: every `stride` pixels, the last one shifted back inside."""
    count = max(math.ceil((length - crop) / stride), 0) + 1
    return [max(min(i * stride, length - crop), 0) for i in range(count)]


def sliding_window(network, images, crop_size, stride, size=None):
    """Mean over the windows that cover each pixel of `network`: (B, h, w, C), their valid sizes -> (B, h, w, K).

    images (B, H, W, C) -> (B, H, W, K). Windows are visited one after the other, each for the whole batch, so that
    memory does not grow with their number; they are cut at the border of images smaller than `crop_size`. With `size`
    (B, 2), images are the (h, w) at the top left of a canvas, and one with fewer windows than the canvas has adds
    nothing in the others; without, `network` gets None for the sizes.
    """
    b, channels = images.shape[0], images.shape[3]
    h, w = shape = np.minimum(crop_size, images.shape[1:3])
    full = jnp.broadcast_to(jnp.array(images.shape[1:3]), (b, 2)) if size is None else size
    window_size = None if size is None else jnp.minimum(size, shape)  # (B, 2)
    inside = valid_mask(jnp.minimum(full, shape), h, w)  # (B, h, w, 1)
    starts, used = [], []
    for axis in (0, 1):
        index = jnp.arange(len(window_starts(images.shape[1 + axis], crop_size[axis], stride[axis])))[:, None]
        room = full[:, axis] - crop_size[axis]  # (B,); where the last window begins
        starts.append(jnp.clip(index * stride[axis], 0, jnp.maximum(room, 0)))  # (windows, B)
        used.append((index == 0) | ((index - 1) * stride[axis] < room))
    rows, columns = (grid.reshape(-1, b) for grid in jnp.broadcast_arrays(starts[0][:, None], starts[1][None]))
    used = (used[0][:, None] & used[1][None]).reshape(-1, b)

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
