"""PNG, JPEG, RIFF (WebP) and zip files taken apart into (kind, content) parts and put together again.

Lengths and checksums are those of the content. Parts that are no valid file can be put together as well.
"""

import io
import struct
import zipfile
import zlib

PNG_SIGNATURE, JPEG_START, JPEG_END = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"\xff\xd9"
START_OF_SCAN, RESTART_MARKERS = 0xDA, range(0xD0, 0xD8)


def image_format(data: bytes) -> str:
    """The format that the signature names: "png", "jpeg" or "webp", else "bmp"."""
    return {b"\x89PN": "png", b"\xff\xd8\xff": "jpeg", b"RIF": "webp"}.get(data[:3], "bmp")


def split_png(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG: (type, content)."""
    parts, at = [], len(PNG_SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        parts.append((kind, data[at + 8 : at + 8 + length]))
        at += 12 + length
    return parts


def join_png(parts: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks."""
    return PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )


def split_jpeg(data: bytes) -> list[tuple[int, bytes]]:
    """The segments of a JPEG: (marker, content); a scan's entropy-coded data belongs to the segment of its header."""
    parts, at = [], len(JPEG_START)
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != JPEG_END[1]:
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        if data[at + 1] == START_OF_SCAN:
            inside_scan = (b"\0", *(bytes([marker]) for marker in RESTART_MARKERS))  # what may follow 0xFF there
            while end < len(data) and (data[end] != 0xFF or data[end + 1 : end + 2] in inside_scan):
                end += 1
        parts.append((data[at + 1], data[at + 4 : end]))
        at = end
    return parts


def join_jpeg(parts: list[tuple[int, bytes]]) -> bytes:
    """A JPEG of these segments."""

    def header_length(marker: int, content: bytes) -> int:
        if marker == START_OF_SCAN:
            return 2 + 4 + 2 * content[0] if content else 2
        return 2 + len(content)

    segments = [
        bytes([0xFF, marker]) + struct.pack(">H", header_length(marker, content) % 65536) + content
        for marker, content in parts
    ]
    return JPEG_START + b"".join(segments) + JPEG_END


def split_webp(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a WebP: (type, content)."""
    parts, at = [], 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        parts.append((kind, data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return parts


def join_webp(parts: list[tuple[bytes, bytes]]) -> bytes:
    """A WebP of these chunks."""
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2) for kind, content in parts
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def split_zip(data: bytes) -> list[tuple[str, bytes]]:
    """The members of a zip archive: (name, content)."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return [(name, file.read(name)) for name in file.namelist()]


def join_zip(parts: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of these members; of those with the same name, the first."""
    stream, names = io.BytesIO(), set()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, content in parts:
            if name not in names:  # zipfile warns
                file.writestr(name, content)
                names.add(name)
    return stream.getvalue()
