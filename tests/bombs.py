"""Small files that ask for gigabytes of memory or hours of work."""

import base64
import json
import pickle
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import annotation_trees as trees
from containers import join_jpeg, join_png, join_webp, join_zip, split_png, split_webp
from PIL import Image
from readers.checkpoints import join_safetensors
from readers.samples import encode, noise

ARRAYS = "name", "file", "counts", "boundary", "keys", "identity", "done", "confusion", "size", "warnings"
TEXT_HEADERS = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}  # before the compressed content


def huge_png(width: int = 60_000, height: int = 60_000, color_type: int = 2) -> bytes:
    """A PNG that declares this size and holds 1000 bytes of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    return join_png([(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")])


def huge_jpeg(width: int = 65_500, height: int = 65_500, scans: int = 1) -> bytes:
    """A progressive JPEG that declares this size, and asks for this many passes over it."""
    frame = struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0"
    tables = [(0xDB, b"\0" + b"\1" * 64), (0xC4, b"\x10\1" + bytes(15) + b"\xe0")]
    return join_jpeg([*tables, (0xC2, frame), *[(0xDA, b"\1\1\0\1\x3f\0" + b"\x7f" * 100)] * scans])


def huge_webp(size: int = 16_383, animated: bool = True) -> bytes:
    """A WebP that declares size x size pixels around an image of one pixel."""
    still = split_webp(encode(Image.new("RGBA", (1, 1)), "WEBP", lossless=True))
    header = bytes([0x12 * animated, 0, 0, 0]) + 2 * (size - 1).to_bytes(3, "little")
    frame = bytes(16) + join_webp(still)[12:]
    return join_webp([(b"VP8X", header), *([(b"ANIM", bytes(6)), (b"ANMF", frame)] if animated else still)])


def huge_bmp(width: int, height: int, runs: bytes = b"") -> bytes:
    """An 8-bit BMP that declares this size, run-length encoded if there are `runs`."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, bool(runs), len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078) + header + bytes(1024) + runs


def huge_tiff(width: int, height: int, tile: int = 0, compression: int = 8) -> bytes:
    """A grey TIFF that declares this size, and tiles of tile x tile if that is not 0, around 1000 bytes of pixels."""
    pixels = zlib.compress(bytes(1000))
    place = {322: tile, 323: tile, 324: 8, 325: len(pixels)} if tile else {273: 8, 278: height, 279: len(pixels)}
    tags = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 277: 1, **place}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    start = 8 + len(pixels) + len(pixels) % 2
    return (
        (b"II*\0" + struct.pack("<I", start) + pixels).ljust(start) + struct.pack("<H", len(tags)) + entries + bytes(4)
    )


def compressed_zeros(megabytes: int, level: int = 1) -> bytes:
    """A zlib stream of zeros, made one megabyte at a time: the tests measure the memory of this process."""
    compressor = zlib.compressobj(level)
    return b"".join([compressor.compress(bytes(2**20)) for _ in range(megabytes)]) + compressor.flush()


def deflated_zip(name: bytes, compressed: bytes, size: int) -> bytes:
    """A zip archive with one member, given as a zlib stream of `size` bytes."""
    raw = compressed[2:-4]  # the stream without zlib's header and checksum
    fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, 0, len(raw), size, len(name), 0)
    member = b"PK\3\4" + fields + name + raw
    directory = b"PK\1\2" + struct.pack("<H", 20) + fields[:24] + bytes(16) + name
    return member + directory + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(directory), len(member), 0)


def text_bomb(kind: bytes) -> list[tuple[bytes, bytes]]:
    """600 PNG chunks of metadata that inflate to 7 MB each."""
    return [(kind, TEXT_HEADERS[kind] + compressed_zeros(7, 9))] * 600


