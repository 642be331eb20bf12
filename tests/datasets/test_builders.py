"""The builders of the official data sets and of users' folders, on real samples in the trees they come in."""

import json
import pickle
import shutil
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from data_sets import DATA, builder_class, check_split, draw, labels, link, needs_data, read_png, records, refusal
from paths import SHARED

from isnet_jax import datasets
from isnet_jax.errors import UserError

# The rules of the protocols, written out: value in a label file -> train id, 255 where ignored, None where no value
# may occur.
CITYSCAPES = {
    7: 0,
    8: 1,
    11: 2,
    12: 3,
    13: 4,
    17: 5,
    19: 6,
    20: 7,
    21: 8,
    22: 9,
    23: 10,
    24: 11,
    25: 12,
    26: 13,
    27: 14,
    28: 15,
    31: 16,
    32: 17,
    33: 18,
}
RULES = {
    "ade20k": lambda v: 255 if v == 0 else v - 1 if v <= 150 else None,
    "cityscapes": lambda v: CITYSCAPES.get(v, 255) if v <= 33 or v == 255 else None,
    "coco_stuff10k": lambda v: 255 if v in (0, 255) else v - 1 if v <= 182 else None,
    "coco_stuff164k": lambda v: v if v <= 181 or v == 255 else None,
    "lip": lambda v: v if v <= 19 or v == 255 else None,
}
SIZES = {
    "ade20k": {"train": 20210, "val": 2000},
    "cityscapes": {"train": 2975, "val": 500},
    "coco_stuff10k": {"train": 9000, "test": 1000},
    "coco_stuff164k": {"train": 118287, "val": 5000},
    "lip": {"train": 30462, "val": 10000},
}


@pytest.mark.parametrize("name", RULES)
def test_every_value(name):
    table = builder_class(name).TRAIN_IDS
    assert len(table) <= 256
    for value in range(256):
        found = table[value] if value < len(table) else -1
        assert found == (-1 if RULES[name](value) is None else RULES[name](value)), value


@pytest.mark.parametrize("name", [*RULES, "camvid"])
def test_facts(name):
    cls = builder_class(name)
    assert cls.name == name and SIZES.get(name, cls.COUNTS) == cls.COUNTS
    assert cls.CITATION.count("{") == cls.CITATION.count("}") and cls.HOMEPAGE.startswith("http")
    path = SHARED / "design/classes.json"
    if not path.exists():
        pytest.skip(f"the facts to compare with are not at {path}")
    facts = json.loads(path.read_text())[name.replace("164k", "10k")]
    assert list(cls.NAMES) == facts["names"] and len(cls.NAMES) == facts["num_classes"]
    assert len(cls.PALETTE) == len(cls.NAMES)
    if "palette" in facts:
        assert [list(color) for color in cls.PALETTE] == facts["palette"]


@needs_data
@pytest.mark.parametrize("source", ["ADEChallengeData2016", "."])
def test_ade20k(tmp_path, source):
    original = DATA / "ADEChallengeData2016"
    tree = tmp_path / "tree"
    link({tree / path.relative_to(DATA): path for path in original.rglob("*") if path.is_file()})
    builder = datasets.load("ade20k", tmp_path / "data", tree / source)
    for split, folder in ("train", "training"), ("val", "validation"):
        images = {path.stem: path for path in (original / "images" / folder).iterdir()}
        values = {name: read_png(original / "annotations" / folder / f"{name}.png") for name in images}
        check_split(
            builder, split, images, {name: np.where(v == 0, 255, v.astype(int) - 1) for name, v in values.items()}
        )


