"""The annotated images: their headers, checked before anything is drawn. Their pixels are not decoded."""

import io
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from isnet_jax.datasets import decoding
from isnet_jax.runtime import limits

USUAL_SUFFIXES = {  # by Pillow's names of formats
    **{"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp"},
    **{"BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif", "AVIF": ".avif"},
}


class ImageError(ValueError):
    """An image that cannot be used. The message is a noun phrase, a kind of findings."""


class Header(NamedTuple):
    """What is known of an image before it is decoded."""

    size: tuple[int, int]  # (height, width) as stored
    orientation: int  # as in EXIF; 1 is upright
    suffix: str  # of its format


class Fit(NamedTuple):
    """How annotations lie on an image."""

    size: tuple[int, int]  # (height, width) of what was annotated
    is_turned: bool | None  # whether EXIF orientation had been applied; None if there is nothing to apply


def read_header(image: Path | bytes) -> Header:
    """The header of an image file, or of an encoded image; raises ImageError."""
    try:
        if isinstance(image, bytes):
            return _header(io.BytesIO(image))
        limits.check_file(image)
        with image.open("rb") as file:
            return _header(file)
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"images, each of which {error if isinstance(error, limits.TooLarge) else limits.TOO_LARGE}"
        ) from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"images that are not {', '.join(decoding.FORMATS)} files: convert them") from None
    except OSError as error:
        raise ImageError(f"images that cannot be read ({error.strerror or 'damaged'})") from None
    except Exception:  # Pillow raises a wide mix on damaged files
        raise ImageError("images that are damaged") from None


def _header(file: BinaryIO) -> Header:
    with limits.open_image(file, decoding.FORMATS) as image:
        orientation = decoding.read_orientation(image, file)
        return Header((image.height, image.width), orientation, USUAL_SUFFIXES[image.format or ""])


def tells(header: Header, size: tuple[int, int] | None) -> bool | None:
    """Whether objects were drawn on the image as EXIF turns it, if the annotated size tells; else None."""
    is_sideways = header.orientation >= 5 and header.size[0] != header.size[1]
    return size == header.size[::-1] if is_sideways and size is not None else None


def fit(header: Header, size: tuple[int, int] | None, is_upright: bool) -> Fit:
    """How objects lie that were drawn on an image of `size`, (height, width), if that is known.

    is_upright: whether they were drawn on the image as EXIF turns it, where the size does not tell. Raises ImageError
    if they do not fit the image.
    """
    upright = header.size[::-1] if header.orientation >= 5 else header.size
    if size not in (None, header.size, upright):
        raise ImageError("images of another size than annotated")
    if header.orientation == 1:
        return Fit(header.size, None)
    is_turned = tells(header, size)
    is_upright = is_upright if is_turned is None else is_turned
    return Fit(upright if is_upright else header.size, is_upright)
