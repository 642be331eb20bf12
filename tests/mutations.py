"""Damaged and hostile files made of sound ones. All take a random.Random, so that every one can be made again."""

import io
import json
import struct
import zipfile
import zlib

BYTES = [0, 1, 0x7F, 0x80, 0xFE, 0xFF]
NUMBERS = [
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    999,
    1001,
    4096,
    32767,
    32768,
    65500,
    65535,
    65536,
    10**6,
    2**24 - 1,
    2**27,
    2**31 - 1,
    2**31,
    2**32 - 8,
    2**32 - 1,
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
    None,
    True,
    False,
    0,
    -1,
    1,
    255,
    256,
    2**31,
    2**53,
    2**63,
    2**64,
    10**400,
    0.5,
    -0.0,
    1e308,
    -1e308,
    1e400,
    float("nan"),
    [],
    {},
    [[]],
    [0],
    [[0]],
    {"a": 1},
    {"": {}},
    *TEXTS,
]


def damaged(data, rng, others=(), interesting=BYTES):
    """Some bytes changed, cut, doubled, moved, overwritten by numbers, or spliced in from another file."""
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
            case 6 if others:
                other = rng.choice(others)
                start = rng.randrange(len(other) or 1)
                data[at : at + rng.choice([0, size])] = other[start : start + rng.choice([size, 20 * size])]
            case 7:
                start = rng.randrange(len(data) or 1)
                data[at : at + size] = data[start : start + size]
    return bytes(data)


def rearranged(parts, rng, others, change):
    """Of a list of (kind, content): some doubled, left out, exchanged, taken from another, or changed by `change`."""
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
                parts.insert(j, rng.choice(rng.choice(others)))
            case _:
                kind, content = parts[i]
                parts[i] = kind, change(kind, content)
    return parts


def with_number(content, rng, places, order):
    """One or two of the integers at `places`, (offset, bytes) each, replaced by others."""
    content = bytearray(content)
    for offset, size in rng.sample(places, rng.randint(1, min(2, len(places)))):
        number = rng.choice(NUMBERS + [rng.randrange(1, 70)] * 8)
        content[offset : offset + size] = (number % 256**size).to_bytes(size, order)
    return bytes(content)


def image(data, rng, others):
    """A PNG, JPEG, WebP or BMP damaged anywhere, or in its parts with lengths and checksums that are right again."""
    kind = image_kind(data)
    same = [other for other in others if image_kind(other) == kind]
    if rng.random() < 0.4:
        return damaged(data, rng, others)
    if kind == "bmp":
        return with_number(
            data, rng, [(10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 4), (34, 4), (46, 4)], "little"
        )
    split, join, change = {
        "png": (png_parts, png, _png_content),
        "jpeg": (jpeg_parts, jpeg, _jpeg_content),
        "webp": (riff_parts, riff, _riff_content),
    }[kind]
    return join(
        rearranged(split(data), rng, [split(other) for other in same], lambda kind, content: change(kind, content, rng))
    )


def image_kind(data):
    return {b"\x89PN": "png", b"\xff\xd8\xff": "jpeg", b"RIF": "webp"}.get(data[:3], "bmp")


def png_parts(data):
    parts, at = [], 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        parts.append((kind, data[at + 8 : at + 8 + length]))
        at += 12 + length
    return parts


def png(parts):
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )


