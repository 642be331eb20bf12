"""What both sides of benchmarks.compare_torch compute on, and how they measure it."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.workload import random_batch

STEPS = 3  # timed in each process, after one that is not
LEARNING_RATE = 1e-4  # weights are random: at the recipe's rate the second loss would differ by rounding alone


def load_batch(spec: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (B, H, W, 3) and labels (B, H, W) of the comparison."""
    return random_batch(tuple(spec["size"]), spec["batch"], spec["classes"])


def best_rate(product: Callable[[], Any], side: int) -> float:
    """FLOP/s of the fastest of eight products of two square matrices; `product` waits for its result."""
    product()
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def logits_sample(logits: np.ndarray) -> list[float]:
    """A thousand of the logits (B, h, w, K)."""
    flat = logits.astype(np.float32).ravel()
    return flat[:: max(1, flat.size // 1000)].tolist()