@needs_data
@pytest.mark.parametrize("archives", [("", ""), ("leftImg8bit_trainvaltest/", "gtFine_trainvaltest/")])
def test_cityscapes(tmp_path, archives):
    original = DATA / "mmseg_pseudo/pseudo_cityscapes_dataset"
    tree = tmp_path / "tree"
    image = original / "leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png"
    kinds = {
        kind: original / f"gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_{kind}.png"
        for kind in ("labelIds", "labelTrainIds", "instanceIds")
    }
    frames = {"val": ["frankfurt_000000_000294"], "train": ["aachen_000000_000019", "zurich_000121_000019"]}
    for split, names in frames.items():
        for name in names:
            city = f"{split}/{name.partition('_')[0]}/{name}"
            link({tree / f"{archives[0]}leftImg8bit/{city}_leftImg8bit.png": image})
            link({tree / f"{archives[1]}gtFine/{city}_gtFine_{kind}.png": path for kind, path in kinds.items()})
            (tree / f"{archives[1]}gtFine/{city}_gtFine_polygons.json").write_text("{}")
    builder = datasets.load("cityscapes", tmp_path / "data", tree)
    values = read_png(kinds["labelIds"])
    expected = np.vectorize(RULES["cityscapes"])(values)
    # The official conversion; the sample's two files were made smaller each by itself, and differ along edges.
    assert (expected == read_png(kinds["labelTrainIds"])).mean() > 0.995
    for split, names in frames.items():
        check_split(builder, split, dict.fromkeys(names, image), dict.fromkeys(names, expected))


def link_coco10k(tree):
    """Returns {split: names}."""
    samples = DATA / "cocostuff_samples"
    link({tree / "images" / path.name: path for path in samples.glob("images/*/*.jpg")})
    for folder in "annotations", "imageLists":
        link({tree / folder / path.name: path for path in (samples / "derived_10k_style" / folder).iterdir()})
    return {split: (tree / f"imageLists/{split}.txt").read_text().split() for split in ("train", "test")}


def link_coco164k(tree, images="images", annotations="annotations"):
    samples = DATA / "cocostuff_samples"
    link({tree / images / path.relative_to(samples / "images"): path for path in samples.glob("images/*/*.jpg")})
    link(
        {
            tree / annotations / path.relative_to(samples / "annotations"): path
            for path in samples.glob("annotations/*/*.png")
        }
    )


@needs_data
def test_coco_stuff10k(tmp_path):
    tree = tmp_path / "tree"
    names = link_coco10k(tree)
    builder = datasets.load("coco_stuff10k", tmp_path / "data", tree)
    assert len(names["train"]) + len(names["test"]) == 25
    for split in names:
        values = {name: scipy.io.loadmat(tree / f"annotations/{name}.mat")["S"].astype(int) for name in names[split]}
        check_split(
            builder,
            split,
            {name: tree / f"images/{name}.jpg" for name in names[split]},
            {name: np.where((v == 0) | (v == 255), 255, v - 1) for name, v in values.items()},
        )


@needs_data
@pytest.mark.parametrize(
    "places",
    [
        ("images", "annotations"),
        (".", "stuffthingmaps"),
        (".", "stuffthingmaps_trainval2017"),
        ("images", "stuffthingmaps"),
    ],
)
def test_coco_stuff164k(tmp_path, places):
    tree = tmp_path / "tree"
    link_coco164k(tree, *places)
    (tree / "annotations").mkdir(exist_ok=True)
    (tree / "annotations/instances_val2017.json").write_text("{}")  # COCO's own annotations lie beside
    builder = datasets.load("coco_stuff164k", tmp_path / "data", tree)
    for split, count in ("train", 13), ("val", 12):
        images = {path.stem: path for path in (tree / places[0] / f"{split}2017").iterdir()}
        assert len(images) == count
        check_split(
            builder, split, images, {name: read_png(tree / places[1] / f"{split}2017/{name}.png") for name in images}
        )


@needs_data
def test_both_coco_stuff_agree(tmp_path):
    link_coco10k(tmp_path / "10k")
    link_coco164k(tmp_path / "164k")
    small = datasets.load("coco_stuff10k", tmp_path / "data", tmp_path / "10k")
    large = datasets.load("coco_stuff164k", tmp_path / "data", tmp_path / "164k")
    of_small = labels(small, "train") | labels(small, "test")
    of_large = labels(large, "train") | labels(large, "val")
    assert of_small.keys() == of_large.keys() and len(of_small) == 25
    for name in of_small:
        np.testing.assert_array_equal(of_small[name], of_large[name])


