"""Checkpoints of PyTorch for tests: written by PyTorch, kept as fixtures, or forged byte by byte."""

import io
import pickle
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import TESTS

from isnet_jax.checkpoints import pth, state_dicts
from isnet_jax.errors import UserError

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
FIXTURES = {True: TESTS / "data" / "torch_zip.pth", False: TESTS / "data" / "torch_legacy.pth"}
# The fixtures were written by PyTorch 2.13 with:
#     torch.manual_seed(0)
#     net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
#     base = torch.arange(12.).reshape(3, 4)
#     extra = {"half": torch.tensor([1.5, -2]).half(), "brain": torch.tensor([1, -3.]).bfloat16(),
#              "bool": torch.tensor([True, False]), "transposed": base.T, "column": base[:, 1],
#              "empty": torch.zeros(0, 3)}
#     torch.save({"model": net.state_dict(), "extra": extra, "epoch": 7, "size": base.shape}, path,
#                _use_new_zipfile_serialization=zipped)
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # the first value of a legacy file


def torch_save(obj: Any, path: Path, zipped: bool, **options: Any) -> Path:
    """Writes `obj` with PyTorch, or skips the test without it; returns `path`."""
    torch = pytest.importorskip("torch")
    torch.save(obj, path, _use_new_zipfile_serialization=zipped, **options)
    return path


def assert_rejected(path: Path, *words: str) -> str:
    """Asserts that both readers raise a UserError that names the file and holds `words`; returns its text."""
    for function in (pth.load, state_dicts.read):
        with pytest.raises(UserError) as caught:
            function(path)
        message = str(caught.value)
        assert str(path) in message and "\n" not in message and message.endswith("."), message
        for word in words:
            assert word in message, message
    return message


def forge(path: Path, zipped: bool, pickled: bytes, storages: Sequence[tuple[str, bytes, int]] = ()) -> Path:
    """Writes a checkpoint of one pickle and storages, each (key, bytes, number of elements); returns `path`."""
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", pickled)
            for key, content, _ in storages:
                archive.writestr(f"a/data/{key}", content)
    else:
        parts = [pickle.dumps(x, 2) for x in (MAGIC_NUMBER, 1001, {"little_endian": True})]
        parts += [pickled, pickle.dumps([key for key, _, _ in storages], 2)]
        parts += [struct.pack("<q", count) + content for _, content, count in storages]
        path.write_bytes(b"".join(parts))
    return path


class Tensor:
    """Pickled by `dump` as a tensor: storage is (kind, key, elements), args are (offset, shape, strides)."""

    def __init__(self, storage: tuple, *args: Any) -> None:
        self.storage, self.args = storage, args


class Pickler(pickle._Pickler):
    """Pickles Tensors as torch.save does."""

    def save(self, x, *args, **kwargs):
        if not isinstance(x, Tensor):
            return super().save(x, *args, **kwargs)
        kind, key, numel = x.storage
        self.write(b"ctorch._utils\n_rebuild_tensor_v2\n((")
        self.save("storage")
        self.write(f"ctorch\n{kind}Storage\n".encode())
        for part in (key, "cpu", numel):
            self.save(part)
        self.write(b"tQ")
        for part in (*x.args, False, None):
            self.save(part)
        self.write(b"tR")


def dump(obj: Any) -> bytes:
    """The pickle of an object that may hold Tensors."""
    stream = io.BytesIO()
    Pickler(stream, 2).dump(obj)
    return stream.getvalue()


# a storage of four floats, for Tensor, and its content, for `forge`
FOUR_FLOATS = ("Float", "0", 4), [("0", np.arange(4, dtype="<f4").tobytes(), 4)]
