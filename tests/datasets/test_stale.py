"""Prepared data whose original files change, are replaced, or are only partly there."""

import json
import os

import numpy as np
import pytest
from data_sets import contents, labels, write_pair, write_palette_label, write_uniform

from isnet_jax import config, datasets
from isnet_jax.errors import UserError


@pytest.fixture
def own(tmp_path):
    """A tree of a train and a val split, and the config.data.folder that describes it."""
    for split, number in ("train", 3), ("val", 1):
        files = range(number)
        write_uniform(tmp_path / "tree", [f"i/{split}/{i}.png" for i in files], [f"l/{split}/{i}.png" for i in files])
    c = config.default().data.folder
    c.name, c.classes = "own", ("a", "b")
    c.splits = {split: (f"i/{split}", f"l/{split}") for split in ("train", "val")}
    return tmp_path / "tree", c


def add_pair(tree):
    write_uniform(tree, ["i/train/new.png"], ["l/train/new.png"])


def change_label(tree):
    write_uniform(tree, labels=["l/train/1.png"], value=0)


def remove_pair(tree):
    for kind in "i", "l":
        (tree / f"{kind}/train/2.png").unlink()


@pytest.mark.parametrize(
    "change, told",
    [
        (add_pair, "train: 1 new (new)"),
        (change_label, "train: files were written or touched"),
        (remove_pair, "train: 1 gone (2)"),
    ],
)
@pytest.mark.parametrize("with_source", [True, False])
def test_changed_files_are_told_and_prepared_again(own, tmp_path, capfd, change, told, with_source):
    tree, folder = own
    datasets.prepare("folder", tmp_path / "data", tree, folder)
    capfd.readouterr()
    datasets.prepare("folder", tmp_path / "data", tree, folder)
    assert "changed" not in capfd.readouterr().err
    change(tree)
    source = tree if with_source else None
    with pytest.raises(UserError, match="--overwrite") as error:
        datasets.prepare("folder", tmp_path / "data", source, folder)
    assert told in str(error.value)
    old = datasets.load("folder", tmp_path / "data", source, folder)  # a run goes on with the old records
    assert told in capfd.readouterr().err and set(labels(old, "train")) == {"0", "1", "2"}
    if with_source:
        builder, survey = datasets.prepare("folder", tmp_path / "data", tree, folder, overwrite=True)
        assert survey and os.listdir(builder.data_path.parent) == ["1.0.0"]
        expected = {path.stem for path in (tree / "i/train").iterdir()}
        new = labels(builder, "train")
        assert set(new) == expected and (new["1"] == (change is not change_label)).all()
    else:
        with pytest.raises(UserError, match="--overwrite needs the original files"):
            datasets.prepare("folder", tmp_path / "data", None, folder, overwrite=True)


def test_overwrite_keeps_the_old_records_until_the_new_ones_are_complete(own, tmp_path):
    tree, folder = own
    datasets.prepare("folder", tmp_path / "data", tree, folder)
    before = contents(tmp_path / "data")
    (tree / "i/val/0.png").write_bytes(b"")
    with pytest.raises(UserError, match="1 problem"):
        datasets.prepare("folder", tmp_path / "data", tree, folder, overwrite=True)
    kept = {name: data for name, data in contents(tmp_path / "data").items() if "checked" not in name}
    assert kept == before


def test_records_set_aside_by_a_process_that_died_are_brought_back(own, tmp_path, capfd):
    tree, folder = own
    datasets.prepare("folder", tmp_path / "data", tree, folder)
    place = tmp_path / "data/folder/own"
    (place / "1.0.0").rename(place / "replaced.1.0.0")
    builder = datasets.load("folder", tmp_path / "data", None, folder)
    assert len(labels(builder, "train")) == 3 and os.listdir(place) == ["1.0.0"]
    assert "the records of before are back" in capfd.readouterr().err


def test_a_palette_that_labels_may_be_read_by_is_a_change(own, tmp_path):
    tree, folder = own
    for split, number in ("train", 3), ("val", 1):
        for i in range(number):
            write_palette_label(tree / f"l/{split}/{i}.png", np.ones((4, 5)))
    datasets.prepare("folder", tmp_path / "data", tree, folder)
    folder.palette = ((37, 74, 111), (0, 0, 0))
    with pytest.raises(UserError, match="other palette in config.data.folder"):
        datasets.prepare("folder", tmp_path / "data", tree, folder)


def test_shares_of_few_pairs_are_refused_if_nothing_is_left(own, tmp_path, capfd):
    tree, folder = own
    folder.splits = {"train": ("i/train", "l/train", 0.9), "val": ("i/train", "l/train", 0.1)}
    with pytest.raises(UserError, match="1 problem"):
        datasets.prepare("folder", tmp_path / "data", tree, folder)
    assert "The split val takes 0.1 of 3 pairs, which is none" in capfd.readouterr().err
    folder.splits = {"train": ("i/train", "l/train", 0.5), "val": ("i/train", "l/train", 0.5)}
    (tree / "l/train/0.png").unlink()
    with pytest.raises(UserError, match="1 problem"):  # which both splits have
        datasets.prepare("folder", tmp_path / "data", tree, folder)