LIP_LAYOUTS = {
    "as the official code reads it": ("{}", "{}", "{}"),
    "archives": ("TrainVal_images/{}", "TrainVal_parsing_annotations/{}", "TrainVal_images/{}"),
    "archives in folders": (
        "TrainVal_images/TrainVal_images/{}",
        "TrainVal_parsing_annotations/TrainVal_parsing_annotations/{}",
        "TrainVal_images/TrainVal_images/{}",
    ),
    "no lists": ("{}", "{}", "elsewhere/{}"),
}


@needs_data
@pytest.mark.parametrize("layout", LIP_LAYOUTS)
def test_lip(tmp_path, layout):
    original, tree = DATA / "lip_samples", tmp_path / "tree"
    for path in original.rglob("*.*"):
        place = LIP_LAYOUTS[layout][2 if path.suffix == ".txt" else 1 if path.suffix == ".png" else 0]
        link({tree / place.format(path.relative_to(original)): path})
    builder = datasets.load("lip", tmp_path / "data", tree)
    for split in "train", "val":
        images = {path.stem: path for path in (original / f"{split}_images").iterdir()}
        check_split(
            builder, split, images, {name: read_png(original / f"{split}_segmentations/{name}.png") for name in images}
        )
    assert len(records(builder, "val")) == 1  # a grey JPEG


# Small drawn trees, for what must be refused.


def draw_official(name, tree):
    """Draws the smallest official tree, of names a in the first split and b in the second."""
    if name == "ade20k":
        draw(
            tree,
            ["images/training/a.jpg", "images/validation/b.jpg"],
            ["annotations/training/a.png", "annotations/validation/b.png"],
        )
    elif name == "cityscapes":
        draw(
            tree,
            ["leftImg8bit/train/ulm/a_leftImg8bit.png", "leftImg8bit/val/bonn/b_leftImg8bit.png"],
            ["gtFine/train/ulm/a_gtFine_labelIds.png", "gtFine/val/bonn/b_gtFine_labelIds.png"],
        )
    elif name == "coco_stuff10k":
        draw(tree, ["images/a.jpg", "images/b.jpg"], ["annotations/a.mat", "annotations/b.mat"])
        (tree / "imageLists").mkdir()
        (tree / "imageLists/train.txt").write_text("a\n")
        (tree / "imageLists/test.txt").write_text("b\n")
    elif name == "coco_stuff164k":
        draw(
            tree,
            ["images/train2017/a.jpg", "images/val2017/b.jpg"],
            ["annotations/train2017/a.png", "annotations/val2017/b.png"],
        )
    else:
        draw(tree, ["train_images/a.jpg", "val_images/b.jpg"], ["train_segmentations/a.png", "val_segmentations/b.png"])
        (tree / "train_id.txt").write_text("a\n")
        (tree / "val_id.txt").write_text("b\n")
    return tree


REFUSED = {  # what to remove, and what to expect of the message
    "ade20k": [
        ("images/validation/b.jpg", ["There is no file TREE/images/validation/*{.jpg,.jpeg,.png}"]),
        ("annotations/training", ["The folder TREE/annotations/training is missing."]),
        ("annotations", ["TREE/annotations/training is", "TREE/annotations/validation is"]),
    ],
    "cityscapes": [
        ("gtFine/train/ulm", ["There is no file TREE/gtFine/train/*/*_gtFine_labelIds.png"]),
        ("leftImg8bit", ["TREE/leftImg8bit/train is missing", "TREE/leftImg8bit/val is missing"]),
    ],
    "coco_stuff10k": [
        ("annotations/b.mat", ["TREE/annotations/*.mat that imageLists/test.txt lists"]),
        ("images/a.jpg", ["TREE/images/*{.jpg,.jpeg,.png} that imageLists/train.txt lists"]),
        ("imageLists/test.txt", ["TREE/imageLists/test.txt cannot be read (No such file"]),
        ("images", ["TREE/images is missing"]),
    ],
    "coco_stuff164k": [("annotations", ["annotations/train2017 is missing", "annotations/val2017 is missing"])],
    "lip": [
        ("val_segmentations", ["The folder TREE/val_segmentations is missing"]),
        ("train_images/a.jpg", ["TREE/train_images/*{.jpg,.jpeg,.png} that train_id.txt lists"]),
    ],
}


