"""Reads PyTorch checkpoints (.pth, .pt) without PyTorch and without executing anything stored in them.

A checkpoint is a pickle of names and numbers that refers to raw storages. Both are members of a zip archive (PyTorch
1.6 and later) or follow one another (the legacy format). A pickle is a program, so the file is never handed to
`pickle`. Instead, its opcodes drive a small stack machine, which implements the few that checkpoints need and rejects
all others. Classes and functions that it does not know are never imported: what they would make is Skipped.
"""

import dataclasses
import math
import os
import pickletools
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from isnet_jax.errors import UserError

_MAX_PICKLE_BYTES = 4 << 20  # real ones have about 250 bytes a tensor; a hostile byte costs 100 bytes and 1 us
_MAX_DEPTH = 64  # of nested containers
_MAX_EXPANSION = 4  # bytes of all tensors per byte of the file: shared storages repeat a little, a memory bomb a lot
_MAGIC, _VERSION = b"l\xfc\x9cF\xf9 j\xa8P\x19", 1001  # the first two values of a legacy file

_DOWNLOAD_AGAIN = "Download or copy it again, and compare its size and checksum with those of the original"
_RESAVE = (
    "If you trust its source, open it once with PyTorch and save the weights alone: "
    "torch.save(model.state_dict(), 'weights.pth')"
)


def load(path: str | os.PathLike) -> Any:
    """The object that torch.load(path) returns, with each tensor as a C-contiguous, writable NumPy array.

    bfloat16 becomes ml_dtypes.bfloat16, a torch.dtype its NumPy dtype, a torch.device its type, torch.Size a tuple and
    Counter a dict. An OrderedDict loses its attributes (`_metadata`). Equal views of a storage are the same array. Any
    other object inside is Skipped. Raises UserError, and nothing else, if the file is missing, damaged, or is such an
    object as a whole.
    """
    try:
        return _load(Path(path))
    except _Rejected as error:
        raise UserError(f"Cannot read the checkpoint {path}: {error}.") from error
    except Exception as error:  # hostile bytes can make zipfile, genops, NumPy and the stack machine raise anything
        is_os_error = isinstance(error, OSError)
        remedy = "Check the path and its permissions" if is_os_error else f"It is damaged. {_DOWNLOAD_AGAIN}"
        raise UserError(
            f"Cannot read the checkpoint {path} ({type(error).__name__}: {quote(error)}). {remedy}."
        ) from error


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Stands for an object of a class, or the result of a function, that is not read since it could run code."""

    name: str


class _Rejected(Exception):
    """What is wrong with the file, and what to do about it."""


def _require(condition: Any, fault: str, remedy: str = _DOWNLOAD_AGAIN) -> None:
    if not condition:
        raise _Rejected(f"{fault}. {remedy}")


def quote(text: Any) -> str:
    """The first 100 characters in quotation marks, as ASCII: untrusted text may hold terminal escape sequences."""
    return f"{str(text)[:100]!a}"


def _load(path: Path) -> Any:
    """The object in the file; may raise any exception."""
    _require(path.is_file(), "it is not a file" if path.exists() else "it does not exist", "Check the path")
    _require(path.stat().st_size, "the file is empty")
    data = np.asarray(np.memmap(path, np.uint8, "r"))
    head = data[:64].tobytes()
    is_lfs_pointer = head.startswith(b"version https://git-lfs")
    _require(not is_lfs_pointer, "it is a Git LFS pointer without the weights", "Run `git lfs pull`")
    _require(not head.lstrip().startswith(b"<"), "it is a web page (HTML or XML)", "Download the file that it links to")
    is_zip, unpickler = head.startswith(b"PK\3\4"), _Unpickler(_MAX_EXPANSION * data.size)
    _require(is_zip or _MAGIC in head, "it is not in a PyTorch format", "Check the path")
    result = _load_zip(data, path, unpickler) if is_zip else _load_legacy(data, unpickler)
    if isinstance(result, Skipped):
        raise _Rejected(
            f"it is one object of {quote(result.name)}, which is neither a tensor nor a plain value and could run "
            f"code, so it is not read. {_RESAVE}"
        )
    level: Collection[Any] = [result]
    for _ in range(_MAX_DEPTH):
        _require(all(isinstance(x, _PLAIN_TYPES) for x in level), "it holds a bare storage or function", _RESAVE)
        children = [x.values() if isinstance(x, dict) else x for x in level if isinstance(x, (dict, list, tuple))]
        level = {id(x): x for items in children for x in items}.values()  # each once: many paths may lead to an object
    _require(not level, f"its containers are nested more than {_MAX_DEPTH} deep, or form a cycle", _RESAVE)
    return result


def _load_zip(data: np.ndarray, path: Path, unpickler: "_Unpickler") -> Any:
    """The object in a zip checkpoint, whose uint8 bytes are `data`."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
    roots = [name[: -len("data.pkl")] for name in members if re.fullmatch("[^/]+/data.pkl", name)]
    _require(len(roots) == 1, "it is a zip archive, but not one of PyTorch with one <name>/data.pkl", "Check the path")

    def read_member(name, size=None):
        info, member = members.get(roots[0] + name), f"its member {quote(name)}"
        _require(info, f"{member} is missing")
        is_stored = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1
        _require(is_stored, f"{member} is compressed", _RESAVE)
        header = data[info.header_offset :][:30].tobytes()
        _require(header.startswith(b"PK\3\4"), f"{member} is not at its offset")
        start = info.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))
        content = data[start : start + info.file_size]
        _require(content.size == info.file_size and size in (None, content.size), f"{member} is truncated")
        _require(info.CRC in (0, zlib.crc32(content)), f"{member} is damaged: its checksum differs")  # 0: none stored
        return content

    pickle_size = members[roots[0] + "data.pkl"].file_size
    _require(pickle_size <= _MAX_PICKLE_BYTES, f"its data.pkl exceeds {_MAX_PICKLE_BYTES >> 20} MiB", _RESAVE)
    result, _ = unpickler.read(read_member("data.pkl"), 0, _MAX_PICKLE_BYTES)
    has_byte_order = roots[0] + "byteorder" in members
    swap = has_byte_order and {b"little": False, b"big": True}[read_member("byteorder").tobytes()]
    total_bytes = sum(storage.nbytes for storage in unpickler.storages.values())
    _require(total_bytes <= data.size, "its storages are larger than the file")
    contents = {key: read_member(f"data/{key}", storage.nbytes) for key, storage in unpickler.storages.items()}
    unpickler.fill(contents, swap)
    return result


