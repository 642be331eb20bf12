"""Tests of checkpoints.pth on files forged to run code, to read out of bounds, or to exhaust memory or time."""

import os
import pickle
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from pth_files import FORMATS, FOUR_FLOATS, MAGIC_NUMBER, Tensor, assert_rejected, dump, forge, torch_save

from isnet_jax.checkpoints import pth, state_dicts
from isnet_jax.errors import UserError


@FORMATS
def test_load_reads_forged_tensors(tmp_path, zipped):
    """What `forge` writes is readable, so the files below are rejected for their content alone."""
    storage, contents = FOUR_FLOATS
    path = forge(
        tmp_path / "a.pth",
        zipped,
        dump({"a": Tensor(storage, 1, (3,), (1,)), "one": Tensor(storage, 3, (1, 1), (10**9, 7))}),
        contents,
    )
    np.testing.assert_array_equal(state_dicts.read(path)["a"], [1, 2, 3])
    np.testing.assert_array_equal(state_dicts.read(path)["one"], [[3]])


def test_load_reads_big_endian_storages(tmp_path):
    storages = [("0", np.arange(4, dtype=">f4").tobytes(), 4), ("1", bytes([0x3F, 0x80, 0xC0, 0]), 2)]
    pickled = dump({"a": Tensor(FOUR_FLOATS[0], 2, (), ()), "brain": Tensor(("BFloat16", "1", 2), 0, (2,), (1,))})
    path = forge(tmp_path / "a.pth", True, pickled, storages)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/byteorder", "big")
    result = pth.load(path)
    assert result["a"] == 2 and result["brain"].tolist() == [1, -2]
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/byteorder", "middle")
    assert_rejected(path, "middle")


@FORMATS
@pytest.mark.parametrize(
    "args",
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (4, (), ()),
        (0, (2, 2), (3, 1)),
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (3, (2,), (-1,)),
        (0, (2,), ()),
        (0, (1000000,), (0,)),
        (0, (2,), (2**62,)),
        (0, (2**40, 2**40), (1, 1)),
        (0, (1.0,), (1,)),
        (0, [2], [1]),
        (0, (1,) * 40, (1,) * 40),
        (2**80, (1,), (1,)),
        (None, (1,), (1,)),
        (0, (0, 2**59, 2**59), (1, 1, 1)),
    ],
    ids=str,
)
def test_load_rejects_tensors_out_of_bounds(tmp_path, zipped, args):
    storage, contents = FOUR_FLOATS
    assert_rejected(forge(tmp_path / "a.pth", zipped, dump({"a": Tensor(storage, *args)}), contents))


@FORMATS
@pytest.mark.parametrize(
    "storage",
    [
        ("Float", "0", 2**50),
        ("Float", "0", 5),
        ("Float", "0", 3),
        ("Float", "0", -1),
        ("Float", "9", 4),
        ("Double", "0", 4),
        ("Untyped", "0", 16),
        ("Float", 0, 4),
        ("Float", "../data.pkl", 4),
        ("Float", "0", True),
    ],
    ids=str,
)
def test_load_rejects_malformed_storages(tmp_path, zipped, storage):
    pickled = dump({"a": Tensor(storage, 0, (1,), (1,))})
    assert_rejected(forge(tmp_path / "a.pth", zipped, pickled, FOUR_FLOATS[1]))


@FORMATS
def test_load_normalises_bools_of_other_bytes(tmp_path, zipped):
    """Bytes of a bool other than 0 and 1 become 1."""
    pickled = dump(Tensor(("Bool", "0", 3), 0, (3,), (1,)))
    path = forge(tmp_path / "a.pth", zipped, pickled, [("0", b"\0\2\xff", 3)])
    assert pth.load(path).view(np.uint8).tolist() == [0, 1, 1]


