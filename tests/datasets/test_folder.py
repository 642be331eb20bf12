"""Users' own folders: config.data.folder, from the config file to the records."""

import json
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from data_sets import check_split, labels, read_png, records, refusal, write_uniform
from ml_collections import config_flags
from paths import ROOT

from isnet_jax import config, datasets
from isnet_jax.errors import UserError

OWN = """
from isnet_jax import config

def get_config(backbone="resnet18"):
    c = config.default(backbone)
    c.model.num_classes = 3
    c.data.name = "folder"
    c.data.folder.name = "pseudo"
    c.data.folder.classes = ("ground", "", "tree", "house")
    c.data.folder.splits = {"train": ("imgs/*_img.jpg", "gts/*_gt.png"), "val": ("imgs/*_img", "gts/*_gt")}
    return c
"""


def test_prepare_command_takes_folders_from_a_config(samples, tmp_path):
    """With a config file, and fields that the command line overrides."""
    (tmp_path / "own.py").write_text(OWN)
    tree = samples.root / "mmseg_pseudo/pseudo_dataset"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "isnet_jax.prepare",
            f"--config={tmp_path}/own.py",
            f"--config.data.source={tree}",
            f"--config.data.data_dir={tmp_path}/data",
            "--config.data.folder.name=typed",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    c = runpy.run_path(str(tmp_path / "own.py"))["get_config"]()
    c.data.folder.name = "typed"
    builder = datasets.load("folder", tmp_path / "data", folder=c.data.folder)
    assert Path(builder.data_dir) == tmp_path / "data/folder/typed/1.0.0"
    assert builder.info.metadata["names"] == ["ground", "tree", "house"]
    assert len({tuple(color) for color in builder.info.metadata["palette"]}) == 3
    names = [f"{i:05d}" for i in range(5)]
    values = {name: read_png(tree / f"gts/{name}_gt.png") for name in names}
    expected = {name: np.select([v == 0, v == 2, v == 3], [0, 1, 2], 255) for name, v in values.items()}
    for split in "train", "val":
        check_split(builder, split, {name: tree / f"imgs/{name}_img.jpg" for name in names}, expected)
    assert pickle.loads(pickle.dumps(records(builder, "val")))[4]["name"] == b"00004"  # as worker processes need it


