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
UPRIGHT = False, False, False
TILES_ADVICE = f" predict --tile=1024 cuts images of up to {limits.MAX_TILED_PIXELS // 10**6} megapixels."
BITS, COMPRESSION, PLANES = 258, 259, 284  # TIFF tags
TIFF_STARTS = b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"
# Suffixes of photographs and films that Pillow does not read.
UNREADABLE = (".heic", ".heif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".psd", ".mp4", ".mov", ".avi")
DEEP_MODES = ("I", "F")  # of Pillow: 32 bits, without a scale
BAND_PIXELS = 2**22  # converted at a time: a large image is in memory twice, not four times


class Header(NamedTuple):
    """The facts about an image that are known before its pixels are decoded."""

    size: tuple[int, int]  # (height, width) of the upright image
    orientation: int  # of the stored image, as in EXIF; 1 is upright


def read_header(path: Path, max_pixels: int | None = None) -> Header:
    """The header of an image file, read without decoding pixels.

    Raises UserError if the file cannot be read, is not an image of FORMATS, or has more than `max_pixels`, by default
    limits.MAX_PIXELS.
    """
    try:
        limits.check_file(path, max_pixels)
        with path.open("rb") as file, limits.open_image(file, FORMATS, max_pixels) as image:
            orientation = read_orientation(image, file)
            size = stored_size(image, orientation)
    except Exception as error:  # Pillow raises a wide mix on damaged files
        is_bomb = isinstance(error, Image.DecompressionBombError)
        raise _user_error(path, error, TILES_ADVICE if is_bomb and not max_pixels else "") from None
    return Header(size[::-1] if orientation >= 5 else size, orientation)


def decode(path: Path, header: Header, max_pixels: int | None = None) -> np.ndarray:
    """The upright RGB image uint8 (height, width, 3) of a file whose header was read before.

    Raises UserError if the file is damaged, its size is no longer that of `header`, or as `read_header` does.
    """
    try:
        pixels = turned(to_rgb(limits.read(path, max_pixels), max_pixels), header.orientation)
    except Exception as error:
        raise _user_error(path, error) from None
    if pixels.shape[:2] != header.size:
        raise UserError(f"{path} has changed while it was being read.")
    return pixels


def to_rgb(data: bytes, max_pixels: int | None = None) -> np.ndarray:
    """The stored image of a file's bytes: uint8 (H, W, 3).

    16-bit channels keep their upper 8 bits, alpha is dropped, and the first of several frames is decoded. Raises
    ValueError and Pillow's errors for damaged or too large images, and for 32 bits a channel.
    """
    if data.startswith(limits.JPEG):
        limits.check_size(*jpeg.size(data), max_pixels)
        limits.check_scans(data)
        data = jpeg.completed(data)
    with limits.open_image(io.BytesIO(data), FORMATS, max_pixels) as image:
        orientation = read_orientation(image, io.BytesIO(data)) if image.format == "TIFF" else 1
        check_tiff(image)
        if max_pixels and image.format == "TIFF":
            limits.allocate(image, max_pixels)
        pixels = rgb(image)
    rows, columns, exchange = TURNS.get(orientation, UPRIGHT)  # Pillow has turned a TIFF
    pixels = pixels.swapaxes(0, 1) if exchange else pixels
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]


def rgb(image: Image.Image) -> np.ndarray:
    """The pixels of a Pillow image, uint8 (H, W, 3), as `to_rgb` describes them; raises ValueError for 32 bits."""
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG"):  # Pillow would clip it
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in DEEP_MODES:
        raise ValueError("it has 32 bits a channel: scale it to 8")
    image.load()
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, BAND_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = np.asarray(band.convert("RGB"))
    return pixels


def check_tiff(image: Image.Image) -> None:
    """Raises ValueError for a TIFF that Pillow would misread: bands of 16 bits one after the other, uncompressed."""
    tags = getattr(image, "tag_v2", {})
    if image.format == "TIFF" and tags.get(PLANES) == 2 and tags.get(COMPRESSION, 1) == 1 and max(bits(image)) > 8:
        raise ValueError("it is a planar TIFF of 16 bits: save it with interleaved channels")


def bits(image: Image.Image) -> tuple[int, ...]:
    """The bits of each channel of a TIFF."""
    value = getattr(image, "tag_v2", {}).get(BITS, 1)
    return value if isinstance(value, tuple) else (value,)


def stored_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """(height, width) of an image as it is stored; Pillow turns the size of a TIFF."""
    return image.size if image.format == "TIFF" and orientation >= 5 else image.size[::-1]


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A stored image (H, W, ...) of this EXIF orientation, upright, as viewers show it."""
    rows, columns, exchange = TURNS.get(orientation, UPRIGHT)
    pixels = pixels[:: -1 if rows else 1, :: -1 if columns else 1]
    return pixels.swapaxes(0, 1) if exchange else pixels


def stored_region(
    region: tuple[int, int, int, int], stored_size: tuple[int, int], orientation: int
) -> tuple[int, int, int, int]:
    """Where a region of the upright image, (top, left, height, width), lies in the stored image of (height, width)."""
    rows, columns, exchange = TURNS.get(orientation, UPRIGHT)
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


def _user_error(path: Path, error: Exception, advice: str = "") -> UserError:
    is_empty = isinstance(error, Image.UnidentifiedImageError) and not path.stat().st_size
    return UserError(f"{path} {'is empty.' if is_empty else why_unreadable(error)}{advice}")


def why_unreadable(error: Exception, formats: tuple[str, ...] = FORMATS, data: bytes = b"") -> str:
    """What an error of reading an image of one of `formats` says about the file: "is damaged (...)."."""
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own limit is higher, but may be hit first
        return f"{error if isinstance(error, limits.TooLarge) else limits.TOO_LARGE}."
    if isinstance(error, MemoryError):
        return "does not fit in memory."
    if isinstance(error, Image.UnidentifiedImageError):
        if data.startswith(TIFF_STARTS):
            return "is a TIFF of bands or numbers that cannot be read: save it with 8 bits, in grey or RGB."
        return f"is not a readable {', '.join(formats[:-1])} or {formats[-1]} file."
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})."
    return f"is damaged ({' '.join(str(error).split()) or type(error).__name__})."
