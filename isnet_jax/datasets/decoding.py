"""Decoding of photographs of any format, colour mode and orientation to upright 8-bit RGB. It needs no TensorFlow."""

import io
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, features

from isnet_jax.errors import UserError
from isnet_jax.runtime import jpeg, limits

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", *(["AVIF"] if features.check("avif") else []))
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *([".avif"] if features.check("avif") else []),
)
ORIENTATION = 274  # the EXIF tag; 1 is upright
TURNS = {  # orientation: whether the rows of the stored image are reversed, then its columns, then both exchanged
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}
DEEP_MODES = ("I", "F")  # of Pillow: 32 bits, without a scale


class Header(NamedTuple):
    """The facts about an image that are known before its pixels are decoded."""

    size: tuple[int, int]  # (height, width) of the upright image
    orientation: int  # of the stored image, as in EXIF; 1 is upright


def read_header(path: Path) -> Header:
    """The header of an image file, read without decoding pixels.

    Raises UserError if the file cannot be read, is not an image of FORMATS, or is too large.
    """
    try:
        limits.check_file(path)
        with path.open("rb") as file, limits.open_image(file, FORMATS) as image:
            orientation = read_orientation(image, file)
            size = image.size if orientation >= 5 else image.size[::-1]
    except Exception as error:  # Pillow raises a wide mix on damaged files
        raise _user_error(path, error) from None
    return Header(size, orientation)


def decode(path: Path, header: Header) -> np.ndarray:
    """The upright RGB image uint8 (height, width, 3) of a file whose header was read before.

    Raises UserError if the file is damaged, or its size is no longer that of `header`.
    """
    try:
        pixels = turned(to_rgb(limits.read(path)), header.orientation)
    except Exception as error:
        raise _user_error(path, error) from None
    if pixels.shape[:2] != header.size:
        raise UserError(f"{path} has changed while it was being read.")
    return pixels


def to_rgb(data: bytes) -> np.ndarray:
    """The stored image of a file's bytes: uint8 (H, W, 3).

    16-bit channels keep their upper 8 bits, alpha is dropped, and the first of several frames is decoded. Raises
    ValueError and Pillow's errors for damaged or too large images, and for 32 bits a channel.
    """
    if data.startswith(limits.JPEG):
        limits.check_scans(data)
        data = jpeg.completed(data)
    with limits.open_image(io.BytesIO(data), FORMATS) as image:
        if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG"):  # Pillow would clip it
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in DEEP_MODES:
            raise ValueError("it has 32 bits a channel: scale it to 8")
        return np.asarray(image.convert("RGB"))


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A stored image (H, W, ...) of this EXIF orientation, upright, as viewers show it."""
    rows, columns, exchange = TURNS.get(orientation, (False, False, False))
    pixels = pixels[:: -1 if rows else 1, :: -1 if columns else 1]
    return pixels.swapaxes(0, 1) if exchange else pixels


def stored_region(
    region: tuple[int, int, int, int], stored_size: tuple[int, int], orientation: int
) -> tuple[int, int, int, int]:
    """Where a region of the upright image, (top, left, height, width), lies in the stored image of (height, width)."""
    rows, columns, exchange = TURNS.get(orientation, (False, False, False))
    top, left, height, width = region
    if exchange:
        top, left, height, width = left, top, width, height
    top = stored_size[0] - top - height if rows else top
    left = stored_size[1] - left - width if columns else left
    return top, left, height, width


def read_orientation(image: Image.Image, file: BinaryIO) -> int:
    """The EXIF orientation of an image that is not decoded yet, opened from `file`; 1 if it has none."""
    try:
        # A PNG may store EXIF after the pixels, and Pillow decodes them to look for it. So without an EXIF chunk, the
        # base class is asked, which looks only at what has been read.
        absent = image.format == "PNG" and "exif" not in image.info and not _has_exif_chunk(file)
        orientation = (Image.Image.getexif(image) if absent else image.getexif()).get(ORIENTATION)
        return orientation if orientation in TURNS else 1
    except Exception:  # damaged EXIF says nothing, and the pixels may be intact
        return 1


def _has_exif_chunk(file: BinaryIO) -> bool:
    position = file.tell()
    try:
        file.seek(len(limits.PNG))
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return True
            file.seek(length + 4, 1)
        return False
    finally:
        file.seek(position)


def _user_error(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} {why_unreadable(error)}")


def why_unreadable(error: Exception, formats: tuple[str, ...] = FORMATS) -> str:
    """What an error of reading an image of one of `formats` says about the file: "is damaged (...)."."""
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own limit is higher, but may be hit first
        return f"{error if isinstance(error, limits.TooLarge) else limits.TOO_LARGE}."
    if isinstance(error, Image.UnidentifiedImageError):
        return f"is not a readable {', '.join(formats[:-1])} or {formats[-1]} file."
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})."
    return f"is damaged ({' '.join(str(error).split()) or type(error).__name__})."
