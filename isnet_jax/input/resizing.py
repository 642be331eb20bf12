"""The resize step, the same in training and testing. It needs no TensorFlow."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np


def use_one_opencv_thread() -> None:
    """Stops OpenCV from using threads of its own in this process, where images are prepared in parallel already."""
    cv2.setNumThreads(1)


def target_size(
    height: int, width: int, resize: Sequence[int], keep_ratio: bool, scale: float = 1.0
) -> tuple[int, int]:
    """Size (h, w) of an image after the resize step, at least 1 x 1.

    `resize` is (long, short), or empty for the original size. Both are multiplied by `scale`.
    """
    if not resize:
        return _round_size(height * scale, width * scale)
    long, short = (int(n * scale) for n in resize)
    if not keep_ratio:  # the image's longer side becomes `long`
        return _round_size(*((long, short) if height > width else (short, long)))
    ratio = min(long / max(height, width), short / min(height, width))
    return _round_size(height * ratio, width * ratio)


def resize_facts(resize: Sequence[int], keep_ratio: bool, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """The resize step of `target_size` in words and numbers, as JSON has them.

    size: the only size (h, w) that the network takes, if there is one.
    """
    if size:
        rule = f"to height {size[0]} and width {size[1]}"
    elif not resize:
        rule = "not at all"
    elif keep_ratio:
        rule = "by min(long / longer side, short / shorter side), with sides rounded to the nearest whole number"
    else:
        rule = "the longer side to `long`, the other to `short`"
    return {
        "rule": rule,
        "interpolation": "bilinear, as cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR) of uint8",
        "size": size,
        "long_short": list(resize) if not size else None,
        "keep_ratio": keep_ratio if not size else None,
    }


def _round_size(height: float, width: float) -> tuple[int, int]:
    return max(1, int(height + 0.5)), max(1, int(width + 0.5))


def resize(array: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """`array`, resized by OpenCV to `size` = (h, w): uint8 (H, W, 3) bilinearly, (H, W) to the nearest pixel."""
    return cv2.resize(array, size[::-1], interpolation=cv2.INTER_LINEAR if array.ndim == 3 else cv2.INTER_NEAREST)
