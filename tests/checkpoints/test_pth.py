"""Tests of checkpoints.pth on files that PyTorch writes."""

import subprocess
import sys
from collections import Counter, OrderedDict

import ml_dtypes
import numpy as np
import pytest
from paths import ROOT
from pth_files import FIXTURES, FORMATS, torch_save

from isnet_jax.checkpoints import pth, state_dicts


def assert_same(ours, theirs):
    """Asserts that `ours` is what load should return for `theirs`, an object of PyTorch."""
    import torch

    if isinstance(theirs, torch.Tensor):
        assert type(ours) is np.ndarray and ours.shape == tuple(theirs.shape) and ours.flags.c_contiguous
        assert ours.dtype.name == str(theirs.dtype).removeprefix("torch.") and ours.flags.writeable
        theirs = theirs.detach()
        if theirs.dtype == torch.bfloat16:
            ours, theirs = ours.astype(np.float32), theirs.float()
        np.testing.assert_array_equal(ours, theirs.numpy())
    elif isinstance(theirs, dict):
        assert isinstance(ours, dict) and list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        assert isinstance(ours, type(theirs) if type(theirs) is list else tuple) and len(ours) == len(theirs)
        for our_item, their_item in zip(ours, theirs):
            assert_same(our_item, their_item)
    else:
        assert type(ours) is type(theirs) and ours == theirs


@FORMATS
def test_load_reads_the_fixtures(zipped):
    result = pth.load(FIXTURES[zipped])
    assert result["epoch"] == 7 and result["size"] == (3, 4) and type(result["model"]) is OrderedDict
    base, extra = np.arange(12, dtype=np.float32).reshape(3, 4), result["extra"]
    expected = {
        "half": np.array([1.5, -2], np.float16),
        "brain": np.array([1, -3], ml_dtypes.bfloat16),
        "bool": np.array([True, False]),
        "transposed": base.T,
        "column": base[:, 1],
        "empty": np.zeros((0, 3), np.float32),
    }
    assert list(extra) == list(expected)
    for name, array in expected.items():
        assert extra[name].dtype == array.dtype and extra[name].flags.c_contiguous
        np.testing.assert_array_equal(extra[name], array)
    weights = state_dicts.read(FIXTURES[zipped])
    assert {name: value.shape for name, value in weights.items()} == {
        "0.weight": (2, 1, 3, 3),
        "0.bias": (2,),
        "1.weight": (2,),
        "1.bias": (2,),
        "1.running_mean": (2,),
        "1.running_var": (2,),
        "1.num_batches_tracked": (),
    }
    # the first weight after torch.manual_seed(0)
    np.testing.assert_allclose(weights["0.weight"][0, 0, 0], [-0.0025, 0.1788, -0.2743], atol=1e-4)
    np.testing.assert_array_equal(weights["1.running_var"], [1, 1])


@FORMATS
@pytest.mark.parametrize("protocol", [2, 4])
def test_load_reads_all_kinds_of_values(tmp_path, zipped, protocol):
    torch = pytest.importorskip("torch")
    dtypes = [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
        torch.complex64,
        torch.complex128,
    ]
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    obj = {
        "dtypes": [torch.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype) for dtype in dtypes],
        "views": (base, base[1:, ::2, 3], base.permute(2, 0, 1), base[2], base.reshape(-1)[7:8], base[:, :0]),
        "scalar": torch.tensor(3),
        "parameter": torch.nn.Parameter(base[0].clone()),
        "values": [1, -1, 255, 70000, 2**63 + 1, 0.5, True, None, "ü" * 300, b"\xff\0", (), (1,), (1, 2, 3, 4), {}],
        "ordered": OrderedDict(b=1, a=[2]),
        "size": base.shape,
        5: {None: 1, 1.5: 2},
        "float64": np.float64(0.25),
        "int64": np.int64(-3),
        "bool": np.bool_(True),
    }
    assert_same(pth.load(torch_save(obj, tmp_path / "a.pth", zipped, pickle_protocol=protocol)), obj)


@FORMATS
def test_load_replaces_dtypes_devices_and_counters(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    obj = {
        "dtype": torch.float32,
        "brain": torch.bfloat16,
        "device": torch.device("cuda:0"),
        "milestones": Counter([3, 3]),
    }
    result = pth.load(torch_save(obj, tmp_path / "a.pth", zipped))
    assert result == {"dtype": np.float32, "brain": ml_dtypes.bfloat16, "device": "cuda", "milestones": {3: 2}}


@FORMATS
def test_load_shares_equal_views_of_a_storage(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    base = torch.arange(6.0)
    result = pth.load(torch_save([base, base, base[2:4], base.view(2, 3)], tmp_path / "a.pth", zipped))
    assert result[0] is result[1]
    assert_same(result, [base, base, base[2:4], base.view(2, 3)])


@FORMATS
def test_load_reads_the_state_of_optimizers(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    obj = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    path = torch_save(obj, tmp_path / "a.pth", zipped)
    assert_same(pth.load(path)["optimizer"], obj["optimizer"])
    assert_same(state_dicts.read(path), dict(net.state_dict()))


def test_load_reads_a_zip_without_checksums(tmp_path):
    torch = pytest.importorskip("torch")
    torch.serialization.set_crc32_options(False)
    try:
        path = torch_save({"a": torch.arange(5)}, tmp_path / "a.pth", True)
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(state_dicts.read(path)["a"], np.arange(5))


def test_read_needs_neither_torch_nor_pickle():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import pickle\n"
        "def no(*a, **k): raise AssertionError('pickle was used')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = pickle._Unpickler = no\n"
        "from isnet_jax.checkpoints import state_dicts\n"
        f"for path in {[str(p) for p in FIXTURES.values()]!r}: assert len(state_dicts.read(path)) == 7\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
