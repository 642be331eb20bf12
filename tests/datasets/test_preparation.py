"""Opening data sets: names, sources and folders that do not fit."""

import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from isnet_jax import datasets
from isnet_jax.errors import UserError


def test_load_refuses_an_unknown_name():
    with pytest.raises(UserError, match="'camvit'.*camvid, scenes"):
        datasets.load("camvit")


def test_load_needs_a_source_unless_prepared(tmp_path):
    with pytest.raises(UserError, match="config.data.source=DIR"):
        datasets.load("camvid", tmp_path)


def test_load_refuses_a_source_for_scenes(tmp_path):
    with pytest.raises(UserError, match="needs no source"):
        datasets.load("scenes", tmp_path, tmp_path)


def test_load_refuses_another_source(tree):
    datasets.load("camvid", tree.parent / "data", tree)
    with pytest.raises(UserError, match=f"from {tree}, but the source is now {tree.parent}"):
        datasets.load("camvid", tree.parent / "data", tree.parent)


def test_load_refuses_a_damaged_data_set(tree):
    data_dir = tree.parent / "data"
    builder = datasets.load("camvid", data_dir, tree)
    for damage in "camvid-val.array_record*", "dataset_info.json", "*":
        for file in Path(builder.data_dir).glob(damage):
            file.unlink()
        with pytest.raises(UserError, match=f"{data_dir}/camvid.*delete it"):
            datasets.load("camvid", data_dir, tree)


def test_load_refuses_a_data_set_with_other_classes(tree):
    builder = datasets.load("camvid", tree.parent / "data", tree)
    (Path(builder.data_dir) / "metadata.json").write_text('{"names": ["cat"], "source": "x"}')
    with pytest.raises(UserError, match="other classes"):
        datasets.load("camvid", tree.parent / "data")


def test_load_refuses_an_unwritable_data_dir(tree):
    (tree.parent / "data").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="data_dir"):
        datasets.load("camvid", tree.parent / "data", tree)


def test_datasets_import_without_tensorflow():
    code = 'import sys, isnet_jax.datasets; assert not {"tensorflow", "tensorflow_datasets"} & set(sys.modules)'
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