def test_config_folder_is_set_by_flags_and_survives_json(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    args = [
        f"--config={tmp_path}/own.py",
        "--config.data.folder.name=other",
        "--config.data.folder.classes=('x', 'y')",
        "--config.data.folder.splits.train=('i', 'l')",
        "--config.data.folder.palette=((1, 2, 3), (4, 5, 6))",
    ]
    flag_values = flags.FlagValues()
    monkeypatch.setattr("sys.argv", ["test", *args])  # where config_flags looks for fields
    flag = config_flags.DEFINE_config_file("config", flag_values=flag_values)
    flag_values(["test", *args])
    config.check(flag.value)
    current = flag.value.to_dict()
    assert current["data"]["folder"] == {
        "name": "other",
        "classes": ("x", "y"),
        "label_values": (),
        "palette": ((1, 2, 3), (4, 5, 6)),
        "exif": True,
        "split_seed": 0,
        "splits": {"train": ("i", "l"), "val": ("imgs/*_img", "gts/*_gt")},
    }
    recorded = json.loads(json.dumps(current))  # as in a workdir's config.json
    flag.value.data.folder.classes = ("x", "z")
    changes = config.differences(json.loads(json.dumps(flag.value.to_dict())), recorded)
    assert len(changes) == 1 and changes[0].startswith("data.folder.classes")


@pytest.fixture
def own(tmp_path):
    """A tree with one pair, and the config.data.folder that describes it."""
    write_uniform(tmp_path / "tree", ["i/a.jpg"], ["l/a.png"])
    c = config.default().data.folder
    c.name, c.classes, c.splits = "own", ("a", "b"), {"train": ("i", "l")}
    return tmp_path / "tree", c


def test_folder_maps_values_by_classes(own):
    tree, folder = own
    write_uniform(tree, labels=["l/a.png"], value=2)
    refusal("folder", tree, tree / "l/a.png", "2", "row 0", "0..1, 255", folder=folder)
    folder.classes = ("", "a", "b")
    for value, expected in (0, 255), (1, 0), (2, 1), (255, 255):
        folder.name = f"own{value}"
        write_uniform(tree, labels=["l/a.png"], value=value)
        assert (labels(datasets.load("folder", tree.parent / "data", tree, folder), "train")["a"] == expected).all()


def test_folder_data_sets_of_different_names_coexist(own, capfd):
    tree, folder = own
    first = datasets.load("folder", tree.parent / "data", tree, folder)
    folder.name, folder.classes = "other", ("x", "y", "z")
    second = datasets.load("folder", tree.parent / "data", tree, folder)
    assert first.data_dir != second.data_dir
    assert capfd.readouterr().err.splitlines() == [
        "warning: The split train has no pixel of 1 of 2 classes: a.",
        "warning: The split train has no pixel of 2 of 3 classes: x, z.",
    ]
    assert list(second.info.metadata["names"]) == ["x", "y", "z"]


@pytest.mark.parametrize(
    "change",
    [{"classes": ("a", "c")}, {"classes": ("", "a", "b")}, {"splits": {"train": ("i", "l"), "val": ("i", "l")}}],
)
def test_folder_refuses_other_classes_or_splits(own, change):
    tree, folder = own
    datasets.load("folder", tree.parent / "data", tree, folder)
    for field, value in change.items():
        folder[field] = value
    place = tree.parent / "data/folder/own/1.0.0"
    (field,) = change
    refusal("folder", tree, f"{place} has been prepared with other {field} in", "--overwrite", folder=folder)


def test_folder_accepts_another_palette(own):
    tree, folder = own
    datasets.load("folder", tree.parent / "data", tree, folder)
    folder.palette = ((1, 2, 3), (4, 5, 6))
    builder = datasets.load("folder", tree.parent / "data", tree, folder)
    assert builder.info.metadata["palette"] == [[1, 2, 3], [4, 5, 6]]
    assert list(builder.info.metadata["names"]) == ["a", "b"]


@pytest.mark.parametrize(
    "field, value",
    [
        ("name", ""),
        ("name", "a/b"),
        ("name", ".."),
        ("name", "a b"),
        ("classes", ()),
        ("classes", ("a", "")),
        ("classes", ("a", "a")),
        ("classes", ("a", 1)),
        ("classes", tuple(map(str, range(256)))),
        ("palette", ((1, 2, 3),)),
        ("palette", ((1, 2), (3, 4))),
        ("palette", ((1, 2, 3), (4, 5, 256))),
        ("splits", {}),
        ("splits", {"train": "i"}),
        ("splits", {"train": ("i",)}),
        ("splits", {"train": ("i", "")}),
        ("splits", {"all": ("i", "l")}),
        ("splits", {"train": ("i/*/*", "l")}),
        ("splits", {"a/b": ("i", "l")}),
    ],
)
def test_folder_refuses_invalid_fields(own, field, value):
    tree, folder = own
    folder[field] = value
    message = refusal("folder", tree, f"config.data.folder.{field} is ", "it must be", folder=folder)
    assert not (tree.parent / "data").exists() and "\n" not in message


def test_folder_reports_missing_folders_and_source(own):
    tree, folder = own
    folder.splits = {"train": ("i", "l"), "val": ("nowhere", "l")}
    refusal("folder", tree, f"The folder {tree}/nowhere is missing", folder=folder)
    with pytest.raises(UserError, match="config.data.source=DIR"):
        datasets.load("folder", tree.parent / "data", folder=folder)


def test_own_folder_config_prepares(tmp_path):
    """The template that the documentation tells users to copy."""
    c = runpy.run_path(str(ROOT / "configs/own_folder.py"))["get_config"]()
    config.check(c)
    for split in "train", "val":
        write_uniform(tmp_path / "tree", [f"images/{split}/a.jpg"], [f"labels/{split}/a.png"], value=2)
    builder = datasets.load(c.data.name, tmp_path / "data", tmp_path / "tree", c.data.folder)
    assert len(builder.info.metadata["names"]) == c.model.num_classes
    assert (labels(builder, c.data.eval_split)["a"] == 2).all()
