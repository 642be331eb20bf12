"""The annotated images: their headers, checked before anything is drawn. Their pixels are not decoded."""

import io
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from isnet_jax.runtime import limits

SUFFIXES = (".jpg", ".jpeg", ".png")
FORMATS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png"}  # Pillow's name: the usual suffix
ORIENTATION = 274  # the EXIF tag; 1 is upright


class ImageError(ValueError):
    """An image that cannot be used. The message is a noun phrase, a kind of findings."""


class Header(NamedTuple):
    """What is known of an image before it is decoded."""

    size: tuple[int, int]  # (height, width) as stored
    orientation: int  # as in EXIF
    suffix: str  # of its format


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
        raise ImageError("images that are not JPEG or PNG files: convert them") from None
    except OSError as error:
        raise ImageError(f"images that cannot be read ({error.strerror or 'damaged'})") from None
    except Exception:  # Pillow raises a wide mix on damaged files
        raise ImageError("images that are damaged") from None


def _header(file: BinaryIO) -> Header:
    with limits.open_image(file, ("JPEG", "PNG")) as image:
        # Without a look at the info, Pillow would decode a PNG to look for EXIF behind the pixels.
        orientation = image.getexif().get(ORIENTATION) if "exif" in image.info else None
        known = orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
        return Header((image.height, image.width), known, FORMATS[image.format or ""])


def check(header: Header, size: tuple[int, int] | None, is_upright: bool) -> None:
    """Raises ImageError if objects drawn on an image of `size`, (height, width), do not fit the stored pixels.

    is_upright: whether they were drawn on the image as EXIF turns it.
    """
    turned = f"the EXIF orientation {header.orientation}"
    advice = "save the images turned, without EXIF (mogrify -auto-orient), where the annotations fit them so"
    if size and size != header.size:
        if header.orientation >= 5 and size == header.size[::-1]:
            raise ImageError(f"images stored with {turned}, which the annotated size includes: {advice}")
        raise ImageError("images of another size than annotated")
    if is_upright and header.orientation != 1:
        raise ImageError(f"images stored with {turned}, as which the annotator saw them: {advice}")
