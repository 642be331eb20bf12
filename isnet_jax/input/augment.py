"""Random geometry of one example as the official recipe computes it (`benchmarks/opencv_recipe.py`).

The label comes first, since it alone decides the crop. Only the region of the image that the crop needs is decoded.
OpenCV resizes and rotates, as in the official code, so images agree with it bit for bit. Photometric distortion follows
on the device.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from ml_collections import ConfigDict

from isnet_jax.datasets.image_files import decode_image, decode_label
from isnet_jax.input.resizing import resize, target_size
from isnet_jax.labels import IGNORED, flipped_classes

MARGIN = 2  # pixels around a region of a JPEG that smooth chroma upsampling depends on


class CropPlan(NamedTuple):
    """The geometry of one example, in pixels."""

    height: int  # of the original
    width: int
    new_height: int  # after resizing
    new_width: int
    top: int  # of the crop, in the resized image
    left: int
    crop_height: int
    crop_width: int
    flip: bool
    degrees: int  # of the rotation, counter-clockwise
    source_region: tuple[int, int, int, int]  # of the original, (top, left, height, width): all that the crop needs


def choose_crop(
    label: np.ndarray, crop_size: Sequence[int], max_class_share: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop of a label (H, W), no larger than `crop_size`.

    A crop is accepted if it holds at least two classes and each has less than `max_class_share` of the labelled pixels.
    After 10 tries the last crop is kept.
    """
    height, width = (min(c, n) for c, n in zip(crop_size, label.shape))
    for _ in range(10):
        top, left = (int(rng.integers(n - c + 1)) for n, c in zip(label.shape, (height, width)))
        labelled, most = class_counts(label[top : top + height, left : left + width], max_class_share)
        if most < labelled and most < max_class_share * labelled:
            break
    return top, left, height, width


def class_counts(label: np.ndarray, max_class_share: float) -> tuple[int, int]:
    """The number of labelled pixels of a label (h, w), and that of its most frequent class.

    Counting every class is expensive. So the class most frequent in every 16th pixel is counted first. Its count is
    returned if it leaves too few pixels for any other class to reach `max_class_share`: `choose_crop` decides the same.
    """
    labelled = label.size - int(np.count_nonzero(label == IGNORED))
    candidate = np.bincount(label[::4, ::4].ravel(), minlength=256)[:IGNORED].argmax()
    most = int(np.count_nonzero(label == candidate))
    if labelled - most >= max_class_share * labelled or most == 0:
        most = int(cv2.calcHist([label], [0], None, [256], [0, 256])[:IGNORED].max())
    return labelled, most


def source_range(start: int, count: int, new_length: int, length: int) -> tuple[int, int]:
    """The range (start, count) of original rows that bilinear resizing to `new_length` rows reads for the given range.

    It is widened by `MARGIN` within the `length` rows of the original. Columns work the same way.
    """
    ratio = length / new_length
    first, last = (int(np.floor((i + 0.5) * ratio - 0.5)) for i in (start, start + count - 1))
    first, end = max(first - MARGIN, 0), min(last + 2 + MARGIN, length)
    return first, end - first


def rotate(array: np.ndarray, degrees: int) -> np.ndarray:
    """`array` rotated counter-clockwise about its centre, of the same shape.

    Images uint8 (H, W, 3) are interpolated bicubically and filled with 0. Labels uint8 (H, W) take the nearest pixel
    and are filled with 255.
    """
    height, width = array.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    flags, fill = (cv2.INTER_CUBIC, 0) if array.ndim == 3 else (cv2.INTER_NEAREST, IGNORED)
    return cv2.warpAffine(array, matrix, (width, height), flags=flags, borderValue=fill)


def augment_label(label: np.ndarray, rng: np.random.Generator, config: ConfigDict) -> tuple[np.ndarray, CropPlan]:
    """The augmented crop of a label uint8 (H, W), and the plan by which the image follows.

    config: `config.augment`. The crop is no larger than its `crop_size`, but may be smaller.
    """
    height, width = label.shape
    size = target_size(height, width, config.resize, config.keep_ratio, rng.uniform(*config.scale_range))
    label = resize(label, size)
    top, left, crop_height, crop_width = choose_crop(label, config.crop_size, config.max_class_share, rng)
    label = label[top : top + crop_height, left : left + crop_width]
    flip = rng.random() < 0.5
    if flip:
        label = cv2.flip(label, 1)
        if config.flip_pairs:
            label = cv2.LUT(label, flipped_classes(256, config.flip_pairs).astype(np.uint8))
    degrees = 0
    if rng.random() < config.rotate_probability:
        degrees = int(rng.integers(-config.rotate_degrees, config.rotate_degrees))
        label = rotate(label, degrees)
    source_top, source_height = source_range(top, crop_height, size[0], height)
    source_left, source_width = source_range(left, crop_width, size[1], width)
    region = source_top, source_left, source_height, source_width
    return label, CropPlan(height, width, *size, top, left, crop_height, crop_width, flip, degrees, region)


def augment_image(region: np.ndarray, plan: CropPlan) -> np.ndarray:
    """The crop uint8 (crop_height, crop_width, 3) from the image's `plan.source_region`, uint8 (h, w, 3)."""
    image, (top, left, height, width) = region, plan.source_region
    if top or left:
        # OpenCV resizes from the top left corner. The pixels above and left of the region stay uninitialised: the crop
        # does not depend on them. Nor does it depend on what is below and to the right, which is left out.
        image = np.empty((top + height, left + width, 3), np.uint8)
        image[top:, left:] = region
    image = cv2.resize(image, None, fx=plan.new_width / plan.width, fy=plan.new_height / plan.height)  # bilinear
    image = image[plan.top : plan.top + plan.crop_height, plan.left : plan.left + plan.crop_width]
    if plan.flip:
        image = cv2.flip(image, 1)
    return rotate(image, plan.degrees) if plan.degrees else image


def augment(
    image_data: bytes,
    label_data: bytes,
    key: tuple[int, int, int],
    config: ConfigDict,
    image: np.ndarray,
    label: np.ndarray,
    upright: bool = False,
) -> tuple[int, int, int, int]:
    """Writes one training example to the centre of `image` and `label`, and returns its (top, left, height, width).

    image_data, label_data: the encoded files. key: (seed, epoch, index), which determines every random number. config:
    `config.augment`. image uint8 (ch, cw, 3), all 0, and label uint8 (ch, cw), all 255, have the crop size; the example
    may be smaller. upright: whether EXIF orientation is applied. Raises whatever the decoders raise.
    """
    new_label, plan = augment_label(decode_label(label_data), generator(key), config)
    new_image = augment_image(decode_image(image_data, plan.source_region, upright=upright), plan)
    (height, width), (crop_height, crop_width) = new_label.shape, label.shape
    top, left = (crop_height - height) // 2, (crop_width - width) // 2
    image[top : top + height, left : left + width] = new_image
    label[top : top + height, left : left + width] = new_label
    return top, left, height, width


def generator(key: tuple[int, int, int]) -> np.random.Generator:
    """Counter-based NumPy generator for an example's key, (seed, epoch, index)."""
    seed, epoch, index = key
    return np.random.Generator(
        np.random.Philox(key=np.array([seed, 1], np.uint64), counter=np.array([0, 0, epoch, index], np.uint64))
    )
