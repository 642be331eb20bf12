"""Tests of checkpoints.pth on files that are damaged, or are no checkpoints with weights."""

import os
import pickle
import random
import zipfile

import pytest
from pth_files import FIXTURES, FORMATS, assert_rejected, forge

from isnet_jax.checkpoints import pth, state_dicts
from isnet_jax.errors import UserError


@pytest.mark.parametrize(
    "content, word",
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"PK\3\4" + b"\0" * 100, "damaged"),
        (b"\x93NUMPY", "not in a PyTorch format"),
        (pickle.dumps({"a": 1}), "not in a PyTorch format"),
        (random.Random(0).randbytes(500), "."),
        (b"\x80\x02", "not in a PyTorch format"),
    ],
)
def test_load_rejects_other_content(tmp_path, content, word):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    assert_rejected(path, word)


def test_load_rejects_what_is_not_a_file(tmp_path):
    assert_rejected(tmp_path, "not a file")
    assert_rejected(tmp_path / "missing.pth", "does not exist")
    assert_rejected(tmp_path / ("x" * 5000))
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    assert_rejected(fifo, "not a file")


def test_load_rejects_other_zip_archives(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    assert_rejected(path, "not one of PyTorch")
    with zipfile.ZipFile(FIXTURES[True]) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    assert_rejected(path, "compressed")


def test_load_detects_a_damaged_storage(tmp_path):
    content = bytearray(FIXTURES[True].read_bytes())
    with zipfile.ZipFile(FIXTURES[True]) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data/0"))
        content[content.index(archive.read(name))] ^= 1
    (tmp_path / "a.pth").write_bytes(content)
    assert_rejected(tmp_path / "a.pth", "checksum")


@FORMATS
def test_load_rejects_truncated_files(tmp_path, zipped):
    content, path = FIXTURES[zipped].read_bytes(), tmp_path / "a.pth"
    for size in range(1, len(content), 37):
        path.write_bytes(content[:size])
        assert_rejected(path)


@FORMATS
@pytest.mark.parametrize(
    "obj, word",
    [
        ([1, 2], "list"),
        ({}, "empty"),
        ({"model": {}}, "empty"),
        ({"epoch": 3, "model": 1}, "int at 'epoch', a int at 'model'"),
        (3, "int"),
        ({"state_dict": {"a": None}}, "NoneType at 'a'"),
    ],
)
def test_read_rejects_files_without_weights(tmp_path, zipped, obj, word):
    path = forge(tmp_path / "a.pth", zipped, pickle.dumps(obj, 2))
    assert pth.load(path) == obj
    with pytest.raises(UserError, match=word):
        state_dicts.read(path)
