"""MATLAB matrices: every version and type of number, and files that are refused."""

import pickle
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import scipy.io
from data_sets import refusal, write_smallest_tree

from isnet_jax.errors import UserError

BAD_MATRICES = {  # content of the file, and a part of the message
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
    "another size": ({"S": np.ones((5, 4))}, "5 x 4"),
}


@pytest.mark.parametrize("case", BAD_MATRICES)
@pytest.mark.parametrize("compressed", [False, True])
def test_read_mat_refuses_bad_matrices(tmp_path, case, compressed, monkeypatch):
    from isnet_jax.datasets import mat

    tree = write_smallest_tree("coco_stuff10k", tmp_path / "tree")
    content, message = BAD_MATRICES[case]
    scipy.io.savemat(tree / "annotations/a.mat", content, do_compression=compressed)
    monkeypatch.setattr(mat, "MAX_PIXELS", 1000)
    refusal("coco_stuff10k", tree, tree / "annotations/a.mat", message)


@pytest.mark.parametrize("zeros", [10_000, 10_000_000])
def test_read_mat_inflates_no_more_than_the_header_declares(tmp_path, zeros):
    """The header says 4 x 5, and far more data follows."""
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
def test_read_mat_refuses_truncated_files(tmp_path, keep):
    tree = write_smallest_tree("coco_stuff10k", tmp_path / "tree")
    path = tree / "annotations/a.mat"
    scipy.io.savemat(path, {"S": np.arange(20).reshape(4, 5)}, do_compression=True)
    path.write_bytes(path.read_bytes()[:keep])
    refusal("coco_stuff10k", tree, path)


@pytest.mark.parametrize("data", [pickle.dumps({"S": np.ones((4, 5))}), b"\x89HDF\r\n\x1a\n" + bytes(600), b"x" * 600])
def test_read_mat_refuses_other_formats(tmp_path, data):
    tree = write_smallest_tree("coco_stuff10k", tmp_path / "tree")
    (tree / "annotations/a.mat").write_bytes(data)
    refusal("coco_stuff10k", tree, tree / "annotations/a.mat")


@pytest.mark.parametrize("kind", ["f8", "f4", "u1", "u2", "i4", "i8"])
def test_read_mat_reads_every_version_and_dtype(tmp_path, kind):
    from isnet_jax.datasets.mat import read_mat

    values = np.arange(20).reshape(4, 5)
    content = {"names": np.array(["x"], object), "captions": "a" * 77, "S": values.astype(kind)}
    for compressed in False, True:
        scipy.io.savemat(tmp_path / "a.mat", content, do_compression=compressed)
        matrix = read_mat(tmp_path / "a.mat", "S")
        np.testing.assert_array_equal(matrix, values)
        assert matrix.dtype.kind in "iu"
    scipy.io.savemat(tmp_path / "a.mat", {"S": values}, format="4")
    np.testing.assert_array_equal(read_mat(tmp_path / "a.mat", "S"), values)
