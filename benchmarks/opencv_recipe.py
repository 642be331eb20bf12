"""The official training recipe of one example, stated step by step in NumPy and OpenCV (protocols: training).

Everything is done in the order of the protocol, to whole images, on the host: what the input pipeline is compared
with, in its results by the tests and in its speed by `python -m benchmarks.input_pipeline`.
"""

import cv2
import numpy as np

MEAN, STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])


def resize(image, label, config, r):
    """Step 1: to (long, short) times r, the ratio kept or not."""
    height, width = label.shape
    if not config.resize:
        size = int(height * r + 0.5), int(width * r + 0.5)
    else:
        long, short = (int(n * r) for n in config.resize)
        if config.keep_ratio:
            s = min(long / max(height, width), short / min(height, width))
            size = int(height * s + 0.5), int(width * s + 0.5)
        else:
            size = (long, short) if height > width else (short, long)
    return (
        cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR),
        cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST),
    )


def crop(image, label, config, rng):
    """Step 2: up to 10 crops until none of at least two classes fills the share of the labelled pixels."""
    height, width = label.shape
    crop_height, crop_width = config.crop_size
    for _ in range(10):
        top, left = rng.integers(max(height - crop_height, 0) + 1), rng.integers(max(width - crop_width, 0) + 1)
        part = label[top : top + crop_height, left : left + crop_width]
        classes, counts = np.unique(part, return_counts=True)
        counts = counts[classes != 255]
        if len(counts) > 1 and counts.max() / counts.sum() < config.max_class_share:
            break
    return image[top : top + crop_height, left : left + crop_width], part


def flip(image, label, config, rng):
    """Step 3: mirrored with even odds, paired classes changing places."""
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1].copy()
        before = label.copy()
        for a, b in config.flip_pairs:
            label[before == a], label[before == b] = b, a
    return image, label


def rotate(image, label, config, rng):
    """LIP only: by a whole number of degrees about the centre."""
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
            borderValue=255,
        )
    return image, label


def draw_distortion(rng):
    """The draws of step 4; None where a change is left out."""

    def maybe(value):
        return value if rng.random() < 0.5 else None

    return {
        "brightness": maybe(rng.uniform(-32, 32)),
        "contrast": maybe(rng.uniform(0.5, 1.5)),
        "saturation": maybe(rng.uniform(0.5, 1.5)),
        "hue": maybe(int(rng.integers(-18, 18))),
        "contrast_early": rng.random() < 0.5,
    }


def distort(image, brightness, contrast, saturation, hue, contrast_early):
    """Step 4: photometric distortion of uint8 RGB (H, W, 3)."""

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


def normalize(image):
    """Step 5."""
    return (image.astype(np.float32) - MEAN) / STD


def pad(image, label, config):
    """Step 6: to the crop size, in the centre."""
    height, width = label.shape
    rows, columns = config.crop_size[0] - height, config.crop_size[1] - width
    sides = rows // 2, rows - rows // 2, columns // 2, columns - columns // 2
    return (
        cv2.copyMakeBorder(image, *sides, cv2.BORDER_CONSTANT, value=0),
        cv2.copyMakeBorder(label, *sides, cv2.BORDER_CONSTANT, value=255),
    )


def geometry(image, label, config, rng):
    """Steps 1 to 3 (and LIP's rotation) of uint8 image (H, W, 3) and label (H, W)."""
    image, label = resize(image, label, config, rng.uniform(*config.scale_range))
    image, label = crop(image, label, config, rng)
    image, label = flip(image, label, config, rng)
    return rotate(image, label, config, rng)


def example(image_data, label_data, config, rng):
    """One encoded pair through the whole recipe: float32 (ch, cw, 3), uint8 (ch, cw)."""
    image = cv2.imdecode(np.frombuffer(image_data, np.uint8), cv2.IMREAD_COLOR_RGB)
    label = cv2.imdecode(np.frombuffer(label_data, np.uint8), cv2.IMREAD_GRAYSCALE)
    image, label = geometry(image, label, config, rng)
    image = distort(image, **draw_distortion(rng))
    return pad(normalize(image), label, config)
