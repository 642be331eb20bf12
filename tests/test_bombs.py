"""Small files that ask for gigabytes or hours are refused at once, wherever they may be read."""

import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import image_readers
import mutations
import numpy as np
import pytest
import readers
from PIL import Image

from isnet_jax import config, datasets, decoding, input_pipeline, limits, pth, stored
from isnet_jax.datasets import files, mat
from isnet_jax.errors import UserError

ROOT = Path(__file__).parents[1]


def chunks(*parts):
    return mutations.png(parts)


def huge_png(width=60_000, height=60_000, color=2, *more):
    return chunks(
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)),
        *more,
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    )


def huge_jpeg(width=65_500, height=65_500, scans=1):
    frame = struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0"
    tables = [(0xDB, b"\0" + b"\1" * 64), (0xC4, b"\x10\1" + bytes(15) + b"\xe0")]
    return mutations.jpeg([*tables, (0xC2, frame), *[(0xDA, b"\1\1\0\1\x3f\0" + b"\x7f" * 100)] * scans])


def huge_webp(size=16_383, animated=True):
    still = mutations.riff_parts(image_readers.encoded(Image.new("RGBA", (1, 1)), "WEBP", lossless=True))
    canvas = bytes([0x12 * animated, 0, 0, 0]) + 2 * (size - 1).to_bytes(3, "little")
    frame = bytes(16) + mutations.riff(still)[12:]
    return mutations.riff([(b"VP8X", canvas), *([(b"ANIM", bytes(6)), (b"ANMF", frame)] if animated else still)])


def huge_bmp(width, height, runs=b""):
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, bool(runs), len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078) + head + bytes(1024) + runs


def zeros(megabytes, level=1):
    """So many, compressed; made without having them all, as this is where memory is measured."""
    packer = zlib.compressobj(level)
    return b"".join([packer.compress(bytes(2**20)) for _ in range(megabytes)]) + packer.flush()


def deflated(name, content, size):
    """A zip archive with a member that is compressed already."""
    raw = content[2:-4]
    head = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, 0, len(raw), size, len(name), 0)
    entry = b"PK\1\2" + struct.pack("<H", 20) + head[:24] + bytes(16)
    start = 30 + len(name) + len(raw)
    return (
        b"PK\3\4"
        + head
        + name
        + raw
        + entry
        + name
        + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(entry) + len(name), start, 0)
    )


def text_bomb(kind=b"zTXt", count=600):
    head = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[kind]
    return [(kind, head + zeros(7, 9))] * count


ARRAYS = "name", "file", "counts", "boundary", "keys", "identity", "done", "confusion", "size", "warnings"


def npz(shape="(3,)", kind="<i8", body=b""):
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    array = b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + body
    return mutations.zipped([(f"{name}.npy", array) for name in ARRAYS])


def label_png():
    return image_readers.encoded(Image.new("L", (18, 13)), "PNG")


