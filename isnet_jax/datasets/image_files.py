"""Reading, checking and encoding one image or label file at a time."""

import functools
import io
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import tensorflow as tf
from PIL import Image

from isnet_jax.datasets import decoding
from isnet_jax.datasets.problems import FileProblem
from isnet_jax.labels import IGNORED
from isnet_jax.runtime import jpeg, limits

BLOCK_PIXELS = 2**18  # of a label, processed at a time
PLAIN_MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "PA")  # of Pillow, for images that TensorFlow decodes alike


@functools.cache
def hide_accelerators() -> None:
    """Leaves accelerators to JAX; TensorFlow would take their memory. To be called before TensorFlow computes."""
    tf.config.set_visible_devices([], "GPU")


def open_image(path: Path, formats: tuple[str, ...]) -> tuple[bytes, Image.Image]:
    """The bytes of a file, and its Pillow image, of which only the header is decoded.

    `formats` are the accepted ones, by Pillow's names. Raises FileProblem if the file cannot be read, is in another
    format, or is too large to decode.
    """
    data = None
    try:
        data = limits.read(path)
        image = limits.open_image(io.BytesIO(data), formats)
        if data.startswith(limits.JPEG):
            limits.check_scans(data)
    except Exception as error:  # for damaged files Pillow raises struct.error, SyntaxError and others
        raise FileProblem(
            path, "is empty." if data == b"" else decoding.why_unreadable(error, formats, data or b"")
        ) from None
    return data, image


def read_size(path: Path) -> tuple[int, int] | None:
    """(height, width) of the stored image in a file's header, or None if it cannot be read."""
    try:
        data, image = open_image(path, decoding.FORMATS)
    except FileProblem:
        return None
    return decoding.stored_size(image, decoding.read_orientation(image, io.BytesIO(data)))


class CheckedImage(NamedTuple):
    """The facts about an image that is intact."""

    size: tuple[int, int]  # (height, width) as stored
    orientation: int  # as in EXIF; 1 is upright
    num_bytes: int  # in a record, at most
    is_dark: bool  # whether 16 bits a channel hold numbers of 12 at most, which are nearly black in 8


def check_image(path: Path) -> CheckedImage:
    """Decodes an image of any format and colour mode, as training will, to prove that it is intact.

    Raises FileProblem.
    """
    data, image = open_image(path, decoding.FORMATS)
    orientation = decoding.read_orientation(image, io.BytesIO(data))
    size = decoding.stored_size(image, orientation)
    try:
        if not _is_plain(data, image):
            is_deep = image.mode.startswith("I") or data.startswith(limits.PNG)
            pixels = decoding.to_rgb(data)
            return CheckedImage(size, orientation, pixels.size, is_deep and bool(pixels.max() < 16))
        data = _completed(data)
        # Damage shows in the entropy code: an eighth of the size proves as much as the whole.
        decode_image(data, ratio=8)
    except (tf.errors.OpError, ValueError) as error:
        why = _why_undecodable(image) if isinstance(error, tf.errors.OpError) else str(error)
        raise FileProblem(path, f"is damaged ({why}).") from None
    except Exception as error:
        raise FileProblem(path, decoding.why_unreadable(error)) from None
    return CheckedImage(size, orientation, len(data), False)


def record_image(path: Path, upright: bool) -> bytes:
    """The image of a record: the file's own bytes, or its pixels as a PNG if TensorFlow decodes them otherwise than
    Pillow, or not at all.

    `upright` turns such pixels as the EXIF orientation says. Raises FileProblem, ValueError and Pillow's errors if the
    file is no longer as it was checked.
    """
    data, image = open_image(path, decoding.FORMATS)
    if _is_plain(data, image):
        return _completed(data)
    orientation = decoding.read_orientation(image, io.BytesIO(data)) if upright else 1
    return encode_png(np.ascontiguousarray(decoding.turned(decoding.to_rgb(data), orientation)))


