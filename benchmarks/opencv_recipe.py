"""The official training recipe of one example, stated step by step in NumPy and OpenCV.

Every step processes whole images on the host, in the order of the official code. The tests compare the results of the
input pipeline with it, and `python -m benchmarks.input_pipeline` compares the speed. `config` is `config.augment`
throughout.
"""

from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict

MEAN, STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
IGNORED = 255

Pair = tuple[np.ndarray, np.ndarray]  # image (H, W, 3) and label uint8 (H, W)


def decode(image_data: bytes, label_data: bytes) -> Pair:
    """The encoded files as a pair, with a uint8 RGB image."""
    image = cv2.imdecode(np.frombuffer(image_data, np.uint8), cv2.IMREAD_COLOR_RGB)
    return image, cv2.imdecode(np.frombuffer(label_data, np.uint8), cv2.IMREAD_GRAYSCALE)


def resize(image: np.ndarray, label: np.ndarray, config: ConfigDict, scale: float) -> Pair:
    """Step 1: resizes to `config.resize` = (long, short) times `scale`, with or without keeping the aspect ratio."""
    height, width = label.shape
    if not config.resize:
        size = int(height * scale + 0.5), int(width * scale + 0.5)
    else:
        long, short = (int(n * scale) for n in config.resize)
        if config.keep_ratio:
            ratio = min(long / max(height, width), short / min(height, width))
            size = int(height * ratio + 0.5), int(width * ratio + 0.5)
        else:
            size = (long, short) if height > width else (short, long)
    return (
        cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR),
        cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST),
    )


def crop(image: np.ndarray, label: np.ndarray, config: ConfigDict, rng: np.random.Generator) -> Pair:
    """Step 2: crops at random, up to 10 times, until the crop has two classes and none exceeds its maximum share."""
    height, width = label.shape
    crop_height, crop_width = config.crop_size
    for _ in range(10):
        top, left = rng.integers(max(height - crop_height, 0) + 1), rng.integers(max(width - crop_width, 0) + 1)
        part = label[top : top + crop_height, left : left + crop_width]
        classes, counts = np.unique(part, return_counts=True)
        counts = counts[classes != IGNORED]
        if len(counts) > 1 and counts.max() / counts.sum() < config.max_class_share:
            break
    return image[top : top + crop_height, left : left + crop_width], part


def flip(image: np.ndarray, label: np.ndarray, config: ConfigDict, rng: np.random.Generator) -> Pair:
    """Step 3: flips horizontally with probability 0.5, and swaps the classes of each pair."""
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1].copy()
        before = label.copy()
        for a, b in config.flip_pairs:
            label[before == a], label[before == b] = b, a
    return image, label


def rotate(image: np.ndarray, label: np.ndarray, config: ConfigDict, rng: np.random.Generator) -> Pair:
    """LIP only: rotates about the centre by a whole number of degrees."""
    if rng.random() < config.rotate_probability:
        height, width = label.shape
        degrees = int(rng.integers(-config.rotate_degrees, config.rotate_degrees))
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
        image = cv2.warpAffine(
            np.ascontiguousarray(image),
            matrix,
            (width, height),
            flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=0,
        )
        label = cv2.warpAffine(
            np.ascontiguousarray(label),
            matrix,
            (width, height),
            flags=cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=IGNORED,
        )
    return image, label


def draw_distortion(rng: np.random.Generator) -> dict[str, Any]:
    """Random arguments of `distort`; None leaves a change out."""

    def maybe(value):
        return value if rng.random() < 0.5 else None

    return {
        "brightness": maybe(rng.uniform(-32, 32)),
        "contrast": maybe(rng.uniform(0.5, 1.5)),
        "saturation": maybe(rng.uniform(0.5, 1.5)),
        "hue": maybe(int(rng.integers(-18, 18))),
        "contrast_early": rng.random() < 0.5,
    }


def distort(
    image: np.ndarray,
    brightness: float | None,
    contrast: float | None,
    saturation: float | None,
    hue: int | None,
    contrast_early: bool,
) -> np.ndarray:
    """Step 4: photometric distortion of a uint8 RGB image (H, W, 3)."""

    def convert(x, scale=1, shift=0):
        return np.clip(x.astype(np.float32) * scale + shift, 0, 255).astype(np.uint8)

    if brightness is not None:
        image = convert(image, shift=brightness)
    if contrast is not None and contrast_early:
        image = convert(image, scale=contrast)
    if saturation is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = convert(hsv[..., 1], scale=saturation)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if hue is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + hue) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if contrast is not None and not contrast_early:
        image = convert(image, scale=contrast)
    return image


def normalize(image: np.ndarray) -> np.ndarray:
    """Step 5: normalises a uint8 RGB image, to float32."""
    return (image.astype(np.float32) - MEAN) / STD


def pad(image: np.ndarray, label: np.ndarray, config: ConfigDict) -> Pair:
    """Step 6: pads to the crop size, with the example in the centre."""
    height, width = label.shape
    rows, columns = config.crop_size[0] - height, config.crop_size[1] - width
    sides = rows // 2, rows - rows // 2, columns // 2, columns - columns // 2
    return (
        cv2.copyMakeBorder(image, *sides, cv2.BORDER_CONSTANT, value=0),
        cv2.copyMakeBorder(label, *sides, cv2.BORDER_CONSTANT, value=IGNORED),
    )


def geometry(image: np.ndarray, label: np.ndarray, config: ConfigDict, rng: np.random.Generator) -> Pair:
    """Steps 1 to 3, and LIP's rotation."""
    image, label = resize(image, label, config, rng.uniform(*config.scale_range))
    image, label = crop(image, label, config, rng)
    image, label = flip(image, label, config, rng)
    return rotate(image, label, config, rng)


def example(image_data: bytes, label_data: bytes, config: ConfigDict, rng: np.random.Generator) -> Pair:
    """All steps on one encoded example: image float32 and label uint8 of the crop size."""
    image, label = geometry(*decode(image_data, label_data), config, rng)
    image = distort(image, **draw_distortion(rng))
    return pad(normalize(image), label, config)
