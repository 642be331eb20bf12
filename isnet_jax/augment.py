"""Random geometry of one example (protocols: training, steps 1 to 3 and 6), as the official recipe computes it.

The label comes first: it alone decides the crop. Of the image no more is decoded than the crop needs. Resizing and
rotation are OpenCV's, as in the official code, so images agree with it to the bit. Photometry follows on the
accelerator.
"""
from typing import NamedTuple

import cv2
import numpy as np
import tensorflow as tf

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
    part_top: int  # what the crop needs of the original; the last four
    part_left: int
    part_height: int
    part_width: int


def decode_image(data):
    """Encoded JPEG or PNG, of any colour mode -> uint8 (H, W, 3)."""
    return tf.cond(tf.io.is_jpeg(data),
                   lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
                   lambda: tf.io.decode_png(data, channels=3))


def decode_part(data, part):
    """The pixels [top, left, height, width] = `part` (4,) of an encoded image, equal to those of the whole."""
    def png():
        begin, size = tf.split(part, 2)
        return tf.slice(tf.io.decode_png(data, channels=3), tf.concat([begin, [0]], 0), tf.concat([size, [3]], 0))

    return tf.cond(tf.io.is_jpeg(data), lambda: tf.image.decode_and_crop_jpeg(
        data, part, channels=3, dct_method="INTEGER_ACCURATE"), png)


def decode_label(data):
    """Grey PNG of train ids -> uint8 (H, W)."""
    return tf.squeeze(tf.io.decode_png(data, channels=1), -1)


def choose_crop(label, crop_size, max_class_share, rng):
    """Top, left, height and width of a crop of label (H, W).

    Up to 10 tries until one holds two classes or more, none of which reaches the share of the labelled pixels; the
    last is kept.
    """
    height, width = (min(c, n) for c, n in zip(crop_size, label.shape))
    for _ in range(10):
        top, left = (int(rng.integers(n - c + 1)) for n, c in zip(label.shape, (height, width)))
        labelled, most = class_counts(label[top:top + height, left:left + width], max_class_share)
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


def pad(array, crop_size, value):
    """array (h, w, ...) in the centre of `crop_size`, filled with `value`; and the window (top, left, h, w)."""
    height, width = array.shape[:2]
    top, left = (crop_size[0] - height) // 2, (crop_size[1] - width) // 2
    if (height, width) != tuple(crop_size):
        canvas = np.full((*crop_size, *array.shape[2:]), value, np.uint8)
        canvas[top:top + height, left:left + width] = array
        array = canvas
    return np.ascontiguousarray(array), (top, left, height, width)


def augment_label(label, rng, config):
    """label uint8 (H, W), NumPy generator, `config.augment` -> label uint8 (ch, cw), window int32 (4,), Plan."""
    height, width = label.shape
    size = target_size(height, width, config.resize, config.keep_ratio, rng.uniform(*config.scale_range))
    label = resize(label, size)
    top, left, crop_height, crop_width = choose_crop(label, config.crop_size, config.max_class_share, rng)
    label = label[top:top + crop_height, left:left + crop_width]
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
    label, window = pad(label, config.crop_size, IGNORED)
    return label, window, Plan(height, width, *size, top, left, crop_height, crop_width, int(mirror), degrees,
                               part_top, part_left, part_height, part_width)


def augment_image(part, plan, config):
    """The part uint8 (h, w, 3) of an image that `plan` asks for -> image uint8 (ch, cw, 3)."""
    image = part
    if plan.part_top or plan.part_left:
        # OpenCV resizes from the top left corner. Above and left of the part stays what memory holds: no pixel of the
        # crop sees it. What lies below and right of the part need not be there.
        image = np.empty((plan.part_top + plan.part_height, plan.part_left + plan.part_width, 3), np.uint8)
        image[plan.part_top:, plan.part_left:] = part
    image = cv2.resize(image, None, fx=plan.new_width / plan.width, fy=plan.new_height / plan.height)  # bilinear
    image = image[plan.top:plan.top + plan.crop_height, plan.left:plan.left + plan.crop_width]
    if plan.mirror:
        image = cv2.flip(image, 1)
    if plan.degrees:
        image = turn(image, plan.degrees)
    return pad(image, config.crop_size, 0)[0]


def swapped_classes(pairs):
    """uint8 (256,): the class of each class in the mirror."""
    table = np.arange(256, dtype=np.uint8)
    for a, b in pairs:
        table[a], table[b] = b, a
    return table


def augment(image, label, key, config):
    """One training example, for tf.data.

    image, label: encoded, scalar strings; key uint64 (3,): every random number is a function of it; config:
    `config.augment`. Returns image uint8 (ch, cw, 3) and label uint8 (ch, cw), centred in the crop size and padded
    with 0 and 255, and the window int32 (4,) = (top, left, height, width) of what is not padding.
    """
    def of_label(label, key):
        label, window, plan = augment_label(label, generator(key), config)
        return label, np.int32(window), np.int32(plan)

    def of_image(part, plan):
        return augment_image(part, Plan(*plan.tolist()), config)

    label, window, plan = tf.numpy_function(of_label, [decode_label(label), key], (tf.uint8, tf.int32, tf.int32),
                                            stateful=False)
    part = decode_part(image, tf.ensure_shape(plan, (len(Plan._fields),))[-4:])
    image = tf.numpy_function(of_image, [part, plan], tf.uint8, stateful=False)
    return {"image": tf.ensure_shape(image, (*config.crop_size, 3)),
            "label": tf.ensure_shape(label, tuple(config.crop_size)), "window": tf.ensure_shape(window, (4,))}


def generator(key):
    """Counter-based NumPy generator of an example's key (seed, epoch, index)."""
    seed, epoch, index = (int(n) for n in key)
    key, counter = np.array([seed, 1], np.uint64), np.array([0, 0, epoch, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
