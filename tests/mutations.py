"""Damaged and hostile files, mutated from valid ones.

Every function takes a `random.Random`, so that each mutant can be made again from its seed.
"""

import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from containers import (
    image_format,
    join_jpeg,
    join_png,
    join_webp,
    join_zip,
    split_jpeg,
    split_png,
    split_webp,
    split_zip,
)

BYTES = [0, 1, 0x7F, 0x80, 0xFE, 0xFF]
NUMBERS = [
    *[0, 1, 2, 7, 8, 127, 128, 255, 256, 999, 1001, 4096, 32767, 32768, 65500, 65535, 65536, 10**6],
    *[2**24 - 1, 2**27, 2**31 - 1, 2**31, 2**32 - 8, 2**32 - 1],
]
TEXTS = [
    "",
    ".",
    "..",
    "../../escaped",
    "/tmp/escaped",
    "a/b",
    "a\0b",
    "\ud800",
    "\x1b[2J",
    "NaN",
    "-1",
    "x" * 5000,
    "<script>alert(1)</script>",
    "'\"&<img src=x onerror=alert(1)>",
    "gs://bucket/x",
    "__class__",
    "scenes",
]
VALUES = [
    *[None, True, False],
    *[0, -1, 1, 255, 256, 2**31, 2**53, 2**63, 2**64, 10**400],
    *[0.5, -0.0, 1e308, -1e308, 1e400, float("nan")],
    *[[], {}, [[]], [0], [[0]], {"a": 1}, {"": {}}],
    *TEXTS,
]
BMP_FIELDS = [(10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 4), (34, 4), (46, 4)]  # (offset, bytes)
WEBP_FIELDS = {
    b"VP8X": [(4, 3), (7, 3)],
    b"VP8 ": [(6, 2), (8, 2)],
    b"VP8L": [(1, 4)],
    b"ANMF": [(0, 3), (3, 3), (6, 3), (9, 3)],
}
NPY_DTYPES = ["|O", "<f8", "<U1000000", "<U0", "|S0", "|V8", "<M8[ns]", "<c16", ">i4", "<i8", "|b1"]
NPY_HEADERS = [
    "",
    "{}",
    "[" * 9000,
    "-" * 9000 + "1",
    "{'shape': (), 'descr': None}",
    "9" * 9000,
    "__import__('os').system('touch escaped')",
]

Part = tuple[Any, bytes]  # (kind, content), as in containers.py


def mutate_bytes(data: bytes, rng: Random, corpus: Sequence[bytes] = (), interesting: Sequence[int] = BYTES) -> bytes:
    """`data` with bytes changed, cut, duplicated, moved, overwritten by numbers, or spliced in from the corpus."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 30])):
        at = rng.randrange(len(data) or 1)
        size = rng.choice([1, 2, 4, 8, 100])
        match rng.randrange(8):
            case 0:
                data[at : at + 1] = [rng.choice(interesting)]
            case 1 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                data[at : at + size] = rng.choice([b"", data[at : at + size] * 2, bytes(size), b"\xff" * size])
            case 3:
                data[at : at + size] = data[at + size : at + 2 * size]
            case 4 if rng.random() < 0.2:
                del data[at:]
            case 5:
                number = struct.pack(rng.choice("<>") + "Q", rng.choice(NUMBERS))
                size = rng.choice([2, 3, 4])
                data[at : at + size] = number[:size] if number[-1] == 0 else number[-size:]
            case 6 if corpus:
                other = rng.choice(corpus)
                start = rng.randrange(len(other) or 1)
                data[at : at + rng.choice([0, size])] = other[start : start + rng.choice([size, 20 * size])]
            case 7:
                start = rng.randrange(len(data) or 1)
                data[at : at + size] = data[start : start + size]
    return bytes(data)


def mutate_parts(
    parts: Sequence[Part],
    rng: Random,
    corpus: Sequence[Sequence[Part]],
    mutate_content: Callable[[Any, bytes], bytes],
) -> list[Part]:
    """`parts` with some duplicated, removed, exchanged, taken from the corpus, or changed by `mutate_content`."""
    parts = list(parts)
    for _ in range(rng.choice([1, 1, 2, 4])):
        i, j = rng.randrange(len(parts) or 1), rng.randrange(len(parts) or 1)
        match rng.randrange(7) if parts else 4:
            case 0:
                parts.insert(j, parts[i])
            case 1:
                del parts[i]
            case 2:
                parts[i], parts[j] = parts[j], parts[i]
            case 3:
                parts[i : i + 1] = [parts[i]] * rng.choice([2, 10, 150])
            case 4:
                parts.insert(j, rng.choice(rng.choice(corpus)))
            case _:
                kind, content = parts[i]
                parts[i] = kind, mutate_content(kind, content)
    return parts


def replace_numbers(content: bytes, rng: Random, fields: Sequence[tuple[int, int]], byteorder: str) -> bytes:
    """`content` with one or two of the integers at `fields`, (offset, bytes) each, replaced."""
    content = bytearray(content)
    for offset, size in rng.sample(fields, rng.randint(1, min(2, len(fields)))):
        number = rng.choice(NUMBERS + [rng.randrange(1, 70)] * 8)
        content[offset : offset + size] = (number % 256**size).to_bytes(size, byteorder)
    return bytes(content)


def mutate_image(data: bytes, rng: Random, corpus: Sequence[bytes]) -> bytes:
    """A PNG, JPEG, WebP or BMP damaged anywhere, or in its parts, with their lengths and checksums made valid again."""
    kind = image_format(data)
    same_format = [other for other in corpus if image_format(other) == kind]
    if rng.random() < 0.4:
        return mutate_bytes(data, rng, corpus)
    if kind == "bmp":
        return replace_numbers(data, rng, BMP_FIELDS, "little")
    split, join, mutate_content = {
        "png": (split_png, join_png, _mutate_png_chunk),
        "jpeg": (split_jpeg, join_jpeg, _mutate_jpeg_segment),
        "webp": (split_webp, join_webp, _mutate_webp_chunk),
    }[kind]
    return join(
        mutate_parts(
            split(data),
            rng,
            [split(other) for other in same_format],
            lambda kind, content: mutate_content(kind, content, rng),
        )
    )


def _mutate_png_chunk(kind: bytes, content: bytes, rng: Random) -> bytes:
    if kind == b"IHDR" and rng.random() < 0.8:
        if rng.random() < 0.3:  # depth, colour type, compression, filter, interlace
            return content[:8] + replace_numbers(content[8:], rng, [(i, 1) for i in range(5)], "big")
        return replace_numbers(content, rng, [(0, 4), (4, 4)], "big")
    if kind in (b"IDAT", b"fdAT", b"iCCP", b"zTXt") and rng.random() < 0.7:
        start = {b"IDAT": 0, b"fdAT": 4}.get(kind, content.find(b"\0") + 2)
        try:
            raw = zlib.decompress(content[start:])
        except zlib.error:
            return mutate_bytes(content, rng)
        raw = rng.choice([mutate_bytes(raw, rng), raw + bytes(rng.choice(NUMBERS[:16])), raw[: len(raw) // 2]])
        return content[:start] + zlib.compress(raw)
    return mutate_bytes(content, rng)


def _mutate_jpeg_segment(marker: int, content: bytes, rng: Random) -> bytes:
    if 0xC0 <= marker <= 0xC2 and rng.random() < 0.7:  # the frame header: height and width
        return replace_numbers(content, rng, [(1, 2), (3, 2)], "big")
    return mutate_bytes(content, rng)


def _mutate_webp_chunk(kind: bytes, content: bytes, rng: Random) -> bytes:
    if rng.random() < 0.5:
        fields = WEBP_FIELDS.get(kind)
        if fields and len(content) >= 10:
            return replace_numbers(content, rng, fields, "little")
    return mutate_bytes(content, rng)


def mutate_zip(
    data: bytes,
    rng: Random,
    corpus: Sequence[bytes],
    mutate_content: Callable[[bytes, Random], bytes] = mutate_bytes,
) -> bytes:
    """A zip archive damaged anywhere, or in its members, with their checksums made valid again."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng, corpus)
    members = mutate_parts(
        split_zip(data),
        rng,
        [split_zip(other) for other in corpus],
        lambda _, content: mutate_content(content, rng),
    )
    return join_zip(members, zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED)


