"""Photographs as people have them: any colour mode and turn -> upright 8-bit RGB. None of this imports TensorFlow."""

import io
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image

from isnet_jax import limits
from isnet_jax.errors import UserError

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
}  # what undoes each orientation


class Header(NamedTuple):
    """size (height, width) of the upright image, and the EXIF orientation it is stored in (1: upright)."""

    size: tuple
    orientation: int


def read_header(path):
    """Header of an image file, of which nothing is decoded; raises UserError if it cannot be read or is too large."""
    try:
        limits.check_file(path)
        with limits.open_image(path, FORMATS) as image:
            orientation = _orientation(image)
            size = image.size if orientation >= 5 else image.size[::-1]
    except Exception as error:  # Pillow raises a wide mix on damaged files
        raise _mistake(path, error) from None
    return Header(size, orientation)


def decode(path, header):
    """uint8 (height, width, 3) RGB, upright; raises UserError if the file is damaged or no longer what its header was.

    Of 16 bits the upper 8 are taken, alpha is dropped, of several frames the first counts.
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
        raise _mistake(path, error) from None
    pixels = np.asarray(image)
    if pixels.shape[:2] != header.size:
        raise UserError(f"{path} has changed while it was being read.")
    return pixels


def _orientation(image):
    try:
        # PNG may keep EXIF behind the pixels; to look for it, Pillow would decode them.
        behind = image.format == "PNG" and "exif" not in image.info and not _has_exif_chunk(image.filename)
        exif = Image.Image.getexif(image) if behind else image.getexif()
        return exif.get(ORIENTATION) if exif.get(ORIENTATION) in UPRIGHT else 1
    except Exception:  # damaged EXIF tells nothing, and the pixels may be sound
        return 1


def _has_exif_chunk(path):
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return True
            file.seek(length + 4, 1)
    return False


def _mistake(path, error):
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own limit is higher, but it may be what stops us
        return UserError(f"{path} {error if isinstance(error, limits.TooLarge) else limits.TOO_LARGE}.")
    if isinstance(error, Image.UnidentifiedImageError):
        return UserError(f"{path} is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image.")
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"{path} cannot be read ({error.strerror}).")
    return UserError(f"{path} is damaged ({' '.join(str(error).split()) or type(error).__name__}).")