def _is_plain(data: bytes, image: Image.Image) -> bool:
    """Whether TensorFlow decodes the file to the pixels that Pillow does."""
    if data.startswith(limits.PNG):
        return data[24] <= 8 and image.mode in PLAIN_MODES  # the bit depth in the header
    return data.startswith(limits.JPEG) and image.mode in PLAIN_MODES  # not CMYK


def _completed(data: bytes) -> bytes:
    return jpeg.completed(data) if data.startswith(limits.JPEG) else data


def decode_image(
    data: bytes, region: tuple[int, int, int, int] | None = None, ratio: int = 1, upright: bool = False
) -> np.ndarray:
    """Decodes a JPEG or PNG of any colour mode, as training does: uint8 (H, W, 3).

    With `region` = (top, left, height, width), only that part. `ratio`, one of 1, 2, 4 and 8, is the factor by which
    a whole JPEG is downscaled. `upright` turns the image as its EXIF orientation says; the region is then one of the
    upright image. Raises ValueError or one of TensorFlow's errors for an image that is damaged, too large or in another
    format.
    """
    hide_accelerators()
    orientation, original, data = 1, data, limits.decodable(data)
    if upright:
        image = limits.open_image(io.BytesIO(original), ("JPEG", "PNG"))
        orientation = decoding.read_orientation(image, io.BytesIO(original))
        if region is not None:
            region = decoding.stored_region(region, (image.height, image.width), orientation)
    if not data.startswith(limits.JPEG):
        pixels = _to_numpy(tf.io.decode_png(data, channels=3))
        if region is not None:
            top, left, height, width = region
            pixels = pixels[top : top + height, left : left + width]
            if pixels.shape[:2] != (height, width):
                raise ValueError("the image is smaller than its label")
    elif region is None:
        pixels = _to_numpy(tf.io.decode_jpeg(data, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE"))
    else:
        pixels = _to_numpy(tf.image.decode_and_crop_jpeg(data, region, channels=3, dct_method="INTEGER_ACCURATE"))
    return pixels if orientation == 1 else np.ascontiguousarray(decoding.turned(pixels, orientation))


def decode_label(data: bytes) -> np.ndarray:
    """Decodes the label of a record, a greyscale PNG of train ids: uint8 (H, W).

    Raises ValueError or cv2.error for a label that is damaged, too large or in another format.
    """
    data = limits.decodable(data)
    label = None if data.startswith(limits.JPEG) else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if label is None:
        raise ValueError("the label is not a PNG, or is damaged")
    return label


def _to_numpy(tensor: tf.Tensor) -> np.ndarray:
    return np.asarray(memoryview(tensor))  # without a copy


def _why_undecodable(image: Image.Image) -> str:
    try:
        image.load()
    except Exception as error:
        return str(error)
    return "TensorFlow, which decodes it in training, rejects it"


def count_ids(ids: np.ndarray, num_classes: int) -> np.ndarray:
    """The number of pixels of each class and, last, of ignored pixels, in train ids uint8 (H, W): int64 (K + 1,)."""
    counts = np.zeros(256, np.int64)
    for rows in row_blocks(ids):
        counts += np.bincount(ids[rows].ravel(), minlength=256)
    return counts[[*range(num_classes), IGNORED]]


def row_blocks(array: np.ndarray) -> list[slice]:
    """Slices of rows, each of about BLOCK_PIXELS: what is computed from a block takes little memory."""
    rows = max(1, BLOCK_PIXELS // max(1, array.shape[1]))
    return [slice(top, top + rows) for top in range(0, len(array), rows)]


def encode_png(pixels: np.ndarray) -> bytes:
    """An RGB image, uint8 (H, W, 3), as a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def encode_label(ids: np.ndarray) -> bytes:
    """Train ids, uint8 (H, W), as a greyscale PNG that decodes fast.

    Its rows are not filtered, unlike Pillow's: such labels are smaller, and decode in two thirds of the time.
    """
    height, width = ids.shape
    rows = np.pad(ids, ((0, 0), (1, 0)))  # each begins with its filter type, 0

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return (
        limits.PNG
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 6))
        + chunk(b"IEND", b"")
    )