def _load_legacy(data: np.ndarray, unpickler: "_Unpickler") -> Any:
    """The object in a legacy checkpoint, whose uint8 bytes are `data`.

    There are five pickles (magic number, version, system, object, storage keys), then the storages in the order of the
    keys, each after its 8-byte element count. All are little-endian, whatever the system.
    """
    offset, values = 0, []
    for limit in (64, 64, 4096, _MAX_PICKLE_BYTES, _MAX_PICKLE_BYTES):
        value, offset = unpickler.read(data, offset, limit)
        values.append(value)
    _, version, _, result, keys = values
    _require(version == _VERSION, "its version of the legacy format is unknown", _RESAVE)
    _require(
        all(isinstance(key, str) for key in keys) and sorted(keys) == sorted(unpickler.storages),
        "its list of storages does not match its tensors",
    )
    contents = {}
    for key in keys:
        storage, count = unpickler.storages[key], data[offset : offset + 8].tobytes()
        contents[key] = data[offset + 8 : offset + 8 + storage.nbytes]
        _require(
            int.from_bytes(count, "little") == storage.numel and contents[key].size == storage.nbytes,
            f"it is truncated or damaged at storage {quote(key)}, byte {offset}",
        )
        offset += 8 + storage.nbytes
    unpickler.fill(contents)
    return result


_PLAIN_TYPES = (Skipped, np.ndarray, np.generic, np.dtype, dict, list, tuple, str, bytes, int, float, type(None))
_DTYPES = {
    name: np.dtype(getattr(ml_dtypes if name == "bfloat16" else np, name))
    for name in "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128".split()
}
_STORAGE_DTYPES = dict(
    zip("Double Float Half BFloat16 Long Int Short Char Byte Bool ComplexFloat ComplexDouble".split(), _DTYPES.values())
)
# opcodes that pop a fixed number of items off the stack
_NUM_POPPED = dict(
    EMPTY_TUPLE=0,
    TUPLE1=1,
    TUPLE2=2,
    TUPLE3=3,
    APPEND=1,
    SETITEM=2,
    STACK_GLOBAL=2,
    REDUCE=2,
    NEWOBJ=2,
    NEWOBJ_EX=3,
    BUILD=1,
    BINPERSID=1,
    STOP=1,
)
# opcodes that push their argument
_PUSH_ARGUMENT = (
    "NONE BININT BININT1 BININT2 BINFLOAT BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES BINSTRING SHORT_BINSTRING"
).split()


