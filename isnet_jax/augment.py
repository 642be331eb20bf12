"""Random geometry of one example (protocols: training, steps 1 to 3 and 6), as the official recipe computes it.

The label comes first: it alone decides the crop. Of the image no more is decoded than the crop needs. Resizing and
rotation are OpenCV's, as in the official code, so images agree with it to the bit. Photometry follows on the
accelerator.
"""

from typing import NamedTuple

import cv2
import numpy as np

from isnet_jax.datasets.files import decode_image, decode_label
from isnet_jax.losses import IGNORED
from isnet_jax.resizing import resize, target_size

MARGIN = 2  # pixels around a part of a JPEG that smooth chroma looks at


class Plan(NamedTuple):
    """What is to be done to an image; all int."""

    height: int  # of the original
    width: int
    new_height: int  # after resizing
    new_width: int
    top: int  # the crop, in the resized image
    left: int
    crop_height: int
    crop_width: int
    mirror: int
    degrees: int  # counter-clockwise
    part: tuple  # (top, left, height, width), what the crop needs of the original


def choose_crop(label, crop_size, max_class_share, rng):
    """Top, left, height and width of a crop of label (H, W).

    Up to 10 tries until one holds two classes or more, none of which reaches the share of the labelled pixels; the
    last is kept.
    """
    height, width = (min(c, n) for c, n in zip(crop_size, label.shape))
    for _ in range(10):
        top, left = (int(rng.integers(n - c + 1)) for n, c in zip(label.shape, (height, width)))
        labelled, most = class_counts(label[top : top + height, left : left + width], max_class_share)
        if most < labelled and most < max_class_share * labelled:
            break
    return top, left, height, width


def class_counts(label, max_class_share):
    """Labelled pixels of label (h, w), and those of its commonest class, or of any class that settles the question.

    Counting all classes is dear. A guess from every 16th pixel will do, where it leaves too few pixels for any other
    class to reach the share.
    """
    labelled = label.size - np.count_nonzero(label == IGNORED)
    guess = np.bincount(label[::4, ::4].ravel(), minlength=256)[:IGNORED].argmax()
    most = np.count_nonzero(label == guess)
    if labelled - most >= max_class_share * labelled or most == 0:
        most = int(cv2.calcHist([label], [0], None, [256], [0, 256])[:IGNORED].max())
    return labelled, most


def needed(start, count, new_length, length):
    """Range (start, count) of the original's rows from which bilinear resizing to new_length makes the given ones."""
    ratio = length / new_length
    first, last = (int(np.floor((i + 0.5) * ratio - 0.5)) for i in (start, start + count - 1))
    first, end = max(first - MARGIN, 0), min(last + 2 + MARGIN, length)
    return first, end - first


def turn(array, degrees):
    """uint8 (H, W, 3) bicubic, filled with 0, or (H, W) nearest, filled with 255, turned about its centre."""
    height, width = array.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    flags, fill = (cv2.INTER_CUBIC, 0) if array.ndim == 3 else (cv2.INTER_NEAREST, IGNORED)
    return cv2.warpAffine(array, matrix, (width, height), flags=flags, borderValue=fill)


def augment_label(label, rng, config):
    """label uint8 (H, W), NumPy generator, `config.augment` -> label uint8 (h, w), at most the crop size, and Plan."""
    height, width = label.shape
    size = target_size(height, width, config.resize, config.keep_ratio, rng.uniform(*config.scale_range))
    label = resize(label, size)
    top, left, crop_height, crop_width = choose_crop(label, config.crop_size, config.max_class_share, rng)
    label = label[top : top + crop_height, left : left + crop_width]
    mirror = rng.random() < 0.5
    if mirror:
        label = cv2.flip(label, 1)
        if config.flip_pairs:
            label = cv2.LUT(label, swapped_classes(config.flip_pairs))
    degrees = 0
    if rng.random() < config.rotate_probability:
        degrees = int(rng.integers(-config.rotate_degrees, config.rotate_degrees))
        label = turn(label, degrees)
    part_top, part_height = needed(top, crop_height, size[0], height)
    part_left, part_width = needed(left, crop_width, size[1], width)
    return label, Plan(
        height,
        width,
        *size,
        top,
        left,
        crop_height,
        crop_width,
        int(mirror),
        degrees,
        (part_top, part_left, part_height, part_width),
    )


def augment_image(part, plan):
    """The part uint8 (h, w, 3) of an image that `plan` asks for -> its crop uint8 (crop_height, crop_width, 3)."""
    image, (top, left, height, width) = part, plan.part
    if top or left:
        # OpenCV resizes from the top left corner. Above and left of the part stays what memory holds: no pixel of the
        # crop sees it. What lies below and right of the part need not be there.
        image = np.empty((top + height, left + width, 3), np.uint8)
        image[top:, left:] = part
    image = cv2.resize(image, None, fx=plan.new_width / plan.width, fy=plan.new_height / plan.height)  # bilinear
    image = image[plan.top : plan.top + plan.crop_height, plan.left : plan.left + plan.crop_width]
    if plan.mirror:
        image = cv2.flip(image, 1)
    return turn(image, plan.degrees) if plan.degrees else image


def swapped_classes(pairs):
    """uint8 (256,): the class of each class in the mirror."""
    table = np.arange(256, dtype=np.uint8)
    for a, b in pairs:
        table[a], table[b] = b, a
    return table


def augment(image_data, label_data, key, config, image, label):
    """Makes one training example of an encoded image and label, in the middle of two arrays.

    key: (seed, epoch, index), of which every random number is a function; config: `config.augment`. image uint8
    (ch, cw, 3), zeros, and label uint8 (ch, cw), 255, take the example, which may be smaller. Returns the window
    (top, left, height, width) that it takes.
    """
    new_label, plan = augment_label(decode_label(label_data), generator(key), config)
    new_image = augment_image(decode_image(image_data, plan.part), plan)
    (height, width), (crop_height, crop_width) = new_label.shape, label.shape
    top, left = (crop_height - height) // 2, (crop_width - width) // 2
    image[top : top + height, left : left + width] = new_image
    label[top : top + height, left : left + width] = new_label
    return top, left, height, width


def generator(key):
    """Counter-based NumPy generator of an example's key (seed, epoch, index)."""
    seed, epoch, index = key
    return np.random.Generator(
        np.random.Philox(key=np.array([seed, 1], np.uint64), counter=np.array([0, 0, epoch, index], np.uint64))
    )
