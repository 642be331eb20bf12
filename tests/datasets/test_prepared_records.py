"""What prepared records hold, and what is read from image and label files on the way."""

import pickle

import numpy as np
import pytest
from data_sets import CAMVID_SPLITS, decode, records, write_pair, write_palette_label
from PIL import Image

from isnet_jax import datasets


def test_load_writes_records_and_metadata(tree, capfd):
    builder = datasets.load("camvid", tree.parent / "data", tree)
    out, err = capfd.readouterr()  # there is no progress bar, since standard error is not a terminal
    assert not out and err.splitlines() == [
        f"warning: The split {split} has 1 images where the official one has {count}."
        for split, count in builder.COUNTS.items()
    ] + [
        f"note: 1 of 1 labels of {split} are palette images: their indices are used, not their colours."
        for split in CAMVID_SPLITS
    ]
    for split, file in zip(CAMVID_SPLITS, ("a.jpg", "a.JPG", "a.png")):
        source = records(builder, split)
        assert len(source) == 1
        record = source[0]
        assert record["image"] == (tree / split / "images" / file).read_bytes()
        label = decode(record["label"])
        index = np.arange(600).reshape(20, 30) % 12
        np.testing.assert_array_equal(label, np.where(index == 11, 255, index))
        assert label.dtype == np.uint8
        assert (record["height"], record["width"], record["name"]) == (20, 30, b"a")
    metadata = builder.info.metadata
    assert metadata["source"] == str(tree) and len(metadata["names"]) == len(metadata["palette"]) == 11
    assert [list(example) for example in metadata["examples"]["val"]] == [["a", 20, 30]]
    assert builder.info.citation and builder.info.homepage and builder.info.description


def test_prepared_data_set_opens_without_source(tree):
    data_dir = tree.parent / "data"
    datasets.load("camvid", data_dir, tree)
    again = datasets.load("camvid", data_dir, f"{tree}/../tree/")  # the same folder by another path
    assert len(records(again, "val")) == 1
    opened = datasets.load("camvid", data_dir)
    assert opened.info.metadata["source"] == str(tree)
    assert pickle.loads(pickle.dumps(records(opened, "val")))[0]["name"] == b"a"  # as worker processes need it


def test_cmyk_and_grey_jpegs_decode_as_pillow_does(tmp_path):
    """CMYK becomes a PNG, since decoders disagree on it; the others are kept byte for byte."""
    from isnet_jax.datasets import image_files

    for split, mode in zip(CAMVID_SPLITS, ("CMYK", "L", "RGB")):
        images = tmp_path / "source" / split / "images"
        write_pair(tmp_path / "source", split, "a")
        gradient = np.mgrid[:20, :30].sum(0)[..., None] * [5, 3, 1]
        Image.fromarray(gradient.astype(np.uint8)).convert(mode).save(images / "a.jpg", quality=95)
    builder = datasets.load("camvid", tmp_path / "data", tmp_path / "source")
    for split, mode in zip(CAMVID_SPLITS, ("CMYK", "L", "RGB")):
        path = tmp_path / "source" / split / "images/a.jpg"
        record = records(builder, split)[0]
        assert (record["image"] == path.read_bytes()) == (mode != "CMYK")
        original = Image.open(path)
        assert original.mode == mode
        expected = np.array(original.convert("RGB"))
        whole = image_files.decode_image(record["image"])
        region = image_files.decode_image(record["image"], (4, 8, 10, 12))
        assert np.ptp(expected) > 100
        np.testing.assert_array_equal(whole, expected)
        np.testing.assert_array_equal(region[2:-2, 2:-2], whole[6:12, 10:18])  # chroma is smoothed across the edges


def test_read_label_reads_every_bit_depth(tree):
    from isnet_jax.datasets.label_files import read_label

    index = np.arange(600).reshape(20, 30) % 12
    write_palette_label(tree / "p4.png", index, depth=4)
    Image.fromarray(index.astype(np.uint16)).save(tree / "l16.png")
    for file in "p4.png", "l16.png":
        np.testing.assert_array_equal(read_label(tree / file).values, index)
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tree / "l1.png"), (index % 2).astype(np.uint8), [cv2.IMWRITE_PNG_BILEVEL, 1])
    np.testing.assert_array_equal(read_label(tree / "l1.png").values, index % 2)


def test_encode_label_round_trips_through_tensorflow():
    import tensorflow as tf

    from isnet_jax.datasets import image_files

    for shape in (1, 1), (7, 300), (64, 33):
        ids = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
        png = image_files.encode_label(ids)
        np.testing.assert_array_equal(tf.io.decode_png(png, channels=1)[..., 0], ids)
        assert tf.io.decode_png(png).shape[2] == 1


def test_records_in_several_shards_keep_their_order(source, tmp_path, monkeypatch):
    from isnet_jax.datasets import common

    monkeypatch.setattr(common, "SHARD_BYTES", 3000)
    builder = datasets.load("camvid", tmp_path / "data", source)
    assert 1 < len(builder.info.splits["train"].filepaths) <= 4
    assert [record["name"] for record in records(builder, "train")] == [b"train0", b"train1", b"train2", b"train3"]