class Run:
    """Runs a command when unpickled."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@FORMATS
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("function", [os.system, eval, exec])
def test_load_runs_no_code(tmp_path, zipped, protocol, function):
    sentinel = tmp_path / "ran"
    command = f"touch {sentinel}" if function is os.system else f"open({str(sentinel)!r}, 'w')"
    malicious = pickle.dumps(Run(function, command), protocol)
    message = assert_rejected(forge(tmp_path / "a.pth", zipped, malicious), "could run code" if protocol > 1 else "")
    assert protocol < 2 or function.__name__ in message
    beside = pickle.dumps({"a": 1, "b": Run(function, command)}, protocol)
    if protocol > 1:
        assert pth.load(forge(tmp_path / "c.pth", zipped, beside))["b"].name.endswith(f".{function.__name__}")
    with pytest.raises(UserError):
        state_dicts.read(forge(tmp_path / "c.pth", zipped, beside))
    path = tmp_path / "b.pth"  # in place of the other pickles of the legacy format
    path.write_bytes(pickle.dumps(MAGIC_NUMBER, 2) + malicious)
    assert_rejected(path)
    path.write_bytes(malicious)
    assert_rejected(path)
    assert not sentinel.exists()
    pickle.loads(malicious)  # which proves that the test would have noticed
    assert sentinel.exists()


@FORMATS
def test_load_rejects_other_objects(tmp_path, zipped):
    pytest.importorskip("torch")
    import argparse

    import torch

    path = tmp_path / "a.pth"
    assert_rejected(torch_save(argparse.Namespace(lr=1), path, zipped), "argparse.Namespace", "torch.save")
    assert_rejected(torch_save(torch.nn.Linear(1, 1), path, zipped), "torch.nn.modules.linear.Linear")
    assert_rejected(torch_save({"a": torch.ones(2).untyped_storage()}, path, zipped))
    assert_rejected(torch_save({"a": OrderedDict}, path, zipped), "bare")


@FORMATS
def test_load_skips_other_objects(tmp_path, zipped):
    """What they hold is left out, tensors too; what stands beside them is read."""
    torch = pytest.importorskip("torch")
    import argparse
    import datetime
    from collections import defaultdict

    others = {
        "args": argparse.Namespace(lr=1, weights=torch.ones(3)),
        "path": Path("x"),
        "module": torch.nn.Linear(1, 1),
        "set": {1, 2},
        "array": np.ones(2),
        "text": np.str_("text"),
        "date": datetime.datetime.now(),
        "default": defaultdict(list, a=[1]),
        "optimizer": torch.optim.SGD([torch.ones(2, requires_grad=True)], 0.1),
    }
    path = torch_save({**others, Path("key"): 1, "w": torch.arange(3), "epoch": 7}, tmp_path / "a.pth", zipped)
    content = pth.load(path)
    assert list(content) == [*others, "w", "epoch"] and content["epoch"] == 7
    assert all(isinstance(content[name], pth.Skipped) for name in others), content
    assert content["args"].name == "argparse.Namespace" and content["path"].name.startswith("pathlib")
    assert state_dicts.read(path).keys() == {"w"}


MANY_PATHS = b")" + b"q\0h\0\x86" * 60 + b"."  # few objects with 2^60 paths between them: harmless unless walked


@FORMATS
@pytest.mark.parametrize(
    "pickled",
    [
        b"ctorch.storage\n_load_from_bytes\nU\x01x\x85R.",
        b"ctorch\nUntypedStorage\n.",
        b"cbuiltins\ngetattr\n.",
        b"ccollections\nOrderedDict\n)\x81.",
        b"(i__main__\nx\n.",
        b"Pkey\n.",
        b"\x82\x01.",
        b"0.",
        b".",
        b"N",
        b"a.",
        b"]a.",
        b"]NNe.",
        b"t.",
        b"Nb.",
        b"]}b.",
        b"}(NNNu.",
        b"})Ns.",
        b"h\x05.",
        b"NNR.",
        b"ctorch\nSize\nNR.",
        b"ctorch\nSize\n)R.",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"(X\x07\0\0\0storagetQ.",
        b"NQ.",
        b"\x92.",
        b"cnumpy\ndtype\nU\x02O8NN\x87R.",
        b"ccollections\nOrderedDict\n.",
        b"ctorch\nfloat32\n)R.",
        b"\x80\xff.",
        b"\x8b" + b"\xff\xff\xff\x7f" + b"\1" * 9 + b".",
        b"\x8a\xff" + b"\1" * 255 + b".",
        b"L" + b"9" * 9999 + b"L\n.",
        b"X\xff\xff\xff\x7fx.",
        b"\x8d" + b"\xff" * 8 + b"x.",
        b"\x8e" + b"\xff" * 8 + b".",
        b"\x95" + b"\xff" * 8 + b".",
        b"]q\0h\0a.",
        b"}q\0K\1h\0s.",
        b")" + b"\x85" * 100 + b".",
        b"]" * 100000 + b"a" * 99999 + b".",
        b")" + b"\x85" * 100000 + b".",
        b"(" * 100000 + b"t" * 99999 + b".",
        MANY_PATHS,
        b"})" + b"q\0h\0\x86" * 60 + b"Ns.",
        b"]r\xff\xff\xff\xffj\xff\xff\xff\xfea.",
    ],
    ids=lambda x: repr(x[:30]),
)
def test_load_rejects_other_opcodes_quickly(tmp_path, zipped, pickled):
    start = time.process_time()
    path = forge(tmp_path / "a.pth", zipped, b"\x80\x02" + pickled)
    if pickled == MANY_PATHS:
        assert len(pth.load(path)) == 2
    else:
        assert_rejected(path)
    assert time.process_time() - start < 3


@FORMATS
def test_load_rejects_memory_bombs(tmp_path, zipped):
    """Small files that expand when they are read, each in a different way."""
    long_list = b"](" + b"N" * 50000 + b"eq\1"
    text = b"X\x50\xc3\0\0" + b"x" * 50000
    bombs = [
        (b"ccollections\nOrderedDict\nq\0](" + b"K\1K\1\x86" * 9000 + b"eq\1(" + b"h\0h\1\x85R" * 9000 + b"t.", ()),
        (b"c_codecs\nencode\nq\0" + text + b"q\1U\6latin1q\2(" + b"h\0h\1h\2\x86R" * 9000 + b"t.", ()),
        (long_list + b"ctorch\nSize\nq\0(" + b"h\0h\1\x85R" * 9000 + b"t.", ()),
        (
            dump([Tensor(("Float", "0", 25000), 0, (25000 - i,), (1,)) for i in range(900)]),
            [("0", bytes(100000), 25000)],
        ),
        (b"\x8a\xff" * 100000, ()),
    ]
    for pickled, storages in bombs:
        path = forge(tmp_path / "a.pth", zipped, b"\x80\x02" + pickled.removeprefix(b"\x80\x02"), storages)
        tracemalloc.start()
        assert_rejected(path)
        assert tracemalloc.get_traced_memory()[1] < 30e6
        tracemalloc.stop()
