"""A few padded shapes for images of many sizes: one compilation each, with as little padding as that allows.

Every image is padded to the shape of its bucket. Masks make the padding exactly invisible, but it is computed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MAX_DISTINCT_SIZES = 700  # more are rounded up before they merge


class Buckets(NamedTuple):
    """Shape buckets, the cheapest first, and the bucket of each example."""

    sizes: np.ndarray  # int (N, D)
    which: np.ndarray  # int (examples,), indices into `sizes`


def choose_buckets(
    sizes: np.ndarray, max_buckets: int, weights: Sequence[float] = (1.0,), bucket_cost: float = 0.0
) -> Buckets:
    """At most `max_buckets` shape buckets, chosen so that the examples cost little.

    sizes: int (examples, D), the D / 2 pairs of (height, width) that an example has, each padded to its own shape.
    weights (D / 2,): the cost of a pixel of each; bucket_cost: that of having a bucket, in the same unit. Every example
    takes the cheapest bucket that it fits, and every bucket is as small as its examples allow.
    """
    exact, step = np.asarray(sizes), 1
    rounded = exact
    while len(np.unique(rounded, axis=0)) > MAX_DISTINCT_SIZES:
        step *= 2
        rounded = -(-exact // step) * step
    distinct, inverse, counts = np.unique(rounded, axis=0, return_inverse=True, return_counts=True)
    which = _assign(distinct, _merge(distinct, counts, max_buckets, weights, bucket_cost), weights)[inverse.reshape(-1)]
    buckets = np.stack([exact[which == i].max(0) for i in range(which.max() + 1)])
    order = np.argsort(cost(buckets, weights), kind="stable")
    return Buckets(buckets[order], np.argsort(order)[which])


def _merge(
    distinct: np.ndarray, counts: np.ndarray, max_buckets: int, weights: Sequence[float], bucket_cost: float
) -> np.ndarray:
    """Buckets (n, D) from the distinct sizes (N, D), by merging the two that add the least cost.

    It ends when few buckets remain, and merging two costs more than a bucket. counts (N,): the number of examples of
    each size.
    """

    def merge_costs(a, b, count_a, count_b):
        apart = count_a * cost(a, weights) + count_b * cost(b, weights)
        return (count_a + count_b) * cost(np.maximum(a, b), weights) - apart

    buckets, counts = distinct.copy(), counts.astype(float)
    added = merge_costs(buckets[:, None], buckets, counts[:, None], counts)  # (n, n)
    np.fill_diagonal(added, np.inf)
    while len(buckets) > max_buckets or (len(buckets) > 1 and added.min() < bucket_cost):
        a, b = sorted(np.unravel_index(added.argmin(), added.shape))
        buckets[a], counts[a] = np.maximum(buckets[a], buckets[b]), counts[a] + counts[b]
        buckets, counts = np.delete(buckets, b, 0), np.delete(counts, b)
        added = np.delete(np.delete(added, b, 0), b, 1)
        added[a] = added[:, a] = merge_costs(buckets[a], buckets, counts[a], counts)
        added[a, a] = np.inf
    return buckets


def _assign(distinct: np.ndarray, buckets: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """The bucket (N,) of each distinct size (N, D): the cheapest that it fits, once the buckets (n, D) have shrunk.

    A bucket shrinks to the sizes assigned to it, and the sizes are assigned again, until nothing changes.
    """
    while True:
        fits = (distinct[:, None] <= buckets).all(-1)  # (N, n)
        which = np.where(fits, cost(buckets, weights), np.inf).argmin(1)
        shrunk = np.stack([distinct[which == i].max(0) for i in np.unique(which)])
        if np.array_equal(shrunk, buckets):
            return which
        buckets = shrunk


def cost(sizes: np.ndarray, weights: Sequence[float] = (1.0,)) -> np.ndarray | np.float64:
    """Cost (...,) of sizes (..., D): the pixels of each (height, width), weighted."""
    areas = [np.prod(sizes[..., 2 * i : 2 * i + 2].astype(float), axis=-1) for i in range(len(weights))]
    return sum(weight * area for weight, area in zip(weights, areas))
