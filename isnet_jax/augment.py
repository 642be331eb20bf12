"""Random geometry in tf.data, one example at a time (protocols: training, steps 1 to 3 and 6).

Photometry follows on the accelerator. Every random number is a function of the example's own seed.
"""
import numpy as np
import tensorflow as tf
from PIL import Image

from isnet_jax.losses import IGNORED


def decode_image(data):
    """Encoded JPEG or PNG, of any colour mode -> uint8 (H, W, 3)."""
    return tf.cond(tf.io.is_jpeg(data),
                   lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
                   lambda: tf.io.decode_png(data, channels=3))


def decode_label(data):
    """Grey PNG of train ids -> uint8 (H, W)."""
    return tf.io.decode_png(data, channels=1)[..., 0]


def target_size(height, width, resize, keep_ratio, scale=1.0):
    """Size (h, w), int32, after the resize step; `resize` = (long, short), () for the original times `scale`."""
    if not resize:
        return tuple(tf.cast(tf.cast(n, tf.float64) * scale + 0.5, tf.int32) for n in (height, width))
    long, short = (tf.math.floor(tf.cast(n, tf.float64) * scale) for n in resize)
    if not keep_ratio:  # the image's long side becomes the long side
        portrait = height > width
        return tuple(tf.cast(n, tf.int32) for n in (tf.where(portrait, long, short), tf.where(portrait, short, long)))
    h, w = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    ratio = tf.minimum(long / tf.maximum(h, w), short / tf.minimum(h, w))
    return tf.cast(h * ratio + 0.5, tf.int32), tf.cast(w * ratio + 0.5, tf.int32)


def resize_crop_image(image, size, top, left, crop_height, crop_width):
    """The crop of image (H, W, 3) resized to `size` = (h, w), bilinear, rounded to uint8; only the crop is formed."""
    in_size = tf.cast(tf.shape(image)[:2], tf.float32)
    scale = tf.cast(tf.stack(size), tf.float32) / in_size
    offset = -tf.cast(tf.stack([top, left]), tf.float32)
    crop = tf.raw_ops.ScaleAndTranslate(
        images=image[None], size=tf.stack([crop_height, crop_width]), scale=scale, translation=offset,
        kernel_type="triangle", antialias=False)[0]
    return tf.cast(tf.round(crop), tf.uint8)


def resize_crop_label(label, size, top, left, crop_height, crop_width):
    """The crop of label (H, W) resized to `size`, by OpenCV's nearest rule floor(i / (out / in)), in float64."""
    def source(start, count, out_length, in_length):
        ratio = 1 / (tf.cast(out_length, tf.float64) / tf.cast(in_length, tf.float64))
        index = tf.cast(tf.math.floor(tf.cast(tf.range(start, start + count), tf.float64) * ratio), tf.int32)
        return tf.minimum(index, in_length - 1)

    shape = tf.shape(label)
    rows = tf.gather(label, source(top, crop_height, size[0], shape[0]))
    return tf.gather(rows, source(left, crop_width, size[1], shape[1]), axis=1)


def _choose_crop(label, size, crop_size, max_class_share, seed):
    """Top left corner of a crop: up to 10 tries for one no class of which reaches the share; the last is kept."""
    height, width = (tf.minimum(c, n) for c, n in zip(crop_size, size))

    def propose(attempt):
        position = tf.random.stateless_uniform((2,), [seed[0], seed[1] + attempt], dtype=tf.float64)
        return tuple(tf.cast(p * tf.cast(n - c + 1, tf.float64), tf.int32)
                     for p, n, c in zip(tf.unstack(position), size, (height, width)))

    def unacceptable(attempt, top, left):
        crop = resize_crop_label(label, size, top, left, height, width)
        counts = tf.math.bincount(tf.cast(tf.reshape(crop, [-1]), tf.int32), minlength=256, maxlength=256)[:IGNORED]
        share = tf.cast(tf.reduce_max(counts), tf.float64) / tf.cast(tf.reduce_sum(counts), tf.float64)
        return (attempt < 9) & ((tf.math.count_nonzero(counts) < 2) | (share >= max_class_share))

    _, top, left = tf.while_loop(unacceptable, lambda attempt, top, left: (attempt + 1, *propose(attempt + 1)),
                                 (tf.constant(0), *propose(0)))
    return top, left, height, width


def _rotate(image, label, degrees):
    """Image (bicubic, filled with 0) and label (nearest, filled with 255) turned counter-clockwise about the centre."""
    def turn(image, label, degrees):
        height, width = label.shape
        center = (width / 2 + 0.5, height / 2 + 0.5)  # pixel (w / 2, h / 2) as OpenCV counts, from pixel centres
        image = Image.fromarray(image).rotate(float(degrees), Image.Resampling.BICUBIC, center=center)
        label = Image.fromarray(label).rotate(float(degrees), Image.Resampling.NEAREST, center=center,
                                              fillcolor=IGNORED)
        return np.array(image), np.array(label)

    shapes = image.shape, label.shape
    image, label = tf.numpy_function(turn, [image, label, degrees], (tf.uint8, tf.uint8), stateful=False)
    return tf.ensure_shape(image, shapes[0]), tf.ensure_shape(label, shapes[1])


def augment(image, label, seed, config):
    """One training example.

    image uint8 (H, W, 3), label uint8 (H, W), seed int32 (2,), config: `config.augment`. Returns image uint8
    (ch, cw, 3) and label uint8 (ch, cw), centred in the crop size and padded with 0 and 255, and the window int32
    (4,) = (top, left, height, width) of what is not padding.
    """
    def random(stream, shape=()):
        return tf.random.stateless_uniform(shape, [seed[0], seed[1] ^ (stream << 8)], dtype=tf.float64)

    low, high = config.scale_range
    shape = tf.shape(label)
    size = target_size(shape[0], shape[1], config.resize, config.keep_ratio, low + (high - low) * random(1))
    top, left, height, width = _choose_crop(label, size, config.crop_size, config.max_class_share,
                                            [seed[0], seed[1] ^ (2 << 8)])
    image = resize_crop_image(image, size, top, left, height, width)
    label = resize_crop_label(label, size, top, left, height, width)

    swapped = np.arange(256, dtype=np.uint8)
    for a, b in config.flip_pairs:
        swapped[a], swapped[b] = b, a
    mirror = random(3) < 0.5
    image = tf.where(mirror, image[:, ::-1], image)
    label = tf.where(mirror, tf.gather(swapped, tf.cast(label[:, ::-1], tf.int32)), label)

    if config.rotate_probability:
        degrees = tf.floor((2 * random(5) - 1) * config.rotate_degrees)
        image, label = tf.cond(random(4) < config.rotate_probability, lambda: _rotate(image, label, degrees),
                               lambda: (image, label))

    crop_height, crop_width = config.crop_size
    pad_top, pad_left = (crop_height - height) // 2, (crop_width - width) // 2
    padding = [[pad_top, crop_height - height - pad_top], [pad_left, crop_width - width - pad_left]]
    image = tf.ensure_shape(tf.pad(image, [*padding, [0, 0]]), (crop_height, crop_width, 3))
    label = tf.ensure_shape(tf.pad(label, padding, constant_values=IGNORED), (crop_height, crop_width))
    return {"image": image, "label": label, "window": tf.stack([pad_top, pad_left, height, width])}
