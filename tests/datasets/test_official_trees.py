"""The official data sets, prepared from samples in the trees that they come in."""

import numpy as np
import pytest
import scipy.io
from data_sets import CAMVID_SPLITS, CITYSCAPES_TRAIN_IDS, check_split, labels, link, read_png, records

from isnet_jax import datasets


def link_camvid(samples, tree):
    """Links three pairs a split."""
    for split in CAMVID_SPLITS:
        for kind in "images", "labels":
            paths = sorted((samples.root / "camvid" / split / kind).iterdir())
            link({tree / split / kind / path.name: path for path in paths[:3]})


def link_coco10k(samples, tree):
    """Links the tree of COCO-Stuff 10k: {split: names}."""
    root = samples.root / "cocostuff_samples"
    link({tree / "images" / path.name: path for path in root.glob("images/*/*.jpg")})
    for folder in "annotations", "imageLists":
        link({tree / folder / path.name: path for path in (root / "derived_10k_style" / folder).iterdir()})
    return {split: (tree / f"imageLists/{split}.txt").read_text().split() for split in ("train", "test")}


def link_coco164k(samples, tree, images="images", annotations="annotations"):
    """Links the tree of COCO-Stuff 164k, with images and label maps in these folders."""
    root = samples.root / "cocostuff_samples"
    link({tree / images / path.relative_to(root / "images"): path for path in root.glob("images/*/*.jpg")})
    originals = root.glob("annotations/*/*.png")
    link({tree / annotations / path.relative_to(root / "annotations"): path for path in originals})


def num_coco_pairs(samples):
    """(training, validation)."""
    return (13, 12) if samples.is_real else (3, 2)


def test_camvid_records_equal_the_files(samples, tmp_path):
    camvid = samples.root / "camvid"
    if samples.is_real:
        assert [len(list((camvid / split / "labels").iterdir())) for split in CAMVID_SPLITS] == [367, 101, 233]
    link_camvid(samples, tmp_path / "few")
    builder = datasets.load("camvid", tmp_path / "data", tmp_path / "few")
    for split in CAMVID_SPLITS:
        images = {path.stem: path for path in (tmp_path / "few" / split / "images").iterdir()}
        indices = {name: read_png(camvid / split / f"labels/{name}.png") for name in images}
        assert len(images) == 3
        check_split(builder, split, images, {name: np.where(v == 11, 255, v) for name, v in indices.items()})


@pytest.mark.parametrize("source", ["ADEChallengeData2016", "."])
def test_ade20k_records_equal_the_files(samples, tmp_path, source):
    original = samples.root / "ADEChallengeData2016"
    tree = tmp_path / "tree"
    link({tree / path.relative_to(samples.root): path for path in original.rglob("*") if path.is_file()})
    builder = datasets.load("ade20k", tmp_path / "data", tree / source)
    for split, folder in ("train", "training"), ("val", "validation"):
        images = {path.stem: path for path in (original / "images" / folder).iterdir()}
        values = {name: read_png(original / "annotations" / folder / f"{name}.png") for name in images}
        expected = {name: np.where(v == 0, 255, v.astype(int) - 1) for name, v in values.items()}
        check_split(builder, split, images, expected)


@pytest.mark.parametrize("archives", [("", ""), ("leftImg8bit_trainvaltest/", "gtFine_trainvaltest/")])
def test_cityscapes_records_equal_the_files(samples, tmp_path, archives):
    original = samples.root / "mmseg_pseudo/pseudo_cityscapes_dataset"
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
    expected = np.vectorize(lambda v: CITYSCAPES_TRAIN_IDS.get(v, 255))(read_png(kinds["labelIds"]))
    if samples.is_real:  # the official conversion; both files were downscaled separately, and differ along edges
        assert (expected == read_png(kinds["labelTrainIds"])).mean() > 0.995
    for split, names in frames.items():
        check_split(builder, split, dict.fromkeys(names, image), dict.fromkeys(names, expected))


def test_coco_stuff10k_records_equal_the_files(samples, tmp_path):
    tree = tmp_path / "tree"
    names = link_coco10k(samples, tree)
    builder = datasets.load("coco_stuff10k", tmp_path / "data", tree)
    assert len(names["train"]) + len(names["test"]) == sum(num_coco_pairs(samples))
    for split in names:
        values = {name: scipy.io.loadmat(tree / f"annotations/{name}.mat")["S"].astype(int) for name in names[split]}
        check_split(
            builder,
            split,
            {name: tree / f"images/{name}.jpg" for name in names[split]},
            {name: np.where((v == 0) | (v == 255), 255, v - 1) for name, v in values.items()},
        )


@pytest.mark.parametrize(
    "places",
    [
        ("images", "annotations"),
        (".", "stuffthingmaps"),
        (".", "stuffthingmaps_trainval2017"),
        ("images", "stuffthingmaps"),
    ],
)
def test_coco_stuff164k_records_equal_the_files(samples, tmp_path, places):
    tree = tmp_path / "tree"
    link_coco164k(samples, tree, *places)
    (tree / "annotations").mkdir(exist_ok=True)
    (tree / "annotations/instances_val2017.json").write_text("{}")  # COCO's own annotations
    builder = datasets.load("coco_stuff164k", tmp_path / "data", tree)
    for split, count in zip(("train", "val"), num_coco_pairs(samples)):
        images = {path.stem: path for path in (tree / places[0] / f"{split}2017").iterdir()}
        assert len(images) == count
        expected = {name: read_png(tree / places[1] / f"{split}2017/{name}.png") for name in images}
        check_split(builder, split, images, expected)


def test_coco_stuff10k_and_164k_agree(samples, tmp_path):
    link_coco10k(samples, tmp_path / "10k")
    link_coco164k(samples, tmp_path / "164k")
    small = datasets.load("coco_stuff10k", tmp_path / "data", tmp_path / "10k")
    large = datasets.load("coco_stuff164k", tmp_path / "data", tmp_path / "164k")
    small_labels = labels(small, "train") | labels(small, "test")
    large_labels = labels(large, "train") | labels(large, "val")
    assert small_labels.keys() == large_labels.keys() and len(small_labels) == sum(num_coco_pairs(samples))
    for name in small_labels:
        np.testing.assert_array_equal(small_labels[name], large_labels[name])


LIP_LAYOUTS = {  # places of images, labels and lists
    "as the official code reads it": ("{}", "{}", "{}"),
    "archives": ("TrainVal_images/{}", "TrainVal_parsing_annotations/{}", "TrainVal_images/{}"),
    "archives in folders": (
        "TrainVal_images/TrainVal_images/{}",
        "TrainVal_parsing_annotations/TrainVal_parsing_annotations/{}",
        "TrainVal_images/TrainVal_images/{}",
    ),
    "no lists": ("{}", "{}", "elsewhere/{}"),
}


@pytest.mark.parametrize("layout", LIP_LAYOUTS)
def test_lip_records_equal_the_files(samples, tmp_path, layout):
    original, tree = samples.root / "lip_samples", tmp_path / "tree"
    for path in original.rglob("*.*"):
        place = LIP_LAYOUTS[layout][2 if path.suffix == ".txt" else 1 if path.suffix == ".png" else 0]
        link({tree / place.format(path.relative_to(original)): path})
    builder = datasets.load("lip", tmp_path / "data", tree)
    for split in "train", "val":
        images = {path.stem: path for path in (original / f"{split}_images").iterdir()}
        expected = {name: read_png(original / f"{split}_segmentations/{name}.png") for name in images}
        check_split(builder, split, images, expected)
    assert len(records(builder, "val")) == 1  # a grey JPEG
