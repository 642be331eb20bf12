"""Bounds on untrusted images, checked before anything is decoded. This module does not import TensorFlow.

A few bytes can declare gigapixels, demand a thousand passes over them, or hold text that inflates without end.
"""

import contextlib
import errno
import os
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from PIL.ImageFile import ImageFile

from isnet_jax.runtime import jpeg

MAX_PIXELS, MAX_SIDE = 100_000_000, 65_500  # libjpeg's own limit on a side
MAX_TILED_PIXELS = 1_000_000_000  # of an image that the user asks to predict in tiles
BYTES_PER_PIXEL = 9  # of a file: 16 bits with alpha take 8 bytes
MAX_SCANS = 100  # of a JPEG, each a pass over all pixels; encoders write about ten
MAX_RUN_LENGTH_PIXELS = 10_000_000  # of a run-length encoded BMP, which Pillow decodes in Python
PIXEL_CHUNKS = b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"  # the PNG chunks that pixels depend on
PNG, JPEG = b"\x89PNG\r\n\x1a\n", jpeg.START  # signatures
PILLOW_BOUND = threading.Lock()  # Pillow's own bound on pixels is a global


def too_large(max_pixels: int) -> str:
    """What is wrong with an image of more pixels, or with too long a side: "has more than ..."."""
    return (
        f"has more than {max_pixels // 10**6} megapixels or a side of more than {MAX_SIDE} pixels, the limits: cut it "
        "into tiles"
    )


TOO_LARGE = too_large(MAX_PIXELS)

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS takes its place
warnings.filterwarnings("ignore", module="PIL.TiffImagePlugin")  # it raises errors, too, where pixels are at stake


class TooLarge(Image.DecompressionBombError):
    """An image beyond the bounds, with a message such as "has more than ...".

    It is a DecompressionBombError, since Pillow's own bound may be reached first.
    """

    def __init__(self, text: str = TOO_LARGE):
        super().__init__(text)


def check_size(width: int, height: int, max_pixels: int | None = None) -> None:
    """Raises TooLarge for an image with more than `max_pixels` (MAX_PIXELS if it is None) or too long a side."""
    max_pixels = max_pixels or MAX_PIXELS
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise TooLarge(too_large(max_pixels))


def read(path: str | Path, max_pixels: int | None = None) -> bytes:
    """The bytes of a regular file; raises OSError, or TooLarge for a file larger than any image within the bounds."""
    check_file(path, max_pixels)
    with open(path, "rb") as file:
        return file.read()


def check_file(path: str | Path, max_pixels: int | None = None) -> None:
    """Raises OSError for anything but a regular file, such as a named pipe, and TooLarge as `read` does."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    max_bytes = BYTES_PER_PIXEL * (max_pixels or MAX_PIXELS)
    if status.st_size > max_bytes:
        raise TooLarge(f"has more than {max_bytes // 10**6} MB, the limit")


def open_image(file: str | Path | BinaryIO, formats: tuple[str, ...], max_pixels: int | None = None) -> ImageFile:
    """A Pillow image of a path or a binary file, not decoded yet.

    Raises Pillow's errors for a damaged file or another format, and DecompressionBombError for an image of more than
    `max_pixels`, by default MAX_PIXELS.
    """
    with _pillow_accepting(max_pixels) if max_pixels else contextlib.nullcontext():
        image = Image.open(file, formats=formats)
    check_size(*image.size, max_pixels)
    if image.tile and image.tile[0][0] == "bmp_rle" and image.width * image.height > MAX_RUN_LENGTH_PIXELS:
        raise TooLarge(f"is a compressed BMP of more than {MAX_RUN_LENGTH_PIXELS // 10**6} megapixels, the limit")
    return image


def allocate(image: ImageFile, max_pixels: int) -> None:
    """Makes room for the pixels of a TIFF, which Pillow checks again: its tiles may be larger. Raises TooLarge."""
    with _pillow_accepting(max_pixels):
        image.load_prepare()


@contextlib.contextmanager
def _pillow_accepting(max_pixels: int) -> Iterator[None]:
    """Pillow accepts images of up to `max_pixels` meanwhile: in all threads, and so only for a moment."""
    with PILLOW_BOUND:
        previous = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels // 2  # it refuses more than twice as many
        try:
            yield
        except Image.DecompressionBombError:
            raise TooLarge(too_large(max_pixels)) from None
        finally:
            Image.MAX_IMAGE_PIXELS = previous


def decodable(data: bytes) -> bytes:
    """The bytes of a JPEG, or of a PNG without the chunks that its pixels do not depend on, safe for any decoder.

    Raises ValueError for another format, and for an image that is damaged or too large.
    """
    try:
        if data.startswith(JPEG):
            check_size(*jpeg.size(data))
            check_scans(data)
            return data
        if not data.startswith(PNG) or data[12:16] != b"IHDR" or len(data) < 33:
            raise ValueError("it is neither a JPEG nor a PNG image")
        check_size(*struct.unpack_from(">II", data, 16))
        return _pixel_chunks(data)
    except TooLarge as error:
        raise ValueError(f"it {error}") from None


def check_scans(data: bytes) -> None:
    """Raises TooLarge for a JPEG with too many scans, and ValueError for a damaged one."""
    if jpeg.has_more_scans(data, MAX_SCANS):
        raise TooLarge(f"has more than {MAX_SCANS} scans, the limit")


def _pixel_chunks(data: bytes) -> bytes:
    """A PNG with its PIXEL_CHUNKS alone.

    Decoders inflate compressed text, and OpenCV allocates whatever length a chunk claims.
    """
    parts, at, kind = [data[: len(PNG)]], len(PNG), b""
    while at < len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at) if at + 12 <= len(data) else (len(data), b"")
        if at + 12 + length > len(data):
            raise ValueError("it is a truncated PNG image")
        if kind == b"IHDR" and at > len(PNG):
            raise ValueError("it is a PNG image with two headers")
        if kind in PIXEL_CHUNKS:
            parts.append(data[at : at + 12 + length])
        at += 12 + length
    return b"".join(parts) if sum(map(len, parts)) < len(data) else data
