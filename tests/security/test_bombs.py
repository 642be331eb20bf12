"""Small files that ask for gigabytes or hours are refused at once, wherever they may be read."""

import json
import os
import resource
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
from bombs import compressed_zeros, huge_jpeg, huge_png
from containers import join_png, split_png
from paths import ROOT
from PIL import Image
from readers import Checkpoints, Prepared
from readers.samples import encode, jpegs, noise

from isnet_jax import config, datasets
from isnet_jax.annotations import cvat, reading
from isnet_jax.checkpoints import pth, safetensors_file
from isnet_jax.datasets import decoding, image_files, label_files, mat
from isnet_jax.errors import UserError
from isnet_jax.input import pipeline
from isnet_jax.runtime import files, jpeg, limits
from isnet_jax.runtime.threads import map_in_order

READ_ALL_BOMBS = """
import json, resource, sys, time
from pathlib import Path
from bombs import all_bombs
from isnet_jax.errors import UserError
from readers import READERS

readers = {}
for number, (name, what, content) in enumerate(all_bombs()):
    folder = Path(sys.argv[1]) / str(number)
    if name not in readers:
        folder.mkdir()
        readers[name] = READERS[name](folder)
        readers[name].report_interval = 1
        for valid in readers[name].valid_inputs():
            try:
                readers[name].read(valid)
            except UserError:
                pass
    reader = readers[name]
    content = {**reader.intact, **content} if isinstance(content, dict) else content
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, message = time.perf_counter(), None
    try:
        reader.read(content)
    except UserError as error:
        message = str(error)
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(json.dumps([name, what, message, megabytes, time.perf_counter() - start]), flush=True)
"""


def test_readers_refuse_bombs(tmp_path):
    """They are refused at once, unless the part of them that matters is small."""
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL_BOMBS, tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "JAX_NUM_CPU_DEVICES": "1"},
    )
    assert not done.returncode, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
    assert len(results) > 100
    for name, what, message, megabytes, seconds in results:
        assert megabytes < 64 and seconds < 3, (name, what, message, megabytes, seconds)
        assert "MemoryError" not in (message or ""), (name, what, message)
        harmless = any(kind in what for kind in ("zTXt", "iTXt", "iCCP", "ignored")) or what in ("prediction", "long")
        assert message or harmless, (name, what)


def test_pipeline_names_the_record_that_declares_gigapixels(tmp_path):
    """Training and evaluation stop with a paragraph that names the example."""
    import tensorflow as tf
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    prepared = Prepared(tmp_path)
    (path,) = (path for path in prepared.intact if "array_record" in path.name)
    reader = ArrayRecordReader(str(path))
    examples = [tf.train.Example.FromString(record) for record in reader.read_all()]
    c = config.default()
    c.update_from_flattened_dict({"train.global_batch_size": 3, "augment.crop_size": (32, 32), "test.resize": ()})
    for field, bomb in (
        ("image", huge_jpeg()),
        ("image", huge_png()),
        ("label", huge_png(color_type=0)),
        ("label", huge_jpeg()),
    ):
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for number, example in enumerate(examples):
            changed = tf.train.Example.FromString(example.SerializeToString())
            if number == 1:
                changed.features.feature[field].bytes_list.value[:] = [bomb]
            writer.write(changed.SerializeToString())
        writer.close()
        builder = datasets.load("folder", tmp_path / "data", None, prepared.description)
        source = pipeline.open_split(builder, "val")
        sizes = pipeline.eval_sizes([size for _, *size in builder.info.metadata["examples"]["val"]], c)
        plan, _ = pipeline.eval_plan(sizes, 3, 1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for batches in pipeline.train_batches(source, c, 0, 1), pipeline.eval_batches(source, c, plan):
            message = "The example 1 in .* cannot be decoded: .*(megapixels|not a PNG)"
            with batches, pytest.raises(UserError, match=message):
                list(batches)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


@pytest.mark.parametrize(
    "array, metadata, message",
    [
        (b"params.a.kernel/", {"chunks": [20_000, 20_000]}, "a chunk is larger than its array"),
        (b"params.a.kernel/", {"shape": [20_000, 20_000]}, "another network"),
        (b"params.a.kernel/", {"dtype": "|V1000000000"}, "another network"),
        (b"digest.params/", {"shape": [300_000_000], "chunks": [300_000_000]}, "number of checksums differs"),
    ],
)
def test_load_variables_refuses_inflating_chunks(tmp_path, array, metadata, message):
    """A chunk inflates to the size that the metadata beside it states, a thousandfold."""
    import tensorstore

    checkpoint = Checkpoints(tmp_path)
    (folder,) = (tmp_path / "w/checkpoints").glob("*/default")
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/"}).result()
    (chunk,) = (key for key in store.list().result() if key.startswith(array) and not key.endswith(b".zarray"))
    zarray = json.loads(store[array + b".zarray"]) | {"compressor": {"id": "zlib", "level": 1}} | metadata
    store[array + b".zarray"], store[chunk] = json.dumps(zarray).encode(), compressed_zeros(1_500)
    with pytest.raises(UserError, match=message):
        checkpoint.read({})


def test_map_in_order_bounds_the_cost_in_flight():
    """Few large images are decoded ahead."""
    running, totals = [], []

    def start(cost):
        running.append(cost)
        totals.append(sum(running))
        return cost

    def finish(cost):
        running.remove(cost)
        return cost

    costs = [5, 1, 1, 1, 7, 30, 2, 2, 2, 2, 2, 9, 9]
    assert [finish(cost) for cost in map_in_order(start, costs, lambda cost: cost, 10)] == costs
    assert max(totals) <= 30 and sorted(totals)[-2] <= 30
    assert list(map_in_order(str, range(200))) == list(map(str, range(200)))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "I;16"])
