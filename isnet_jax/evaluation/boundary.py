"""Pixels near the outlines of segments, for Boundary IoU (Cheng et al., CVPR 2021), on the device.

The convention is that of `mask_to_boundary` in the authors' code, bowenc0221/boundary-iou-api, for the mask of each
class: what 3 x 3 erosions remove, where everything beyond the image counts as another class. Ignored pixels, which that
code does not know, are nobody's neighbours: no outline is drawn against them, neither in the ground truth nor in the
prediction. A prediction that is right on all labelled pixels scores 1.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int32, Integer, Shaped

from isnet_jax.evaluation.metrics import pixel_counts
from isnet_jax.labels import IGNORED
from isnet_jax.models.layers import Sizes, valid_mask

CONVENTION = "ignored pixels are nobody's neighbours"  # as results.json records it
REACHES_PER_DIAGONAL = 50  # the band is 2 % of the image's diagonal wide
OUTSIDE = -1  # takes the place of a class beyond the image


def boundary_counts(
    predictions: Integer[Array | np.ndarray, "b h w"],
    labels: Integer[Array | np.ndarray, "b h w"],
    size: Sizes,
    num_classes: int,
) -> Int32[Array, "b 3 {num_classes}"]:
    """The hit, predicted and ground-truth pixels of each image and class, each within its own boundary band.

    Pixels labelled 255 are not counted. Each image is the (h, w) of `size` at the top left of its padded shape.
    """
    reach, labelled = reach_in(labels.shape[1:]), labels != IGNORED
    predictions = jnp.where(labelled, predictions, IGNORED)
    near_predicted, near_true = (boundary_band(x, size, reach) for x in (predictions, labels))
    masks = (
        (near_predicted & near_true & (predictions == labels), labels),
        (near_predicted, predictions),
        (near_true, labels),
    )
    counts = [pixel_counts(jnp.where(mask, classes, IGNORED), num_classes) for mask, classes in masks]
    return jnp.stack(counts, axis=1)


def boundary_band(classes: Integer[Array | np.ndarray, "b h w"], size: Sizes, max_reach: int) -> Bool[Array, "b h w"]:
    """True for pixels within reach of another class or of the image's border, and for no pixel of value 255.

    Each image is the (h, w) of `size` at the top left of its padded shape. The reach is 2 % of the image's diagonal, at
    least 1 pixel and at most `max_reach`, in rows and columns alike. It passes over pixels of value 255.
    """
    labelled = classes != IGNORED
    valid, classes = valid_mask(size, *classes.shape[1:])[..., 0], classes.astype(jnp.int16)
    low = jnp.where(valid, classes, OUTSIDE)  # 255 is above every class and never the minimum
    high = jnp.where(valid & labelled, classes, OUTSIDE)  # which is below every class and never the maximum
    reach = reaches(size, max_reach)[:, None, None]

    def dilate(i, extremes):
        low, high = extremes
        dilated = _extreme_3x3(jnp.minimum, low), _extreme_3x3(jnp.maximum, high)
        return tuple(jnp.where(i < reach, new, old) for new, old in zip(dilated, extremes))

    low, high = lax.fori_loop(0, max_reach, dilate, (low, high))
    return labelled & (low != high)


def reach_in(shape: tuple[int, ...]) -> int:
    """`max_reach` of `boundary_band` for images of the padded shape (H, W)."""
    return max(1, round((shape[0] ** 2 + shape[1] ** 2) ** 0.5 / REACHES_PER_DIAGONAL))


def reaches(size: Sizes, max_reach: int) -> Shaped[Array, "b"]:
    """2 % of each diagonal, rounded, halves to even, in integers: float32 is off by one for some large images."""
    squares = (size.astype(jnp.uint32) ** 2).sum(1, dtype=jnp.uint32)  # below 2^32 for all sides up to limits.MAX_SIDE
    reach = np.arange(max_reach)
    squares_to_exceed = (REACHES_PER_DIAGONAL * (2 * reach + 1) // 2) ** 2 - reach % 2
    exceeds = squares[:, None] > np.minimum(squares_to_exceed, 2**32 - 1).astype(np.uint32)
    return jnp.maximum(exceeds.sum(1), 1)


def _extreme_3x3(extreme: Callable, x: Array) -> Array:
    """`extreme`, jnp.minimum or jnp.maximum, over 3 x 3 windows of x (B, H, W)."""
    for axis in (1, 2):
        padding = [(0, 0)] * 3
        padding[axis] = (1, 1)
        padded, n = jnp.pad(x, padding, constant_values=OUTSIDE), x.shape[axis]
        before, after = (lax.slice_in_dim(padded, start, start + n, axis=axis) for start in (0, 2))
        x = extreme(x, extreme(before, after))
    return x