@pytest.mark.parametrize("name, removed, parts", [(name, *case) for name, cases in REFUSED.items() for case in cases])
def test_missing_parts_are_told(tmp_path, name, removed, parts):
    tree = draw_official(name, tmp_path / "tree")
    (shutil.rmtree if (tree / removed).is_dir() else Path.unlink)(tree / removed)
    refusal(name, tree, *(part.replace("TREE", str(tree)) for part in parts), builder_class(name).LAYOUT)


def test_every_missing_partner_is_told(tmp_path):
    tree = draw_official("cityscapes", tmp_path / "tree")
    draw(tree, ["leftImg8bit/val/ulm/c_leftImg8bit.png"], ["gtFine/train/ulm/d_gtFine_labelIds.png"])
    draw(tree, labels=["gtFine/val/ulm/d_gtFine_labelTrainIds.png"])  # none of ours
    refusal(
        "cityscapes",
        tree,
        f"c_leftImg8bit.png has no label c_gtFine_labelIds.png in {tree}/gtFine/val/ulm.",
        f"d_gtFine_labelIds.png has no image d_leftImg8bit.png in {tree}/leftImg8bit/train/ulm.",
    )


@pytest.mark.parametrize("name", ["coco_stuff10k", "lip"])
def test_lists_decide(tmp_path, name):
    tree = draw_official(name, tmp_path / "tree")
    place = "images" if name == "coco_stuff10k" else "train_images"
    draw(tree, [f"{place}/extra.jpg"])
    assert len(records(datasets.load(name, tmp_path / "data", tree), "train")) == 1
    shutil.rmtree(tmp_path / "data")
    next(tree.rglob("train*.txt")).write_text("a\r\nextra\r\n\r\nlost\r\n")
    refusal(name, tree, "extra.jpg has no label extra.", "lists lost, but there is no")


@pytest.mark.parametrize("name", RULES)
def test_foreign_values(tmp_path, name):
    tree = draw_official(name, tmp_path / "tree")
    label = min(
        path
        for path in tree.rglob("*")
        if path.suffix == (".mat" if "10k" in name else ".png") and "Img" not in path.name
    )
    value = {"ade20k": 151, "cityscapes": 34, "coco_stuff10k": 183, "coco_stuff164k": 182, "lip": 20}[name]
    draw(tree, labels=[str(label.relative_to(tree))], value=value)
    refusal(name, tree, label, value, "row 0, column 0")


def test_damaged_orphan_of_ade(tmp_path):
    path = DATA / "extras/ade20k/orphan_annotation/ADE_train_00000970.png"
    if not path.exists():
        pytest.skip(f"the real annotation without an image is not at {path}")
    tree = draw_official("ade20k", tmp_path / "tree")
    link({tree / "annotations/training" / path.name: path})
    refusal("ade20k", tree, "ADE_train_00000970.png has no image ADE_train_00000970{.jpg,.jpeg,.png}")


