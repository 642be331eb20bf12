"""What both sides of benchmarks.compare_torch compute on, and how they measure it."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.workload import random_batch

STEPS = 3  # timed in each process, after one that is not


def load_batch(spec: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (B, H, W, 3) and labels (B, H, W) of the comparison."""
    return random_batch(tuple(spec["size"]), spec["batch"], spec["classes"])


def best_rate(call: Callable[[], Any], flops: float) -> float:
    """FLOP/s of the fastest of eight calls, after a first one; `call` waits for its result."""
    call()
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return flops / min(seconds)


def logits_sample(logits: np.ndarray) -> list[float]:
    """A thousand of the logits (B, h, w, K)."""
    flat = logits.astype(np.float32).ravel()
    return flat[:: max(1, flat.size // 1000)].tolist()