def test_decodable_keeps_the_pixels(mode):
    """Chunks are dropped that pixels do not depend on."""
    import tensorflow as tf

    image = noise(13, 18)
    image = (
        Image.fromarray(np.arange(234, dtype=np.uint16).reshape(13, 18) * 250)
        if mode == "I;16"
        else image.convert(mode)
    )
    first, *others = split_png(encode(image, "PNG"))
    metadata = [
        (b"gAMA", struct.pack(">I", 20_000)),
        (b"sRGB", b"\0"),
        (b"pHYs", bytes(9)),
        (b"tEXt", b"a\0b"),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
    ]
    data = join_png([first, *metadata, *others])
    plain = limits.decodable(data)
    assert b"gAMA" in data and not any(kind in plain for kind in (b"gAMA", b"sRGB", b"pHYs", b"tEXt", b"cHRM"))
    np.testing.assert_array_equal(*(tf.io.decode_png(x, channels=3).numpy() for x in (data, plain)))
    assert limits.decodable(plain) is plain


def test_jpeg_size_agrees_with_tensorflow():
    import tensorflow as tf

    for data in jpegs():
        for variant in data, data[:2] + b"\xff\xff\xff" + data[3:], data[:2] + b"junk\xff\x00\xff\xd0" + data[2:]:
            height, width, _ = tf.io.extract_jpeg_shape(variant).numpy()
            assert jpeg.size(variant) == (width, height)


@pytest.mark.parametrize(
    "read",
    [
        lambda path: decoding.read_header(path),
        lambda path: decoding.decode(path, None),
        lambda path: pth.load(path),
        lambda path: safetensors_file.load(path),
        lambda path: image_files.check_image(path),
        lambda path: label_files.read_label(path),
        lambda path: mat.read_mat(path, "S"),
        lambda path: files.read_json(path),
        lambda path: reading.read_json(path, 9),
        lambda path: list(cvat._elements(path)),
        lambda path: files.read_arrays(path, "a"),
    ],
)
def test_readers_refuse_pipes_and_devices(tmp_path, read):
    """Reading a named pipe would block, and reading a device would not end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")

    def fail(*_):
        raise AssertionError("the reader blocks")

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(10)
    try:
        for name in "pipe", "zero":
            with pytest.raises((UserError, OSError), match="file"):
                read(tmp_path / name)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def test_bounds_need_no_tensorflow_jax_or_scipy():
    code = (
        "import sys, isnet_jax.datasets.decoding, isnet_jax.runtime.files, isnet_jax.checkpoints.state_dicts; "
        "assert not {'tensorflow', 'jax', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
