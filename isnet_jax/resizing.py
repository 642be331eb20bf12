"""The resize step, in training and testing alike. None of this imports TensorFlow."""

import cv2

cv2.setNumThreads(1)  # images are prepared in parallel already


def target_size(height, width, resize, keep_ratio, scale=1.0):
    """Size (h, w) after the resize step, at least 1; `resize` = (long, short), () for the original times `scale`."""
    if not resize:
        return _size(height * scale, width * scale)
    long, short = (int(n * scale) for n in resize)
    if not keep_ratio:  # the image's long side becomes the long side
        return _size(*((long, short) if height > width else (short, long)))
    ratio = min(long / max(height, width), short / min(height, width))
    return _size(height * ratio, width * ratio)


def _size(height, width):
    return max(1, int(height + 0.5)), max(1, int(width + 0.5))


def resize(array, size):
    """uint8 (H, W, 3) bilinear or (H, W) nearest -> `size` = (h, w), by OpenCV."""
    return cv2.resize(array, size[::-1], interpolation=cv2.INTER_LINEAR if array.ndim == 3 else cv2.INTER_NEAREST)