def mutate_npy(content: bytes, rng: Random) -> bytes:
    """An .npy file damaged anywhere, or with another header whose stated length is right."""
    if rng.random() < 0.4 or content[:6] != b"\x93NUMPY":
        return mutate_bytes(content, rng)
    length = struct.unpack_from("<H", content, 8)[0]
    header, body = content[10 : 10 + length].decode("latin1"), content[10 + length :]
    start = header.find("'shape': ") + 9
    match rng.randrange(4):
        case 0 if start > 8:
            shape = tuple(rng.choice([*NUMBERS, 2**62, 10**30, -1, rng.randrange(9)]) for _ in range(rng.randrange(5)))
            header = f"{header[:start]}{shape}, }}"
        case 1 if "'descr': " in header and ", 'fortran" in header:
            at = header.index("'descr': ") + 9
            header = header[:at] + repr(rng.choice(NPY_DTYPES)) + header[header.index(", 'fortran") :]
        case 2:
            header = rng.choice(NPY_HEADERS)
        case 3:
            body = mutate_bytes(body, rng)
    return content[:8] + struct.pack("<H", len(header)) + header.encode("latin1") + body


def mutate_json(content: bytes, rng: Random, corpus: Sequence[bytes] = ()) -> bytes:
    """A JSON text damaged anywhere, or with other values and names in its tree."""
    if rng.random() < 0.3:
        return mutate_bytes(content, rng, corpus)
    tree = json.loads(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        tree = _mutate_tree(tree, rng)
    if rng.random() < 0.02:
        tree = json.loads("[" * 40 + "]" * 40)
    text = json.dumps(tree)
    if rng.random() < 0.02:
        text = text.replace("1", rng.choice(["[" * 100000, "1" * 5000, "{" * 900]), 1)
    return text.encode()


def _mutate_tree(tree: Any, rng: Random) -> Any:
    """The tree with one node changed; nodes near the root are as likely as those in long lists."""
    if not isinstance(tree, (dict, list)) or not tree or rng.random() < 0.12:
        return rng.choice([*VALUES, [tree], {"a": tree}, [tree] * 300])
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    key, tree = rng.choice(keys), tree.copy()
    match rng.randrange(8):
        case 0:
            del tree[key]
        case 1 if isinstance(tree, dict):
            tree[rng.choice(TEXTS)] = tree.pop(key)
        case 1:
            tree.insert(key, rng.choice(VALUES))
        case 2:
            tree[key] = tree[rng.choice(keys)]
        case _:
            tree[key] = _mutate_tree(tree[key], rng)
    return tree