def bombs():
    """(reader, what it is given)."""
    photo, many = image_readers.encoded(image_readers.noise(13, 18), "PNG"), zeros(256)
    texts = {
        f"{place} {kind.decode()}": mutations.png(
            [*parts[:1], *bomb, *parts[1:]] if place == "early" else [*parts[:-1], *bomb, parts[-1]]
        )
        for kind in (b"zTXt", b"iTXt", b"iCCP")
        for parts in [mutations.png_parts(label_png())]
        for bomb in [text_bomb(kind)]
        for place in ("early", "late")
    }
    pictures = {
        "png": huge_png(),
        "thin png": huge_png(2**31 - 1, 1),
        "jpeg": huge_jpeg(),
        "scans": huge_jpeg(9_000, 9_000, 7_000),
        "many pixels": huge_png(10_001, 10_000, 0),
    }
    for name, picture in {**pictures, **texts}.items():
        yield "DataImages", name, picture
        yield "DataLabels", name, picture
        yield "Records", f"image {name}", (picture, label_png(), 0)
        yield "Records", f"label {name}", (photo, picture, 0)
    for name, picture in {
        **pictures,
        **texts,
        "webp": huge_webp(animated=False),
        "animated": huge_webp(),
        "bmp": huge_bmp(60_000, 60_000),
        "thin bmp": huge_bmp(2**31 - 1, 1),
        "runs": huge_bmp(65_500, 1_526, b"\1\0\0\0" * 1_526),
    }.items():
        yield "Photographs", name, picture
    claims = photo[:33] + struct.pack(">I", 2**31 - 1) + b"abcd" + bytes(40)
    for name, data in {
        "claims": claims,
        "gif": b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + bytes(40),
        "tiff": image_readers.encoded(Image.new("1", (9_000, 9_000)), "TIFF", compression="group4"),
        "bmp": huge_bmp(10_000, 10_000),
        "empty": b"",
    }.items():
        yield "Records", f"image {name}", (data, label_png(), 0)
        yield "Records", f"label {name}", (photo, data, 0)
    for name, arrays in {
        "shape": npz("(1000000000, 3, 3)"),
        "text": npz("(1,)", "<U2000000000"),
        "empty": npz("(10**12,)", "|V0"),
        "nothing": npz(f"({10**15},)", "<U0"),
        "objects": npz("(1,)", "|O", pickle.dumps([object])),
        "deflated": deflated(b"name.npy", many, 2**28),
        "deflated keys": deflated(b"keys.npy", many, 2**28),
        "deflated identity": deflated(b"identity.npy", many, 2**28),
    }.items():
        yield "Evaluations", name, {"r/images.npz": arrays}
        yield "Journals", name, arrays
        yield "Progress", name, arrays
    yield "Evaluations", "prediction", {"r/predictions/b.png": huge_png(60_000, 60_000, 3)}
    for name, text in {"deep": b"[" * 10**6, "long": b"[" + b"[]," * 10**7 + b"0]", "number": b"9" * 10**6}.items():
        yield "RecordedConfigs", name, text
        yield "Evaluations", name, {"r/results.json": text}
        yield "Progress", name, b"{" + text
    matrix = b"MATLAB 5.0".ljust(124) + b"\0\1IM" + b"\x0f\0\0\0" + struct.pack("<I", len(many)) + many
    yield "Matrices", "inflating", matrix
    yield "Matrices", "declared", b"\0" * 4 + struct.pack("<iiii", 60_000, 60_000, 0, 2) + b"S\0"
    yield "PthZip", "inflating", deflated(b"a/data.pkl", many, 2**28)


BOMBS = """
import json, resource, sys, time
from pathlib import Path
import readers, test_bombs
from isnet_jax.errors import UserError

made = {}
for number, (name, what, content) in enumerate(test_bombs.bombs()):
    folder = Path(sys.argv[1]) / str(number)
    if name not in made:
        folder.mkdir()
        made[name] = readers.READERS[name](folder)
        made[name].every = 1
        for sound in made[name].sound():
            try:
                made[name].read(sound)
            except UserError:
                pass
    reader = made[name]
    content = {**reader.whole, **content} if isinstance(content, dict) else content
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, told = time.perf_counter(), None
    try:
        reader.read(content)
    except UserError as error:
        told = str(error)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(json.dumps([name, what, told, grown, time.perf_counter() - start]), flush=True)
"""


def test_bombs(tmp_path):
    """Small files that ask for gigabytes, or for hours, are refused at once, or what matters in them is small."""
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "JAX_NUM_CPU_DEVICES": "1"},
    )
    assert not done.returncode, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
    assert len(found) > 100
    for name, what, told, grown, seconds in found:
        assert grown < 64 and seconds < 3, (name, what, told, grown, seconds)
        assert "MemoryError" not in (told or ""), (name, what, told)
        harmless = any(kind in what for kind in ("zTXt", "iTXt", "iCCP")) or what in ("prediction", "long")
        assert told or harmless, (name, what)