@dataclasses.dataclass
class _Function:
    """Stands for the class or function called `name`, which `_Unpickler.call` imitates."""

    name: str


@dataclasses.dataclass
class _Storage:
    """A sequence of `numel` elements of a `dtype`, in total `nbytes`, that the pickle refers to as `key`."""

    key: str
    dtype: np.dtype
    numel: int
    nbytes: int


_GLOBALS = {
    **{f"torch {name}": dtype for name, dtype in _DTYPES.items()},
    **{
        f"{module} {name}Storage": dtype
        for name, dtype in _STORAGE_DTYPES.items()
        for module in ("torch", "torch.cuda")
    },
    **{
        name: _Function(name.split()[1])
        for name in (
            "collections OrderedDict",
            "collections Counter",
            "torch Size",
            "torch device",
            "torch._utils _rebuild_tensor",
            "torch._utils _rebuild_tensor_v2",
            "torch._utils _rebuild_parameter",
            "_codecs encode",
            "numpy dtype",
            "numpy.core.multiarray scalar",
            "numpy._core.multiarray scalar",
        )
    },
}


def _set_items(target: dict, pairs: Iterable[tuple[Any, Any]] = ()) -> dict:
    for key, value in pairs:
        if isinstance(key, Skipped):
            continue
        # Only keys that hash fast: a tuple that nests itself twice, sixty deep, takes for ever, as do colliding ints.
        _require(
            isinstance(key, (str, int, float, type(None))) and not (isinstance(key, int) and key.bit_length() > 64),
            "it has a dict key that is neither text nor a number",
            _RESAVE,
        )
        target[key] = value
    return target


