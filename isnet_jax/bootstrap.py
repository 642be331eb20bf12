"""How far a score moves with the choice of images: bootstrap intervals over the images of an evaluation."""

import warnings

import numpy as np

REPEATS, SEED, LEVEL = 1000, 0, 95
BLOCK = 100  # resamples drawn at once


def resample(counts, repeats=REPEATS, seed=SEED):
    """Sums of counts (N, ...) over N images drawn with replacement, `repeats` times -> (repeats, ...), float64.

    The draws depend on N and `seed` alone: two evaluations of the same images are resampled alike, in pairs. Counts of
    pixels below 2^53 are exact.
    """
    n, rng = len(counts), np.random.default_rng(seed)
    flat = np.asarray(counts, np.float64).reshape(n, -1)
    sums = []
    for start in range(0, repeats, BLOCK):
        draws = rng.integers(n, size=(min(BLOCK, repeats - start), n))
        times = np.array([np.bincount(row, minlength=n) for row in draws], np.float64)  # how often each image is drawn
        sums.append(times @ flat)
    return np.concatenate(sums).reshape(repeats, *np.shape(counts)[1:])


def interval(values):
    """Percentile interval (2, ...), low and high, of resampled scores (repeats, ...); NaN are left out."""
    edge = (100 - LEVEL) / 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all NaN: a class that occurs nowhere
        return np.nanpercentile(values, [edge, 100 - edge], axis=0)
