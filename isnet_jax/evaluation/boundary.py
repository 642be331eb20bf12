"""Pixels near the outlines of segments, for Boundary IoU (Cheng et al., CVPR 2021), on the device."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Integer

from isnet_jax.models.layers import Sizes, valid_mask

RATIO = 0.02  # width of the band, relative to the image's diagonal
OUTSIDE = -1  # takes the place of a class beyond the image


def boundary_band(classes: Integer[Array | np.ndarray, "b h w"], size: Sizes, max_reach: int) -> Bool[Array, "b h w"]:
    """True for pixels within reach of another class or of the image's border.

    Each image is the (h, w) of `size` at the top left of its padded shape. The reach is 2 % of the image's diagonal, at
    least 1 pixel and at most `max_reach`, in rows and columns alike. These are the pixels that the mask of each class
    loses in that many 3 x 3 erosions, which is how the official evaluator finds them, class by class.
    """
    valid = valid_mask(size, *classes.shape[1:])[..., 0]
    low = high = jnp.where(valid, classes.astype(jnp.int16), OUTSIDE)
    reach = jnp.maximum(jnp.round(RATIO * jnp.sqrt((size.astype(jnp.float32) ** 2).sum(1))), 1)[:, None, None]

    def dilate(i, extremes):
        low, high = extremes
        dilated = _extreme_3x3(jnp.minimum, low), _extreme_3x3(jnp.maximum, high)
        return tuple(jnp.where(i < reach, new, old) for new, old in zip(dilated, extremes))

    low, high = lax.fori_loop(0, max_reach, dilate, (low, high))
    return low != high


def _extreme_3x3(extreme: Callable, x: Array) -> Array:
    """`extreme`, jnp.minimum or jnp.maximum, over 3 x 3 windows of x (B, H, W)."""
    for axis in (1, 2):
        padding = [(0, 0)] * 3
        padding[axis] = (1, 1)
        padded, n = jnp.pad(x, padding, constant_values=OUTSIDE), x.shape[axis]
        before, after = (lax.slice_in_dim(padded, start, start + n, axis=axis) for start in (0, 2))
        x = extreme(x, extreme(before, after))
    return x


def reach_in(shape: tuple[int, ...]) -> int:
    """`max_reach` of `boundary_band` for images of the padded shape (H, W)."""
    return max(1, round(RATIO * (shape[0] ** 2 + shape[1] ** 2) ** 0.5) + 1)