class _Unpickler:
    """Interprets pickles; their tensors, of at most `budget` bytes in total, are arrays that `fill` fills."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.storages: dict[str, _Storage] = {}
        self.tensors: dict[tuple, np.ndarray] = {}  # (storage key, offset, shape, strides in elements): array

    def read(self, data: np.ndarray, start: int, limit: int) -> tuple[Any, int]:
        """The object pickled in the uint8 bytes data[start:start + limit], and its end; may raise any exception."""
        stack: list[Any] = []
        outer_stacks: list[list[Any]] = []  # those below each MARK
        memo: dict[int, Any] = {}
        copied = 0
        opcodes: Iterable[tuple[Any, Any, Any]] = pickletools.genops(data[start : start + limit].tobytes())
        for opcode, arg, position in opcodes:
            name = opcode.name
            if name in ("TUPLE", "APPENDS", "SETITEMS"):
                items, stack = stack, outer_stacks.pop()
            elif name in _NUM_POPPED:
                items = [stack.pop() for _ in range(_NUM_POPPED[name])][::-1]
            match name:
                case "PROTO" | "FRAME":
                    pass
                case "MARK":
                    outer_stacks.append(stack)
                    stack = []
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(name == "NEWTRUE")
                case _ if name in _PUSH_ARGUMENT:
                    stack.append(arg)
                case "LONG1" if arg.bit_length() <= 80:  # the magic number takes 77
                    stack.append(arg)
                case "EMPTY_LIST" | "EMPTY_DICT":
                    stack.append([] if name == "EMPTY_LIST" else {})
                case "TUPLE" | "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(items))
                case "APPEND" | "APPENDS" | "SETITEM" | "SETITEMS" | "BUILD" if isinstance(stack[-1], Skipped):
                    pass  # its content is skipped, too
                case "APPEND" | "APPENDS" if type(stack[-1]) is list:
                    stack[-1].extend(items)
                case "SETITEM" | "SETITEMS" if isinstance(stack[-1], dict):
                    _set_items(stack[-1], zip(items[::2], items[1::2], strict=True))
                case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                    memo[len(memo) if name == "MEMOIZE" else arg] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[arg])
                case "GLOBAL" | "STACK_GLOBAL":
                    global_name = arg or " ".join(items)
                    stack.append(_GLOBALS.get(global_name, Skipped(global_name.replace(" ", "."))))
                case "REDUCE" | "NEWOBJ" | "NEWOBJ_EX" if isinstance(items[0], Skipped):
                    stack.append(items[0])
                case "REDUCE" if isinstance(items[0], _Function) and type(items[1]) is tuple:
                    copied += len(items[1]) + sum(len(x) for x in items[1] if isinstance(x, (str, list, dict)))
                    _require(copied <= min(limit, data.size), "it repeats itself too often")  # a memory bomb
                    stack.append(self.call(items[0].name, items[1]))
                case "BUILD" if isinstance(stack[-1], (OrderedDict, np.dtype)) and ">" not in items[0]:
                    pass  # attributes; the byte order of a dtype
                case "BINPERSID" if isinstance(items[0][1], Skipped) and items[0][0] == "module":
                    stack.append(items[0][1])  # the class of a module, in the legacy format
                case "BINPERSID":
                    stack.append(self.storage(*items[0]))
                case "STOP":
                    return items[0], start + position + 1
                case _:
                    raise _Rejected(f"its pickle has an opcode {name} that PyTorch would not write there. {_RESAVE}")
        raise _Rejected(f"its pickle has no STOP opcode. {_DOWNLOAD_AGAIN}")

    def call(self, name: str, args: tuple) -> Any:
        """What the function called `name` returns for `args`."""
        match name, *args:
            case "_rebuild_tensor" | "_rebuild_tensor_v2", storage, offset, shape, strides, *_:  # v2 adds hooks
                return self.tensor(storage, offset, shape, strides)
            case ("_rebuild_parameter", value, _, _) | ("Size", tuple(value)) | ("Counter", dict(value)):
                return value
            case "OrderedDict", *pairs:
                return _set_items(OrderedDict(), *pairs)
            case "device", str(kind), *_:
                return kind
            case "encode", str(text), "latin1":  # how protocol 2 writes bytes
                return text.encode("latin-1")
            case "dtype", str(code), _, _ if re.fullmatch("[fiu][1248]|b1", code):
                return np.dtype(code).newbyteorder("<")
            case "scalar", np.dtype() as dtype, bytes(content) if len(content) == dtype.itemsize:
                return np.frombuffer(content, dtype)[0]
            case "dtype" | "scalar", *_:  # of text, dates or objects
                return Skipped(f"numpy.{name}")
        raise _Rejected(f"it calls {name} with unknown arguments. {_RESAVE}")

    def storage(self, kind: Any, dtype: Any, key: Any, _device: Any, numel: Any, view: Any = None) -> _Storage:
        """The storage that a persistent id refers to; legacy ids end with a view, which is None."""
        _require(
            kind == "storage"
            and isinstance(dtype, np.dtype)
            and isinstance(key, str)
            and view is None
            and type(numel) is int
            and 0 <= numel < 1 << 60,
            "it refers to a storage in an unknown way",
            _RESAVE,
        )
        storage = _Storage(key, dtype, numel, numel * dtype.itemsize)
        is_consistent = self.storages.setdefault(key, storage) == storage
        _require(is_consistent, f"its storage {quote(key)} has two dtypes or sizes")
        return storage

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> np.ndarray:
        """An array of the given shape, still to be filled; `offset` and `strides` count elements."""
        _require(isinstance(storage, _Storage) and type(shape) is type(strides) is tuple, "it has a malformed tensor")
        _require(
            len(shape) == len(strides) <= 32
            and all(type(n) is int and 0 <= n < 1 << 60 for n in (offset, *shape, *strides)),
            "it has a tensor of impossible size",
        )
        numel, last = math.prod(shape), offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
        _require(
            not numel or numel <= storage.numel and last < storage.numel,
            f"it has a tensor of shape {shape} in a storage of {storage.numel} elements",
        )
        key = storage.key, offset, shape, strides
        if key not in self.tensors:
            self.budget -= numel * storage.dtype.itemsize
            _require(self.budget >= 0, "its tensors are far larger than the file")
            self.tensors[key] = np.empty(shape, storage.dtype)
        return self.tensors[key]

    def fill(self, contents: Mapping[str, np.ndarray], swap: bool = False) -> None:
        """Copies the tensors out of {storage key: its uint8 bytes}; with `swap`, the bytes are big-endian."""
        for (key, offset, shape, strides), array in self.tensors.items():
            if array.size:
                # bools are read as numbers, since their bytes may be neither 0 nor 1; dimensions of 1 have any stride
                dtype = np.dtype(np.uint8) if array.dtype == bool else array.dtype
                byte_strides = [stride * dtype.itemsize if n > 1 else 0 for n, stride in zip(shape, strides)]
                # NumPy checks the bounds again
                view = np.ndarray(shape, dtype, contents[key], offset * dtype.itemsize, byte_strides)
                array[...] = view.byteswap() if swap else view