@pytest.mark.parametrize(
    "name, content",
    [
        ("stamps", {"nope": "x"}),
        ("stamps", ["x"]),
        ("stamps", {"train": 1}),
        ("pixels", {"nope": [1, 2, 3]}),
        ("pixels", {"train": [1]}),
        ("pixels", {"train": [1, 2, "3"]}),
        ("upright", "yes"),
    ],
)
def test_foreign_metadata_are_refused(own, tmp_path, name, content):
    tree, folder = own
    builder, _ = datasets.prepare("folder", tmp_path / "data", tree, folder)
    path = builder.data_path / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: content}))
    with pytest.raises(UserError, match="is not a complete data set"):
        datasets.load("folder", tmp_path / "data", tree, folder)


def test_overwrite_takes_other_fields(own, tmp_path):
    tree, folder = own
    datasets.prepare("folder", tmp_path / "data", tree, folder)
    folder.classes = ("a", "", "b")
    with pytest.raises(UserError, match="other classes in config.data.folder: .*--overwrite"):
        datasets.prepare("folder", tmp_path / "data", tree, folder)
    builder, _ = datasets.prepare("folder", tmp_path / "data", tree, folder, overwrite=True)
    assert (labels(builder, "val")["0"] == 255).all()


def test_only_the_splits_that_are_needed_are_prepared(own, tmp_path, capfd):
    tree, folder = own
    builder, _ = datasets.prepare("folder", tmp_path / "one", tree, folder, splits=["val"])
    assert list(builder.info.splits) == ["val"]
    with pytest.raises(UserError, match="no split 'test': choose among train, val"):
        datasets.prepare("folder", tmp_path / "other", tree, folder, splits=["test"])
    (tree / "i/train").rename(tmp_path / "away")
    with pytest.raises(UserError, match="1 problem"):
        datasets.load("folder", tmp_path / "two", tree, folder, needed=["train", "val"])
    capfd.readouterr()
    builder = datasets.load("folder", tmp_path / "two", tree, folder, needed=["val"])
    assert list(builder.info.splits) == ["val"]
    assert "no files of the split train, which this command does not need" in capfd.readouterr().err


def test_evaluation_needs_only_its_own_split_of_an_official_data_set(tmp_path):
    for i in range(2):
        write_pair(tmp_path / "tree", "test", f"x{i}")
    builder = datasets.load("camvid", tmp_path / "data", tmp_path / "tree", needed=["test"])
    assert list(builder.info.splits) == ["test"] and len(labels(builder, "test")) == 2


def test_splits_are_joined_by_plus(own, tmp_path):
    from isnet_jax.input import pipeline

    tree, folder = own
    builder = datasets.load("folder", tmp_path / "data", tree, folder)
    records = pipeline.open_split(builder, "train+val")
    assert [records[i]["name"] for i in range(len(records))] == [b"0", b"1", b"2", b"0"]
    assert len(pipeline.split_examples(builder, "train+val")) == 4
    for split in "train+test", "train+train", "":
        with pytest.raises(UserError, match="must be among train, val, or several joined by"):
            pipeline.open_split(builder, split)


def test_shares_divide_the_pairs(tmp_path):
    write_uniform(tmp_path / "tree", [f"i/{i:02}.png" for i in range(20)], [f"l/{i:02}.png" for i in range(20)])
    c = config.default().data.folder
    c.classes, c.splits = ("a", "b"), {"train": ("i", "l", 0.8), "val": ("i", "l", 0.2)}
    parts = []
    for seed in 0, 0, 1:
        c.split_seed, c.name = seed, f"own{len(parts)}"
        builder = datasets.load("folder", tmp_path / "data", tmp_path / "tree", c)
        parts.append([set(labels(builder, split)) for split in ("train", "val")])
        train, val = parts[-1]
        assert (len(train), len(val)) == (16, 4) and not train & val
    assert parts[0] == parts[1] != parts[2]


@pytest.mark.parametrize("name", ["data [1]", "d*", "d?", "a]b", "ü 路", "x" * 255])
def test_data_dirs_and_sources_may_have_any_name(own, tmp_path, name):
    tree, folder = own
    source = tree.rename(tmp_path / f"{name[:200]} source")
    datasets.prepare("folder", tmp_path / name, source, folder)
    builder = datasets.load("folder", tmp_path / name, source, folder)
    assert set(labels(builder, "train")) == {"0", "1", "2"}


def test_counts_of_pixels_are_kept(own, tmp_path):
    tree, folder = own
    builder = datasets.load("folder", tmp_path / "data", tree, folder)
    assert builder.info.metadata["pixels"] == {"train": [0, 60, 0], "val": [0, 20, 0]}
    assert np.shape(list(builder.info.metadata["stamps"].values())) == (2,)
