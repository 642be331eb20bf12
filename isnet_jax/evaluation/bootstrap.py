"""Bootstrap confidence intervals: how much a score depends on which images were evaluated."""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

REPEATS, SEED, LEVEL = 1000, 0, 95
BLOCK = 100  # resamples drawn at once
MIN_IMAGES, MIN_CLASS_IMAGES = 20, 5  # with fewer, an interval is likely to miss the score of other images


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


def cautions(ground_truth: ArrayLike, names: Sequence[str]) -> list[str]:
    """Sentences on intervals that rest on too few images, from the ground-truth pixels (N, K) of K classes `names`."""
    occurs = np.asarray(ground_truth) > 0
    num_images, class_images = int(occurs.any(1).sum()), occurs.sum(0).tolist()
    rare = [k for k in np.argsort(class_images, kind="stable") if 0 < class_images[k] < MIN_CLASS_IMAGES]
    found = []
    if num_images < MIN_IMAGES:
        found.append(
            f"caution: {num_images} labelled image{'s' * (num_images != 1)}; bootstrap intervals from fewer than "
            f"{MIN_IMAGES} tend to be too narrow"
        )
    if rare and num_images >= MIN_CLASS_IMAGES:
        examples = ", ".join(f"{names[k]} in {class_images[k]}" for k in rare[:3])
        found.append(
            f"caution: {len(rare)} class{'es' * (len(rare) != 1)} in fewer than {MIN_CLASS_IMAGES} images "
            f"({examples}{', ...' * (len(rare) > 3)}), whose intervals tend to be too narrow"
        )
    return found
