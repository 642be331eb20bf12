"""Trees of the official data sets that are refused: missing files, wrong lists, illegal values."""

import shutil
from pathlib import Path

import pytest
from data_sets import OFFICIAL, builder_class, link, records, refusal, write_smallest_tree, write_uniform

from isnet_jax import datasets

REFUSED = {  # the part that is removed, and parts of the message
    "ade20k": [
        ("images/validation/b.jpg", ["There is no file TREE/images/validation/*{.jpg,.png,...}"]),
        ("annotations/training", ["The folder TREE/annotations/training is missing."]),
        ("annotations", ["TREE/annotations/training is", "TREE/annotations/validation is"]),
    ],
    "cityscapes": [
        ("gtFine/train/ulm", ["There is no file TREE/gtFine/train/*/*_gtFine_labelIds.png"]),
        ("leftImg8bit", ["TREE/leftImg8bit/train is missing", "TREE/leftImg8bit/val is missing"]),
    ],
    "coco_stuff10k": [
        ("annotations/b.mat", ["TREE/annotations/*.mat that imageLists/test.txt lists"]),
        ("images/a.jpg", ["TREE/images/*{.jpg,.png,...} that imageLists/train.txt lists"]),
        ("imageLists/test.txt", ["TREE/imageLists/test.txt cannot be read (No such file"]),
        ("images", ["TREE/images is missing"]),
    ],
    "coco_stuff164k": [("annotations", ["annotations/train2017 is missing", "annotations/val2017 is missing"])],
    "lip": [
        ("val_segmentations", ["The folder TREE/val_segmentations is missing"]),
        ("train_images/a.jpg", ["TREE/train_images/*{.jpg,.png,...} that train_id.txt lists"]),
    ],
}
ILLEGAL_VALUES = {"ade20k": 151, "cityscapes": 34, "coco_stuff10k": 183, "coco_stuff164k": 182, "lip": 20}


@pytest.mark.parametrize("name, removed, parts", [(name, *case) for name, cases in REFUSED.items() for case in cases])
def test_survey_reports_missing_parts(tmp_path, name, removed, parts):
    tree = write_smallest_tree(name, tmp_path / "tree")
    (shutil.rmtree if (tree / removed).is_dir() else Path.unlink)(tree / removed)
    refusal(name, tree, *(part.replace("TREE", str(tree)) for part in parts), builder_class(name).LAYOUT)


def test_survey_reports_every_missing_partner(tmp_path):
    tree = write_smallest_tree("cityscapes", tmp_path / "tree")
    write_uniform(tree, ["leftImg8bit/val/ulm/c_leftImg8bit.png"], ["gtFine/train/ulm/d_gtFine_labelIds.png"])
    write_uniform(tree, labels=["gtFine/val/ulm/d_gtFine_labelTrainIds.png"])  # is ignored
    refusal(
        "cityscapes",
        tree,
        f"c_leftImg8bit.png has no label c_gtFine_labelIds.png in {tree}/gtFine/val/ulm.",
        f"d_gtFine_labelIds.png has no image d_leftImg8bit.png in {tree}/leftImg8bit/train/ulm.",
    )


@pytest.mark.parametrize("name", ["coco_stuff10k", "lip"])
def test_list_file_decides_which_pairs_count(tmp_path, name):
    tree = write_smallest_tree(name, tmp_path / "tree")
    images = "images" if name == "coco_stuff10k" else "train_images"
    write_uniform(tree, [f"{images}/extra.jpg"])
    assert len(records(datasets.load(name, tmp_path / "data", tree), "train")) == 1
    shutil.rmtree(tmp_path / "data")
    next(tree.rglob("train*.txt")).write_text("a\r\nextra\r\n\r\nlost\r\n")
    refusal(name, tree, "extra.jpg has no label extra.", "lists lost, but there is no")


@pytest.mark.parametrize("name", OFFICIAL)
def test_survey_reports_illegal_values(tmp_path, name):
    tree = write_smallest_tree(name, tmp_path / "tree")
    suffix = ".mat" if "10k" in name else ".png"
    label = min(path for path in tree.rglob("*") if path.suffix == suffix and "Img" not in path.name)
    value = ILLEGAL_VALUES[name]
    write_uniform(tree, labels=[str(label.relative_to(tree))], value=value)
    refusal(name, tree, label, value, "row 0, column 0")


def test_survey_reports_an_annotation_without_image(samples, tmp_path):
    path = samples.root / "extras/ade20k/orphan_annotation/ADE_train_00000970.png"
    tree = write_smallest_tree("ade20k", tmp_path / "tree")
    link({tree / "annotations/training" / path.name: path})
    refusal("ade20k", tree, "ADE_train_00000970.png has no image ADE_train_00000970{.jpg,.png,...}")
