"""A few canvas sizes for images of many: one compiled program each, and as little padding as that allows.

An image is padded to its canvas. The padding is exactly invisible (masks), but it is computed.
"""

from typing import NamedTuple

import numpy as np

MOST_SIZES = 700  # that are told apart; more are rounded up


class Canvases(NamedTuple):
    """sizes int (N, D), the cheapest first; which int (examples,): the canvas of each example."""

    sizes: np.ndarray
    which: np.ndarray


def choose(sizes, budget, weights=(1,)):
    """At most `budget` canvases on which examples cost least.

    sizes: int (examples, D), the D / 2 pairs of (height, width) of an example, each on a canvas of its own; weights
    (D / 2,): what a pixel of each costs. Canvases begin as the distinct sizes, rounded up if these are very many, and
    merge, always the two that cost least; then every example takes the cheapest that holds it, and canvases shrink to
    what they hold.
    """
    exact, grain = np.asarray(sizes), 1
    while len(np.unique(sizes, axis=0)) > MOST_SIZES:
        grain *= 2
        sizes = -(-exact // grain) * grain
    distinct, inverse, held = np.unique(sizes, axis=0, return_inverse=True, return_counts=True)
    canvases, held = distinct.copy(), held.astype(float)

    def merge_costs(a, b, held_a, held_b):
        apart = held_a * cost(a, weights) + held_b * cost(b, weights)
        return (held_a + held_b) * cost(np.maximum(a, b), weights) - apart

    extra = merge_costs(canvases[:, None], canvases, held[:, None], held)  # (n, n)
    np.fill_diagonal(extra, np.inf)
    while len(canvases) > budget:
        a, b = sorted(np.unravel_index(extra.argmin(), extra.shape))
        canvases[a], held[a] = np.maximum(canvases[a], canvases[b]), held[a] + held[b]
        canvases, held = np.delete(canvases, b, 0), np.delete(held, b)
        extra = np.delete(np.delete(extra, b, 0), b, 1)
        extra[a] = extra[:, a] = merge_costs(canvases[a], canvases, held[a], held)
        extra[a, a] = np.inf
    while True:
        fits = (distinct[:, None] <= canvases).all(-1)  # (distinct sizes, n)
        which = np.where(fits, cost(canvases, weights), np.inf).argmin(1)
        shrunk = np.stack([distinct[which == i].max(0) for i in np.unique(which)])
        if np.array_equal(shrunk, canvases):
            break
        canvases = shrunk
    which = which[inverse.reshape(-1)]
    canvases = np.stack([exact[which == i].max(0) for i in range(len(canvases))])
    order = np.argsort(cost(canvases, weights), kind="stable")
    return Canvases(canvases[order], np.argsort(order)[which])


def cost(sizes, weights=(1,)):
    """Pixels (...,) of sizes (..., D), weighted."""
    return sum(
        weight * np.prod(sizes[..., 2 * i : 2 * i + 2].astype(float), axis=-1) for i, weight in enumerate(weights)
    )


def overhead(canvases, sizes, weights=(1,)):
    """What the examples cost on their canvases more than without any padding, as a share of the latter."""
    return cost(canvases.sizes[canvases.which], weights).sum() / cost(np.asarray(sizes), weights).sum() - 1
