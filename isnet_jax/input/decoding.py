"""Decoding of photographs of any colour mode and orientation to upright 8-bit RGB. It needs no TensorFlow."""

import io
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from isnet_jax.errors import UserError
from isnet_jax.runtime import limits

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
ORIENTATION = 274  # the EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # orientation: the transformation that undoes it


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
        with limits.open_image(path, FORMATS) as image:
            orientation = _orientation(image, path)
            size = image.size if orientation >= 5 else image.size[::-1]
    except Exception as error:  # Pillow raises a wide mix on damaged files
        raise _user_error(path, error) from None
    return Header(size, orientation)


def decode(path: Path, header: Header) -> np.ndarray:
    """The upright RGB image uint8 (height, width, 3) of a file whose header was read before.

    16-bit channels keep their upper 8 bits, alpha is dropped, and the first of several frames is decoded. Raises
    UserError if the file is damaged, or its size is no longer that of `header`.
    """
    try:
        data = limits.read(path)
        with limits.open_image(io.BytesIO(data), FORMATS) as image:
            if data.startswith(limits.JPEG):
                limits.check_scans(data)
            if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG"):  # Pillow would clip it
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = image.convert("RGB")
        if header.orientation in UPRIGHT:
            image = image.transpose(UPRIGHT[header.orientation])
    except Exception as error:
        raise _user_error(path, error) from None
    pixels = np.asarray(image)
    if pixels.shape[:2] != header.size:
        raise UserError(f"{path} has changed while it was being read.")
    return pixels


def _orientation(image: Image.Image, path: Path) -> int:
    """The EXIF orientation of the image at `path`, which is not decoded yet; 1 if it has none."""
    try:
        # A PNG may store EXIF after the pixels, and Pillow decodes them to look for it. So without an EXIF chunk, the
        # base class is asked, which looks only at what has been read.
        absent = image.format == "PNG" and "exif" not in image.info and not _has_exif_chunk(path)
        orientation = (Image.Image.getexif(image) if absent else image.getexif()).get(ORIENTATION)
        return orientation if orientation in UPRIGHT else 1
    except Exception:  # damaged EXIF says nothing, and the pixels may be intact
        return 1


def _has_exif_chunk(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return True
            file.seek(length + 4, 1)
    return False


def _user_error(path: Path, error: Exception) -> UserError:
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own limit is higher, but may be hit first
        return UserError(f"{path} {error if isinstance(error, limits.TooLarge) else limits.TOO_LARGE}.")
    if isinstance(error, Image.UnidentifiedImageError):
        return UserError(f"{path} is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image.")
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"{path} cannot be read ({error.strerror}).")
    return UserError(f"{path} is damaged ({' '.join(str(error).split()) or type(error).__name__}).")