BAD_MATRICES = {
    "other key": ({"T": np.ones((4, 5))}, "holds no matrix S of numbers"),
    "three dimensions": ({"S": np.ones((4, 5, 2))}, "holds no matrix S of numbers"),
    "empty": ({"S": np.ones((0, 5))}, "holds no matrix S of numbers"),
    "text": ({"S": "label"}, "holds no matrix S of numbers"),
    "cells": ({"S": np.array([[1, "a"]], object)}, "holds no matrix S of numbers"),
    "struct": ({"S": {"a": 1}}, "holds no matrix S of numbers"),
    "sparse": ({"S": scipy.sparse.eye_array(4, 5, format="csc")}, "holds no matrix S of numbers"),
    "halves": ({"S": np.full((4, 5), 1.5)}, "not whole"),
    "not a number": ({"S": np.full((4, 5), np.nan)}, "not whole"),
    "complex": ({"S": np.full((4, 5), 1 + 1j)}, "not whole"),
    "too large": ({"S": np.ones((40, 50), np.uint8)}, "megapixels"),
    "negative": ({"S": np.full((4, 5), -1)}, "-1"),
    "of another size": ({"S": np.ones((5, 4))}, "5 x 4"),
}


@pytest.mark.parametrize("case", BAD_MATRICES)
@pytest.mark.parametrize("compressed", [False, True])
def test_bad_matrices(tmp_path, case, compressed, monkeypatch):
    from isnet_jax.datasets import mat

    tree = draw_official("coco_stuff10k", tmp_path / "tree")
    content, message = BAD_MATRICES[case]
    scipy.io.savemat(tree / "annotations/a.mat", content, do_compression=compressed)
    monkeypatch.setattr(mat, "MAX_PIXELS", 1000)
    refusal("coco_stuff10k", tree, tree / "annotations/a.mat", message)


@pytest.mark.parametrize("zeros", [10_000, 10_000_000])
def test_matrix_that_inflates(tmp_path, zeros):
    """A header that says 4 x 5, and far more data than that behind it."""
    from isnet_jax.datasets.mat import read_mat

    def element(kind, data):
        return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)

    parts = [(6, struct.pack("<II", 9, 0)), (5, struct.pack("<ii", 4, 5)), (1, b"S"), (2, bytes(zeros))]
    matrix = zlib.compress(element(14, b"".join(element(*part) for part in parts)))
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<HH", 0x0100, 0x4D49)
    (tmp_path / "a.mat").write_bytes(header + struct.pack("<II", 15, len(matrix)) + matrix)
    assert scipy.io.whosmat(tmp_path / "a.mat") == [("S", (4, 5), "uint8")]
    tracemalloc.start()
    with pytest.raises(UserError, match="damaged"):
        read_mat(tmp_path / "a.mat", "S")
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()


@pytest.mark.parametrize("keep", [0, 10, 130, 150, -8])
def test_damaged_matrices(tmp_path, keep):
    tree = draw_official("coco_stuff10k", tmp_path / "tree")
    path = tree / "annotations/a.mat"
    scipy.io.savemat(path, {"S": np.arange(20).reshape(4, 5)}, do_compression=True)
    path.write_bytes(path.read_bytes()[:keep])
    refusal("coco_stuff10k", tree, path)


@pytest.mark.parametrize("data", [pickle.dumps({"S": np.ones((4, 5))}), b"\x89HDF\r\n\x1a\n" + bytes(600), b"x" * 600])
def test_no_matrices_at_all(tmp_path, data):
    tree = draw_official("coco_stuff10k", tmp_path / "tree")
    (tree / "annotations/a.mat").write_bytes(data)
    refusal("coco_stuff10k", tree, tree / "annotations/a.mat")


@pytest.mark.parametrize("kind", ["f8", "f4", "u1", "u2", "i4", "i8"])
def test_kinds_of_matrices(tmp_path, kind):
    from isnet_jax.datasets.mat import read_mat

    values = np.arange(20).reshape(4, 5)
    content = {"names": np.array(["x"], object), "captions": "a" * 77, "S": values.astype(kind)}
    for compressed in False, True:
        scipy.io.savemat(tmp_path / "a.mat", content, do_compression=compressed)
        found = read_mat(tmp_path / "a.mat", "S")
        np.testing.assert_array_equal(found, values)
        assert found.dtype.kind in "iu"
    scipy.io.savemat(tmp_path / "a.mat", {"S": values}, format="4")
    np.testing.assert_array_equal(read_mat(tmp_path / "a.mat", "S"), values)
