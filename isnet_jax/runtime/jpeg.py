"""The structure of JPEG files: size, scans, and where the image ends, found the way libjpeg finds them."""

import io
import re
import struct
from collections.abc import Iterator

from PIL import Image

START, END, SCAN = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"  # markers: of image, image, and its next pass
MAX_MARKERS = 10_000  # before a file counts as damaged; encoders write a few dozen
TAILS = b"\x00" * 64, b"\xaa" * 64
# A marker is 0xff, any number of times, and a byte. Inside a scan, 0xff is followed by 0; restarts, 0xd0 to 0xd7,
# belong to it. The expression takes the last 0xff only, since repetition would take quadratic time.
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")


def size(data: bytes) -> tuple[int, int]:
    """(width, height) of a JPEG; raises ValueError."""
    for kind, at in _markers(data):
        if kind in range(0xC0, 0xD0) and kind not in (0xC4, 0xC8, 0xCC):  # SOF; the three hold tables and extensions
            if at + 7 > len(data):
                break
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        if kind in (0xD8, 0xD9, 0xDA):  # a start, the end or a scan before any SOF
            raise ValueError("it is a damaged JPEG image")
    raise ValueError("it is a JPEG image without a header")


def has_more_scans(data: bytes, limit: int) -> bool:
    """Whether the image takes more than `limit` passes. What follows its end, as in motion photographs, is not counted.

    Raises ValueError for a damaged JPEG.
    """
    if data.count(SCAN) <= limit:  # an upper bound: the marker cannot occur inside a scan
        return False
    return sum(kind == SCAN[1] for kind, _ in _markers(data)) > limit


def completed(data: bytes) -> bytes:
    """A JPEG with its end marker, which some cameras and recovery tools leave out and some decoders need.

    Raises ValueError if pixels are missing before the end, too, and Pillow's errors.
    """
    markers = list(_markers(data))
    if markers and markers[-1][0] == END[1]:
        return data
    pixels = data.rstrip(b"\0")  # room that was reserved and not written must not count as pixels
    if pixels.endswith(b"\xff"):  # before a 0 that belongs to it, or half of the end marker
        pixels = pixels + b"\0" if len(pixels) < len(data) else pixels[:-1]
    kind, at = next(reversed(list(_markers(pixels))), (0, 0))
    if kind != SCAN[1] or at + int.from_bytes(pixels[at : at + 2], "big") >= len(pixels):
        raise ValueError("it ends early")  # in a table, or in a header between scans
    # If the last scan is whole, a decoder ignores what follows it. Otherwise it takes that for pixels.
    first, second = (Image.open(io.BytesIO(pixels + tail + END), formats=("JPEG",)).tobytes() for tail in TAILS)
    if first != second:
        raise ValueError("it ends early")
    return pixels + END


def _markers(data: bytes) -> Iterator[tuple[int, int]]:
    """The markers of the image after its start, and the position after each; raises ValueError for a damaged JPEG."""
    at = len(START)
    for _ in range(MAX_MARKERS):
        match = _MARKER.search(data, at)
        if not match:
            return
        kind, at = match[1][0], match.end()
        if kind < 0xC0:
            raise ValueError("it is a damaged JPEG image: it has an unknown marker")
        yield kind, at
        if kind == END[1] or at + 2 > len(data):
            return
        at += max(struct.unpack_from(">H", data, at)[0], 2)
    raise ValueError(f"it is a damaged JPEG image: it has more than {MAX_MARKERS} markers")
