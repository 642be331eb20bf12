"""What benchmarks.accelerator has both frameworks compute, and how it times them."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks.recipes import load_config
from benchmarks.reference import weights
from isnet_jax.runtime import compiler

LEARNING_RATE = 1e-4  # weights are random, not pretrained: at the recipe's rate they might overflow while being timed


def load_recipe(name: str, training: bool, quick: bool) -> tuple[ConfigDict, tuple[int, int], int]:
    """The config of recipe `name` in bfloat16, (height, width) of a training or test image, and the batch size."""
    config = load_config(name)
    config.model.dtype = "bfloat16"
    config.train.base_lr = config.train.min_lr = LEARNING_RATE
    if quick:
        return config, (64, 64), 2
    if training:
        return config, tuple(config.augment.crop_size), config.train.global_batch_size
    long, short = config.test.resize or (2048, 1024)  # Cityscapes is not resized
    is_photograph = len(config.test.resize) and config.test.keep_ratio  # 4:3
    return config, (short, round(short * 4 / 3) if is_photograph else long), config.test.batch_size


def random_batch(shape: tuple[int, int], batch_size: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (B, H, W, 3) and labels (B, H, W), 5 % of them ignored."""
    images = np.random.default_rng(0).integers(0, 256, (batch_size, *shape, 3), np.uint8)
    return images, weights.labels(*shape, num_classes, batch=batch_size).astype(np.uint8)


def compare_logits(computed: np.ndarray, recorded: np.ndarray) -> dict[str, float]:
    """Errors of logits (B, H, W, K) relative to the standard deviation of the recorded ones."""
    error = (computed.astype(np.float64) - recorded) / recorded.std()
    return {
        "max_error": float(np.abs(error).max()),
        "rms_error": float(np.sqrt((error**2).mean())),
        "argmax_agreement": float((computed.argmax(-1) == recorded.argmax(-1)).mean()),
    }


def cpu_name() -> str:
    """The model of the CPU, as in `AMD EPYC 9B45`."""
    return compiler.cpu_info("model name").rpartition(": ")[2]


def time_calls(call: Callable[[], Any], wait: Callable[[Any], Any]) -> tuple[float, float]:
    """Median seconds of `call()` over five repeats of about 0.4 s, and their range relative to the median.

    `wait(result)` blocks until the device has computed the result.
    """
    wait([call() for _ in range(3)])
    seconds, calls_per_repeat = [], 1
    for _ in range(6):  # the first repeat only sets the number of calls
        start = time.perf_counter()
        for _ in range(calls_per_repeat):
            result = call()
        wait(result)
        seconds.append((time.perf_counter() - start) / calls_per_repeat)
        calls_per_repeat = max(1, min(50, round(0.4 / seconds[0])))
    del seconds[0]
    return statistics.median(seconds), (max(seconds) - min(seconds)) / statistics.median(seconds)


def with_largest_batch(measure: Callable[[int], dict[str, Any]], wanted: int) -> dict[str, Any]:
    """`measure(batch_size)` for the wanted batch size, halved until it fits into memory.

    Adds "images_per_second", "batch" and "wanted_batch" to the result, which must have "seconds".
    """
    batch = wanted
    while True:
        try:
            result = measure(batch)
            return result | {"images_per_second": batch / result["seconds"], "batch": batch, "wanted_batch": wanted}
        except Exception as error:  # JAX and PyTorch raise different types
            if batch == 1 or not any(x in str(error).lower() for x in ("resource_exhausted", "out of memory")):
                raise
        gc.collect()  # outside the except block, which keeps the failed frames alive
        batch //= 2
        print(f"         out of memory; trying batch {batch}", flush=True)
