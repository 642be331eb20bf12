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
from isnet_jax.layers import apply_mask, resize, valid_mask


def predict(model, variables, images, output_shape, *, valid_size=None, output_size=None, mode="whole",
            crop_size=None, stride=None, scales=(1.0,), flip=False, flip_pairs=(), average="softmax",
            window_batch=None):
    """Scores of every class at the output's resolution; their argmax is the prediction.

    images (B, H, W, 3), normalised -> (B, *output_shape, K), float32 or wider.

    With `valid_size` and `output_size` (B, 2), each image is the (h, w) at the top left of its canvas, and its
    scores are the first `output_size` of the output: images of mixed sizes share one program, and what lies
    outside them changes nothing. `mode="slide"` moves a window of `crop_size` by `stride`, both (height, width),
    and needs images without canvas; at most `window_batch` windows go through the network at once (None: all of
    a scale). `flip` adds the mirrored image, whose classes are swapped by `flip_pairs` (LIP: left and right);
    `average` says whether softmax or logits are averaged. Raises UserError for arguments that do not fit together.
    """
    if mode not in ("whole", "slide") or average not in ("softmax", "logits"):
        raise UserError(f"mode is {mode!r} and average {average!r}; choose 'whole' or 'slide', 'softmax' or 'logits'.")
    if mode == "slide" and (crop_size is None or stride is None or valid_size is not None):
        raise UserError("mode 'slide' needs crop_size and stride, and images of one size (no valid_size).")

    def network(x, size=None):
        """x (B, h, w, 3) -> scores at stride 8 (4 with the shortcut) or, of windows, at their own resolution."""
        logits = model.apply(variables, x, valid_size=size)["logits"]
        if mode == "slide":
            logits = resize(logits, x.shape[1:3])
        return jax.nn.softmax(logits) if average == "softmax" else logits

    total = 0
    for scale in scales:
        x, size = rescale(images, scale, valid_size)
        map_size = None if size is None else -(-size // model.output_stride)
        if flip:  # the mirrored image goes next to the image, so that a batch sharded over devices stays in place
            x = jnp.stack([x, mirror(x, size)], axis=1).reshape(-1, *x.shape[1:])
            size = None if size is None else size.repeat(2, axis=0)
        if mode == "slide":
            maps = sliding_window(network, x, crop_size, stride, window_batch)
        else:
            maps = network(x, size)
        if flip:
            maps = maps.reshape(-1, 2, *maps.shape[1:])
            mirrored = mirror(maps[:, 1], map_size)[..., swapped_classes(maps.shape[-1], flip_pairs)]
            maps = (maps[:, 0] + mirrored) / 2
        total = total + resize(maps, output_shape, map_size, output_size)
    return total / len(scales)


def rescale(images, scale, valid_size=None):
    """images (B, H, W, C) resized by `scale`, a constant, and their sizes (B, 2) then (None: no canvas).

    Sizes round down; positions follow `scale` itself, not the ratio of the sizes (PyTorch's
    `interpolate(scale_factor=scale)`).
    """
    if scale == 1:
        return images, valid_size
    scaled = [np.floor(np.arange(n + 1) * float(scale)).astype(np.int32) for n in images.shape[1:3]]  # n -> floor(n s)
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


def sliding_window(network, images, crop_size, stride, window_batch=None):
    """Mean over the windows that cover each pixel of `network`: (N, h, w, C) -> (N, h, w, K).

    images (B, H, W, C) -> (B, H, W, K). Windows are cut at the border of images smaller than `crop_size`.
    """
    (b, height, width, channels), (h, w) = images.shape, np.minimum(crop_size, images.shape[1:3])
    starts = [(y, x) for y in window_starts(height, crop_size[0], stride[0])
              for x in window_starts(width, crop_size[1], stride[1])]
    crops = jnp.stack([images[:, y:y + h, x:x + w] for y, x in starts])  # (windows, B, h, w, C)
    crops = crops.reshape(-1, h, w, channels)
    if window_batch is None or len(crops) <= window_batch:
        maps = network(crops)
    else:
        maps = jax.lax.map(lambda crop: network(crop[None])[0], crops, batch_size=window_batch)
    maps = maps.reshape(len(starts), b, h, w, -1)
    total, count = jnp.zeros((b, height, width, maps.shape[-1]), maps.dtype), np.zeros((height, width, 1))
    for (y, x), scores in zip(starts, maps):
        total = total.at[:, y:y + h, x:x + w].add(scores)
        count[y:y + h, x:x + w] += 1
    return total / count.astype(maps.dtype)