def test_bomb_among_prepared_records(tmp_path):
    """Records that declare gigapixels stop training and evaluation with a paragraph that names the example."""
    import tensorflow as tf
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    prepared = readers.Prepared(tmp_path)
    (path,) = (path for path in prepared.whole if "array_record" in path.name)
    reader = ArrayRecordReader(str(path))
    examples = [tf.train.Example.FromString(record) for record in reader.read_all()]
    c = config.default()
    c.update_from_flattened_dict({"train.global_batch_size": 3, "augment.crop_size": (32, 32), "test.resize": ()})
    for field, bomb in (
        ("image", huge_jpeg()),
        ("image", huge_png()),
        ("label", huge_png(color=0)),
        ("label", huge_jpeg()),
    ):
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for number, example in enumerate(examples):
            changed = tf.train.Example.FromString(example.SerializeToString())
            if number == 1:
                changed.features.feature[field].bytes_list.value[:] = [bomb]
            writer.write(changed.SerializeToString())
        writer.close()
        builder = datasets.load("folder", tmp_path / "data", None, prepared.described)
        source = input_pipeline.open_split(builder, "val")
        sizes = input_pipeline.eval_sizes([size for _, *size in builder.info.metadata["examples"]["val"]], c)
        plan, _ = input_pipeline.eval_plan(sizes, 3, 1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for batches in input_pipeline.train_batches(source, c, 0, 1), input_pipeline.eval_batches(source, c, plan):
            with batches, pytest.raises(UserError, match="The example 1 in .* cannot be decoded: .*megapixels|no PNG"):
                list(batches)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


@pytest.mark.parametrize(
    "name, fields, told",
    [
        (b"params.a.kernel/", {"chunks": [20_000, 20_000]}, "a chunk is larger than its array"),
        (b"params.a.kernel/", {"shape": [20_000, 20_000]}, "another network"),
        (b"params.a.kernel/", {"dtype": "|V1000000000"}, "another network"),
        (b"digest.params/", {"shape": [300_000_000], "chunks": [300_000_000]}, "other checksums"),
    ],
)
def test_bombs_in_checkpoints(tmp_path, name, fields, told):
    """Chunks inflate as far as the metadata beside them say, a thousandfold."""
    import tensorstore

    checkpoint = readers.Checkpoints(tmp_path)
    (place,) = (tmp_path / "w/checkpoints").glob("*/default")
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{place}/"}).result()
    (chunk,) = (key for key in store.list().result() if key.startswith(name) and not key.endswith(b".zarray"))
    there = json.loads(store[name + b".zarray"]) | {"compressor": {"id": "zlib", "level": 1}} | fields
    store[name + b".zarray"], store[chunk] = json.dumps(there).encode(), zeros(1_500)
    with pytest.raises(UserError, match=told):
        checkpoint.read({})


def test_ahead_in_memory():
    """Images decoded ahead are few if they are large."""
    from isnet_jax.datasets.survey import in_order

    running, most = [], []

    def work(cost):
        running.append(cost)
        most.append(sum(running))
        return cost

    def finish(cost):
        running.remove(cost)
        return cost

    costs = [5, 1, 1, 1, 7, 30, 2, 2, 2, 2, 2, 9, 9]
    assert [finish(cost) for cost in in_order(work, costs, lambda cost: cost, 10)] == costs
    assert max(most) <= 30 and sorted(most)[-2] <= 30
    assert list(in_order(str, range(200))) == list(map(str, range(200)))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "I;16"])
def test_pixels_do_not_depend_on_what_is_left_out(mode):
    import tensorflow as tf

    picture = image_readers.noise(13, 18)
    picture = (
        Image.fromarray(np.arange(234, dtype=np.uint16).reshape(13, 18) * 250)
        if mode == "I;16"
        else picture.convert(mode)
    )
    parts = mutations.png_parts(image_readers.encoded(picture, "PNG"))
    more = [
        (b"gAMA", struct.pack(">I", 20_000)),
        (b"sRGB", b"\0"),
        (b"pHYs", bytes(9)),
        (b"tEXt", b"a\0b"),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
    ]
    data = mutations.png([*parts[:1], *more, *parts[1:]])
    plain = limits.decodable(data)
    assert b"gAMA" in data and not any(kind in plain for kind in (b"gAMA", b"sRGB", b"pHYs", b"tEXt", b"cHRM"))
    np.testing.assert_array_equal(*(tf.io.decode_png(x, channels=3).numpy() for x in (data, plain)))
    assert limits.decodable(plain) is plain


def test_sizes_of_jpegs_are_those_that_tensorflow_sees():
    import tensorflow as tf

    for data in image_readers.jpegs():
        for odd in data, data[:2] + b"\xff\xff\xff" + data[3:], data[:2] + b"junk\xff\x00\xff\xd0" + data[2:]:
            height, width, _ = tf.io.extract_jpeg_shape(odd).numpy()
            assert limits._jpeg_size(odd) == (width, height)


@pytest.mark.parametrize(
    "read",
    [
        lambda path: decoding.read_header(path),
        lambda path: decoding.decode(path, None),
        lambda path: pth.load(path),
        lambda path: files.check_image(path),
        lambda path: files.read_index_label(path),
        lambda path: mat.read_mat(path, "S"),
        lambda path: stored.read_json(path),
        lambda path: stored.read_arrays(path, "a"),
    ],
)
def test_pipes_and_devices(tmp_path, read):
    """A named pipe would be waited for, a device read without end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")

    def stop(*_):
        raise AssertionError("it waits")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    try:
        for name in "pipe", "zero":
            with pytest.raises((UserError, OSError), match="file"):
                read(tmp_path / name)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def test_bounds_import_no_more_than_they_need():
    code = (
        "import sys, isnet_jax.decoding, isnet_jax.stored, isnet_jax.pth; "
        "assert not {'tensorflow', 'jax', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