def npz(shape: str = "(3,)", dtype: str = "<i8", body: bytes = b"") -> bytes:
    """An .npz file whose arrays, all that any reader asks for, declare this shape and dtype."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    array = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + body
    return join_zip([(f"{name}.npy", array) for name in ARRAYS])


def label_png() -> bytes:
    """A valid label."""
    return encode(Image.new("L", (18, 13)), "PNG")


def all_bombs() -> Iterator[tuple[str, str, Any]]:
    """(name of the reader in READERS, what the bomb is, input of `read`)."""
    yield from _image_bombs()
    yield from _array_bombs()
    yield from _annotation_bombs()
    yield "Evaluations", "prediction", {"r/predictions/b.png": huge_png(60_000, 60_000, 3)}
    for what, text in {"deep": b"[" * 10**6, "long": b"[" + b"[]," * 10**7 + b"0]", "number": b"9" * 10**6}.items():
        yield "RecordedConfigs", what, text
        yield "Evaluations", what, {"r/results.json": text}
        yield "Cards", f"{what}, ignored", {"results.json": text, "README.md": text}
        yield "Progress", what, b"{" + text


def _annotation_bombs() -> Iterator[tuple[str, str, Any]]:
    deep = {"deep": b"[" * 10**6, "number": b"9" * 10**6}
    long_ring = [0, 0, 100_000, 100_000] * 1_000
    for what, segmentation in {
        "outline": [long_ring],
        "far away": [[0, 0, 1e300, 0, 0, 1e300]],
        "run": {"size": [20, 30], "counts": [2**40, 1]},
        "size": {"size": [10**6, 10**6], "counts": [10**12]},
        "compressed": {"size": [20, 30], "counts": "o" * 10**6 + "0"},
    }.items():
        content = trees.coco(["a.jpg"], [trees.annotation(1, 1, segmentation)], {1: "cat"})
        yield "CocoFiles", what, json.dumps(content).encode()
    huge, texts = (base64.b64encode(data).decode() for data in (huge_png(color_type=0), huge_jpeg()))
    mask = trees.labelme("a.jpg", [("x", "mask", [[0, 0], [59_999, 59_999]])])
    mask["shapes"][0]["mask"] = huge
    for what, content in {
        "mask": mask,
        "embedded": trees.labelme("gone.jpg", [("x", "rectangle", [[0, 0], [5, 5]])], imageData=huge),
        "embedded jpeg": trees.labelme("gone.jpg", [("x", "rectangle", [[0, 0], [5, 5]])], imageData=texts),
        "outline": trees.labelme("a.jpg", [("x", "polygon", [[0, 0], [100_000, 100_000]] * 1_000)]),
    }.items():
        yield "LabelmeFiles", what, json.dumps(content).encode()
    for what, text in deep.items():
        yield "CocoFiles", what, text
        yield "LabelmeFiles", what, text
    laughs = "".join(f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(9))
    yield "CvatFiles", "laughs", f'<!DOCTYPE x [<!ENTITY l0 "l">{laughs}]><annotations>&l9;</annotations>'.encode()
    yield "CvatFiles", "deep", b"<annotations>" + b"<a>" * 10**5
    big = trees.shape("mask", "cat", rle="3600000000", left=0, top=0, width=60_000, height=60_000)
    yield "CvatFiles", "mask", trees.cvat({"a.jpg": [big]}, {"cat": "#ff0000"}).encode()


def _image_bombs() -> Iterator[tuple[str, str, Any]]:
    photo = encode(noise(13, 18), "PNG")
    texts = {
        f"{place} {kind.decode()}": join_png(
            [*chunks[:1], *bomb, *chunks[1:]] if place == "early" else [*chunks[:-1], *bomb, chunks[-1]]
        )
        for kind in (b"zTXt", b"iTXt", b"iCCP")
        for chunks in [split_png(label_png())]
        for bomb in [text_bomb(kind)]
        for place in ("early", "late")
    }
    images = {
        "png": huge_png(),
        "thin png": huge_png(2**31 - 1, 1),
        "jpeg": huge_jpeg(),
        "scans": huge_jpeg(9_000, 9_000, 7_000),
        "many pixels": huge_png(10_001, 10_000, 0),
    }
    for what, image in {**images, **texts}.items():
        yield "DataImages", what, image
        yield "DataLabels", what, image
        yield "Records", f"image {what}", (image, label_png(), 0)
        yield "Records", f"label {what}", (photo, image, 0)
        yield "Photographs", what, image
    for what, image in {
        "webp": huge_webp(animated=False),
        "animated": huge_webp(),
        "bmp": huge_bmp(60_000, 60_000),
        "thin bmp": huge_bmp(2**31 - 1, 1),
        "runs": huge_bmp(65_500, 1_526, b"\1\0\0\0" * 1_526),
        "tiff": huge_tiff(60_000, 60_000),
        "tile": huge_tiff(18, 13, 65_504),
        "lzw tile": huge_tiff(18, 13, 65_504, 5),
        "gif": b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + bytes(40),
    }.items():
        yield "Photographs", what, image
        yield "DataImages", what, image
    long_chunk = photo[:33] + struct.pack(">I", 2**31 - 1) + b"abcd" + bytes(40)
    for what, data in {
        "claims": long_chunk,
        "gif": b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + bytes(40),
        "tiff": encode(Image.new("1", (9_000, 9_000)), "TIFF", compression="group4"),
        "bmp": huge_bmp(10_000, 10_000),
        "empty": b"",
    }.items():
        yield "Records", f"image {what}", (data, label_png(), 0)
        yield "Records", f"label {what}", (photo, data, 0)


def _array_bombs() -> Iterator[tuple[str, str, Any]]:
    zeros = compressed_zeros(256)
    for what, arrays in {
        "shape": npz("(1000000000, 3, 3)"),
        "text": npz("(1,)", "<U2000000000"),
        "empty": npz("(10**12,)", "|V0"),
        "nothing": npz(f"({10**15},)", "<U0"),
        "objects": npz("(1,)", "|O", pickle.dumps([object])),
        "deflated": deflated_zip(b"name.npy", zeros, 2**28),
        "deflated keys": deflated_zip(b"keys.npy", zeros, 2**28),
        "deflated identity": deflated_zip(b"identity.npy", zeros, 2**28),
    }.items():
        yield "Evaluations", what, {"r/images.npz": arrays}
        yield "Journals", what, arrays
        yield "Progress", what, arrays
    matrix = b"MATLAB 5.0".ljust(124) + b"\0\1IM" + b"\x0f\0\0\0" + struct.pack("<I", len(zeros)) + zeros
    yield "Matrices", "inflating", matrix
    yield "Matrices", "declared", b"\0" * 4 + struct.pack("<iiii", 60_000, 60_000, 0, 2) + b"S\0"
    for what, header in {
        "shape": b'{"a": {"dtype": "F32", "shape": [1000000000, 1000000], "data_offsets": [0, 4]}}',
        "deep": b'{"a": ' + b"[" * 10**6,
        "long": b'{"a": [' + b"0," * 10**7 + b"0]}",
        "many": b"{"
        + b",".join(b'"%d": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}' % i for i in range(10**5)),
    }.items():
        yield "Safetensors", what, join_safetensors(header, bytes(4))
    yield "Safetensors", "header", b"\xff\xff\xff\xff\0\0\0\0{}"
    yield "PthZip", "inflating", deflated_zip(b"a/data.pkl", zeros, 2**28)
