"""What an image may cost: bounds that are checked before anything is decoded. None of this imports TensorFlow.

A few bytes can declare gigapixels, ask for a thousand passes over them, or hold texts that inflate without end.
"""

import errno
import os
import stat
import struct
import warnings

from PIL import Image

MAX_PIXELS, MAX_SIDE = 100_000_000, 65_500  # no JPEG is longer
MAX_BYTES = 9 * MAX_PIXELS  # of a file: 16 bits and alpha take 8 a pixel
MAX_SCANS = 100  # of a JPEG, each a pass over all pixels; encoders make about ten
MAX_RUN_LENGTH_PIXELS = 10_000_000  # of a BMP in run lengths, which Pillow decodes in Python
PIXEL_CHUNKS = b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"  # what the pixels of a PNG depend on
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
TOO_LARGE = f"has more than {MAX_PIXELS // 10**6} megapixels, or than {MAX_SIDE} in a row or column, the most accepted"

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS takes its place


class TooLarge(Image.DecompressionBombError):
    """An image beyond the bounds: "has more than ..."; as Pillow's own error, since its bound may be what stops us."""

    def __init__(self, text=TOO_LARGE):
        super().__init__(text)


def check_size(width, height):
    """Raises TooLarge."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise TooLarge


def read(path):
    """The bytes of a regular file; raises OSError, or TooLarge for one that no image within the bounds needs."""
    check_file(path)
    with open(path, "rb") as file:
        return file.read()


def check_file(path):
    """Raises OSError for what is no regular file, as a pipe, and TooLarge as `read` does."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    if found.st_size > MAX_BYTES:
        raise TooLarge(f"has more than {MAX_BYTES // 10**6} MB, the most accepted")


def open_image(file, formats):
    """A Pillow image of a path or a binary file, not decoded yet.

    Raises what Pillow raises for a file that is damaged or of other formats, DecompressionBombError for a large one.
    """
    image = Image.open(file, formats=formats)
    check_size(*image.size)
    if image.tile and image.tile[0][0] == "bmp_rle" and image.width * image.height > MAX_RUN_LENGTH_PIXELS:
        raise TooLarge(
            f"is a compressed BMP of more than {MAX_RUN_LENGTH_PIXELS // 10**6} megapixels, the most accepted"
        )
    return image


def decodable(data):
    """The bytes of a JPEG, or of a PNG without what its pixels do not depend on, for any decoder.

    Raises ValueError for another format, and for an image that is damaged or too large.
    """
    try:
        if data.startswith(JPEG):
            check_size(*_jpeg_size(data))
            check_scans(data)
            return data
        if not data.startswith(PNG) or data[12:16] != b"IHDR" or len(data) < 33:
            raise ValueError("it is neither a JPEG nor a PNG image")
        check_size(*struct.unpack_from(">II", data, 16))
        return _pixel_chunks(data)
    except TooLarge as error:
        raise ValueError(f"it {error}") from None


def check_scans(data):
    """Raises TooLarge for a JPEG of too many scans; their marker does not occur within them."""
    if data.count(b"\xff\xda") > MAX_SCANS:
        raise TooLarge(f"has more than {MAX_SCANS} scans, the most accepted")


def _jpeg_size(data):
    """Width and height, found as libjpeg finds them, so that it will see no others; raises ValueError."""
    at = len(JPEG)
    while True:
        at = data.find(b"\xff", at)
        while 0 <= at < len(data) and data[at] == 0xFF:
            at += 1
        if at < 0 or at + 8 > len(data):
            raise ValueError("it is a JPEG image without a header")
        kind, at = data[at], at + 1
        if kind in range(0xC0, 0xD0) and kind not in (0xC4, 0xC8, 0xCC):  # SOF; tables and extensions are not
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        if kind in (0xD8, 0xD9, 0xDA):  # a start, the end or a scan before any SOF
            raise ValueError("it is a damaged JPEG image")
        if kind not in (0x00, 0x01, *range(0xD0, 0xD8)):  # these have no content
            at += max(struct.unpack_from(">H", data, at)[0], 2)


def _pixel_chunks(data):
    """A PNG without other chunks: decoders inflate texts, and OpenCV makes room for whatever length a chunk claims."""
    parts, at, kind = [data[:8]], 8, b""
    while at < len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at) if at + 12 <= len(data) else (len(data), b"")
        if at + 12 + length > len(data):
            raise ValueError("it is a PNG image that is cut short")
        if kind == b"IHDR" and at > 8:
            raise ValueError("it is a PNG image with two headers")
        if kind in PIXEL_CHUNKS:
            parts.append(data[at : at + 12 + length])
        at += 12 + length
    return b"".join(parts) if sum(map(len, parts)) < len(data) else data
