"""Bootstrap confidence intervals: how much a score depends on which images were evaluated."""

import warnings

import numpy as np
from numpy.typing import ArrayLike

REPEATS, SEED, LEVEL = 1000, 0, 95
BLOCK = 100  # resamples drawn at once


def resample(counts: ArrayLike, repeats: int = REPEATS, seed: int = SEED) -> np.ndarray:
    """Sums of counts (N, ...) over N images drawn with replacement: (repeats, ...), float64.

    The draws depend only on N and `seed`, so evaluations of the same images are resampled in pairs. Pixel counts below
    2^53 are exact.
    """
    counts = np.asarray(counts, np.float64)
    n, rng = len(counts), np.random.default_rng(seed)
    flat = counts.reshape(n, -1)
    sums = []
    for start in range(0, repeats, BLOCK):
        draws = rng.integers(n, size=(min(BLOCK, repeats - start), n))
        times_drawn = np.array([np.bincount(row, minlength=n) for row in draws], np.float64)
        sums.append(times_drawn @ flat)
    return np.concatenate(sums).reshape(repeats, *counts.shape[1:])


def interval(values: ArrayLike) -> np.ndarray:
    """Percentile interval (2, ...), low and high, of resampled scores (repeats, ...), ignoring NaN."""
    tail = (100 - LEVEL) / 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all are NaN for a class that occurs nowhere
        return np.nanpercentile(np.asarray(values), [tail, 100 - tail], axis=0)