def _png_content(kind, content, rng):
    if kind == b"IHDR" and rng.random() < 0.8:
        if rng.random() < 0.3:  # depth, colour type, compression, filter, interlace
            return content[:8] + with_number(content[8:], rng, [(i, 1) for i in range(5)], "big")
        return with_number(content, rng, [(0, 4), (4, 4)], "big")
    if kind in (b"IDAT", b"fdAT", b"iCCP", b"zTXt") and rng.random() < 0.7:
        head = {b"IDAT": 0, b"fdAT": 4}.get(kind, content.find(b"\0") + 2)
        try:
            raw = zlib.decompress(content[head:])
        except zlib.error:
            return damaged(content, rng)
        raw = rng.choice([damaged(raw, rng), raw + bytes(rng.choice(NUMBERS[:16])), raw[: len(raw) // 2]])
        return content[:head] + zlib.compress(raw)
    return damaged(content, rng)


def jpeg_parts(data):
    """[(marker, content)]; what follows a scan's header belongs to it."""
    parts, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xD9:
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        if data[at + 1] == 0xDA:
            while end < len(data) and (
                data[end] != 0xFF or data[end + 1 : end + 2] in (b"\0", *map(bytes, ([n] for n in range(0xD0, 0xD8))))
            ):
                end += 1
        parts.append((data[at + 1], data[at + 4 : end]))
        at = end
    return parts


def jpeg(parts):
    heads = {0xDA: lambda content: 2 + 4 + 2 * content[0] if content else 2}
    return (
        b"\xff\xd8"
        + b"".join(
            bytes([0xFF, kind])
            + struct.pack(">H", heads.get(kind, lambda content: 2 + len(content))(content) % 65536)
            + content
            for kind, content in parts
        )
        + b"\xff\xd9"
    )


def _jpeg_content(kind, content, rng):
    if 0xC0 <= kind <= 0xC2 and rng.random() < 0.7:
        return with_number(content, rng, [(1, 2), (3, 2)], "big")
    return damaged(content, rng)


def riff_parts(data):
    parts, at = [], 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        parts.append((kind, data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return parts


def riff(parts):
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2) for kind, content in parts
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _riff_content(kind, content, rng):
    if rng.random() < 0.5:
        places = {
            b"VP8X": [(4, 3), (7, 3)],
            b"VP8 ": [(6, 2), (8, 2)],
            b"VP8L": [(1, 4)],
            b"ANMF": [(0, 3), (3, 3), (6, 3), (9, 3)],
        }.get(kind)
        if places and len(content) >= 10:
            return with_number(content, rng, places, "little")
    return damaged(content, rng)


def archive(data, rng, others, change=damaged):
    """A zip archive damaged anywhere, or in its members with checksums that are right again; change(content, rng)."""
    if rng.random() < 0.3:
        return damaged(data, rng, others)
    return zipped(
        rearranged(members(data), rng, [members(other) for other in others], lambda _, content: change(content, rng)),
        zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED,
    )


def members(data):
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return [(name, file.read(name)) for name in file.namelist()]


def zipped(parts, compression=zipfile.ZIP_STORED):
    stream, seen = io.BytesIO(), set()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, content in parts:
            if name not in seen:  # zipfile warns
                file.writestr(name, content)
                seen.add(name)
    return stream.getvalue()


def npy(content, rng, others=()):
    """An .npy file damaged anywhere, or with another header of the right length."""
    if rng.random() < 0.4 or content[:6] != b"\x93NUMPY":
        return damaged(content, rng)
    length = struct.unpack_from("<H", content, 8)[0]
    header, body = content[10 : 10 + length].decode("latin1"), content[10 + length :]
    start = header.find("'shape': ") + 9
    match rng.randrange(4):
        case 0 if start > 8:
            shape = tuple(rng.choice([*NUMBERS, 2**62, 10**30, -1, rng.randrange(9)]) for _ in range(rng.randrange(5)))
            header = f"{header[:start]}{shape}, }}"
        case 1 if "'descr': " in header and ", 'fortran" in header:
            kinds = ["|O", "<f8", "<U1000000", "<U0", "|S0", "|V8", "<M8[ns]", "<c16", ">i4", "<i8", "|b1"]
            at = header.index("'descr': ") + 9
            header = header[:at] + repr(rng.choice(kinds)) + header[header.index(", 'fortran") :]
        case 2:
            header = rng.choice(
                [
                    "",
                    "{}",
                    "[" * 9000,
                    "-" * 9000 + "1",
                    "{'shape': (), 'descr': None}",
                    "9" * 9000,
                    "__import__('os').system('touch escaped')",
                ]
            )
        case 3:
            body = damaged(body, rng)
    return content[:8] + struct.pack("<H", len(header)) + header.encode("latin1") + body


def text(content, rng, others=()):
    """A JSON text damaged anywhere, or with other values and names in its tree."""
    if rng.random() < 0.3:
        return damaged(content, rng, others)
    tree = json.loads(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        tree = _other_tree(tree, rng)
    if rng.random() < 0.02:
        tree = json.loads("[" * 40 + "]" * 40)
    result = json.dumps(tree)
    if rng.random() < 0.02:
        result = result.replace("1", rng.choice(["[" * 100000, "1" * 5000, "{" * 900]), 1)
    return result.encode()


def _other_tree(tree, rng):
    """The tree with one place changed, and places near the root no rarer than those in long lists."""
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
            tree[key] = _other_tree(tree[key], rng)
    return tree
