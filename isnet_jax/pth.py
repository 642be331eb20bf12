"""Reads PyTorch checkpoints (.pth, .pt) without PyTorch, and without running anything stored in them.

A checkpoint is a pickle of names and numbers that points at raw storages, packed as a zip archive (PyTorch 1.6
and later) or one after another (the legacy format). A pickle is a program, so the file is never handed to
`pickle`: its opcodes drive a small stack machine that knows the few a checkpoint needs, and refuses the rest.
"""

import math
import pickletools
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np

from .errors import UserError

_PICKLE_BYTES = 4 << 20  # real ones take some 250 bytes a tensor; a hostile one 100 bytes of memory and 1 us a byte
_DEPTH = 64  # containers inside containers
_COPIES = 4  # all tensors together, in file sizes: shared storages repeat a little, a memory bomb a lot
_MAGIC, _VERSION = b"l\xfc\x9cF\xf9 j\xa8P\x19", 1001  # how a legacy file starts

_AGAIN = "Download or copy it again, and compare its size and checksum with those of the original"
_RESAVE = (
    "If you trust where it comes from, open it once with PyTorch and save the weights alone: "
    "torch.save(model.state_dict(), 'weights.pth')"
)


def load(path):
    """Returns what torch.load(path) would, with each tensor as a C-contiguous, writable numpy array.

    bfloat16 becomes ml_dtypes.bfloat16, a torch.dtype its numpy dtype, a torch.device its type, torch.Size a tuple,
    Counter a dict; an OrderedDict loses its attributes (`_metadata`). Equal views of a storage are one array.
    Raises UserError, and nothing else, if the file is missing, damaged, or holds other objects than those.
    """
    try:
        return _load(Path(path))
    except _Refused as e:
        raise UserError(f"Cannot read the checkpoint {path}: {e}.") from e
    except Exception as e:  # hostile bytes can trip zipfile, genops, numpy and the stack machine in any way
        todo = "Check the path and its permissions" if isinstance(e, OSError) else "It is damaged. " + _AGAIN
        raise UserError(f"Cannot read the checkpoint {path} ({type(e).__name__}: {_quote(e)}). {todo}.") from e


def state_dict(path):
    """Returns the network weights in a checkpoint: {parameter or buffer name: array}, in the order of the file.

    They are the file's "model", "state_dict" or "model_state_dict" entry, if it has one, else the whole file. A
    "module." that every name starts with (from DataParallel) is removed. Raises UserError as load does, and if
    this is not a non-empty dict of arrays.
    """
    loaded = load(path)
    found = [loaded.get(k) for k in ("model", "state_dict", "model_state_dict")] if isinstance(loaded, dict) else []
    weights = next((entry for entry in found if isinstance(entry, dict)), loaded)
    odd = [f"a {type(weights).__name__}"]
    if isinstance(weights, dict):
        odd = [
            f"a {type(value).__name__} at {_quote(name)}"
            for name, value in weights.items()
            if not (isinstance(name, str) and isinstance(value, np.ndarray))
        ]
    if odd or not weights:
        raise UserError(
            f"There are no network weights in the checkpoint {path}: a dict of names to tensors is needed, "
            f"not {odd[0] if odd else 'an empty one'}. Save model.state_dict(), alone or as 'state_dict'."
        )
    prefix = "module." if all(name.startswith("module.") for name in weights) else ""
    return {name[len(prefix) :]: value for name, value in weights.items()}


class _Refused(Exception):
    """What is wrong with the file, and what to do about it."""


def _need(condition, what, todo=_AGAIN):
    if not condition:
        raise _Refused(f"{what}. {todo}")


def _quote(text):
    return f"{str(text)[:100]!a}"  # ASCII: what a stranger wrote may not be printable


def _load(path):
    """Returns the object in the file. Raises anything."""
    _need(path.is_file(), "it is not a file" if path.exists() else "it does not exist", "Check the path")
    _need(path.stat().st_size, "the file is empty")
    data = np.asarray(np.memmap(path, np.uint8, "r"))
    head = data[:64].tobytes()
    _need(not head.startswith(b"version https://git-lfs"), "it is a Git LFS pointer, no weights", "Run `git lfs pull`")
    _need(not head.lstrip().startswith(b"<"), "it is a web page (HTML or XML)", "Download the file that it links to")
    zipped, reader = head.startswith(b"PK\3\4"), _Reader(_COPIES * data.size)
    _need(zipped or _MAGIC in head, "it is not in a format of PyTorch", "Check the path")
    result = _load_zip(data, path, reader) if zipped else _load_legacy(data, reader)
    level = [result]
    for _ in range(_DEPTH):
        _need(all(isinstance(x, _PLAIN) for x in level), "it holds a bare storage or function", _RESAVE)
        inside = [x.values() if isinstance(x, dict) else x for x in level if isinstance(x, (dict, list, tuple))]
        level = {id(x): x for items in inside for x in items}.values()  # once each: many paths may lead to one
    _need(not level, f"its containers are nested more than {_DEPTH} deep, or in a circle", _RESAVE)
    return result


def _load_zip(data, path, reader):
    """Returns the object in a zip checkpoint; data: the uint8 bytes of the file."""
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename: info for info in archive.infolist()}
    roots = [name[: -len("data.pkl")] for name in infos if re.fullmatch("[^/]+/data.pkl", name)]
    _need(len(roots) == 1, "it is a zip archive, but not of PyTorch (which has one <name>/data.pkl)", "Check the path")

    def record(name, size=None):
        info, which = infos.get(roots[0] + name), f"its record {_quote(name)}"
        _need(info, f"{which} is missing")
        _need(info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1, f"{which} is compressed", _RESAVE)
        head = data[info.header_offset :][:30].tobytes()
        _need(head.startswith(b"PK\3\4"), f"{which} is not where it should be")
        start = info.header_offset + 30 + sum(struct.unpack_from("<HH", head, 26))
        raw = data[start : start + info.file_size]
        _need(raw.size == info.file_size and size in (None, raw.size), f"{which} is cut short")
        _need(info.CRC in (0, zlib.crc32(raw)), f"{which} is damaged: its checksum differs")  # 0: there is none
        return raw

    _need(
        infos[roots[0] + "data.pkl"].file_size <= _PICKLE_BYTES,
        f"its data.pkl is over {_PICKLE_BYTES >> 20} MiB",
        _RESAVE,
    )
    result, _ = reader.read(record("data.pkl"), 0, _PICKLE_BYTES)
    swap = roots[0] + "byteorder" in infos and {b"little": False, b"big": True}[record("byteorder").tobytes()]
    _need(sum(s.nbytes for s in reader.storages.values()) <= data.size, "its storages are larger than the file")
    reader.fill({key: record(f"data/{key}", s.nbytes) for key, s in reader.storages.items()}, swap)
    return result


def _load_legacy(data, reader):
    """Returns the object in a legacy checkpoint; data: the uint8 bytes of the file.

    There are five pickles (magic number, version, system, object, storage keys), then the storages, in the order
    of the keys, each after its 8-byte element count; little-endian, whatever the system.
    """
    at, found = 0, []
    for limit in (64, 64, 4096, _PICKLE_BYTES, _PICKLE_BYTES):
        value, at = reader.read(data, at, limit)
        found.append(value)
    _, version, _, result, keys = found
    _need(version == _VERSION, "its version of the legacy format is unknown", _RESAVE)
    _need(
        all(isinstance(key, str) for key in keys) and sorted(keys) == sorted(reader.storages),
        "its list of storages does not fit its tensors",
    )
    raws = {}
    for key in keys:
        storage, count = reader.storages[key], data[at : at + 8].tobytes()
        raws[key] = data[at + 8 : at + 8 + storage.nbytes]
        _need(
            int.from_bytes(count, "little") == storage.numel and raws[key].size == storage.nbytes,
            f"it is cut short or damaged at storage {_quote(key)}, byte {at}",
        )
        at += 8 + storage.nbytes
    reader.fill(raws)
    return result


_PLAIN = (np.ndarray, np.generic, np.dtype, dict, list, tuple, str, bytes, int, float, type(None))
_DTYPES = {
    name: np.dtype(getattr(ml_dtypes if name == "bfloat16" else np, name))
    for name in ("float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128".split())
}
_STORAGES = zip(
    "Double Float Half BFloat16 Long Int Short Char Byte Bool ComplexFloat ComplexDouble".split(), _DTYPES.values()
)
# how many items these opcodes take off the stack; the others, _VALUES, put their argument there
_POPS = dict(
    EMPTY_TUPLE=0,
    TUPLE1=1,
    TUPLE2=2,
    TUPLE3=3,
    APPEND=1,
    SETITEM=2,
    STACK_GLOBAL=2,
    REDUCE=2,
    BUILD=1,
    BINPERSID=1,
    STOP=1,
)
_VALUES = (
    "NONE BININT BININT1 BININT2 BINFLOAT BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES BINSTRING SHORT_BINSTRING"
).split()


class _Function(SimpleNamespace):
    """Stands for the class or function called `name`: _Reader.call does what it would."""


class _Storage(SimpleNamespace):
    """A run of `numel` elements of a `dtype`, `nbytes` in all, known as `key`."""


_GLOBALS = {
    **{f"torch {name}": dtype for name, dtype in _DTYPES.items()},
    **{f"{module} {name}Storage": dtype for name, dtype in _STORAGES for module in ("torch", "torch.cuda")},
    **{
        name: _Function(name=name.split()[1])
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


def _put(target, pairs=()):
    for key, value in pairs:
        # only keys that hash fast: a tuple of twice the same tuple, sixty deep, takes for ever; so do clashing ints
        _need(
            isinstance(key, (str, int, float, type(None))) and not (isinstance(key, int) and key.bit_length() > 64),
            "it has a dict key that is neither text nor number",
            _RESAVE,
        )
        target[key] = value
    return target


class _Reader:
    """Interprets pickles. Their tensors, of at most `budget` bytes in all, are arrays to `fill` from the storages."""

    def __init__(self, budget):
        self.budget, self.storages = budget, {}  # bytes; key: _Storage
        self.tensors = {}  # (key, offset, shape, strides in elements): array

    def read(self, data, start, limit):
        """Returns the object that data[start:start + limit], uint8, pickles, and where it ends. Raises anything."""
        stack, marked, memo, copied = [], [], {}, 0
        for opcode, arg, position in pickletools.genops(data[start : start + limit].tobytes()):
            name = opcode.name
            if name in ("TUPLE", "APPENDS", "SETITEMS"):
                items, stack = stack, marked.pop()
            elif name in _POPS:
                items = [stack.pop() for _ in range(_POPS[name])][::-1]
            match name:
                case "PROTO" | "FRAME":
                    pass
                case "MARK":
                    marked.append(stack)
                    stack = []
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(name == "NEWTRUE")
                case _ if name in _VALUES:
                    stack.append(arg)
                case "LONG1" if arg.bit_length() <= 80:  # the magic number takes 77
                    stack.append(arg)
                case "EMPTY_LIST" | "EMPTY_DICT":
                    stack.append([] if name == "EMPTY_LIST" else {})
                case "TUPLE" | "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(items))
                case "APPEND" | "APPENDS" if type(stack[-1]) is list:
                    stack[-1].extend(items)
                case "SETITEM" | "SETITEMS" if isinstance(stack[-1], dict):
                    _put(stack[-1], zip(items[::2], items[1::2], strict=True))
                case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                    memo[len(memo) if name == "MEMOIZE" else arg] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[arg])
                case "GLOBAL" | "STACK_GLOBAL":
                    name = arg or " ".join(items)
                    _need(
                        name in _GLOBALS,
                        f"it holds {_quote(name.replace(' ', '.'))}, which is neither tensor nor "
                        "plain value and could run code, so it is not read",
                        _RESAVE,
                    )
                    stack.append(_GLOBALS[name])
                case "REDUCE" if isinstance(items[0], _Function) and type(items[1]) is tuple:
                    copied += len(items[1]) + sum(len(x) for x in items[1] if isinstance(x, (str, list, dict)))
                    _need(copied <= min(limit, data.size), "it repeats itself too often")  # a memory bomb
                    stack.append(self.call(items[0].name, items[1]))
                case "BUILD" if isinstance(stack[-1], (OrderedDict, np.dtype)) and ">" not in items[0]:
                    pass  # attributes; a dtype's byte order
                case "BINPERSID":
                    stack.append(self.storage(*items[0]))
                case "STOP":
                    return items[0], start + position + 1
                case _:
                    _need(False, f"its pickle has an opcode {name} that PyTorch would not write there", _RESAVE)

    def call(self, name, args):
        """Returns what the function of that name would for a tuple of arguments."""
        match name, *args:
            case "_rebuild_tensor" | "_rebuild_tensor_v2", storage, offset, shape, strides, *_:  # v2 adds hooks
                return self.tensor(storage, offset, shape, strides)
            case ("_rebuild_parameter", value, _, _) | ("Size", tuple(value)) | ("Counter", dict(value)):
                return value
            case "OrderedDict", *pairs:
                return _put(OrderedDict(), *pairs)
            case "device", str(kind), *_:
                return kind
            case "encode", str(text), "latin1":  # how protocol 2 writes bytes
                return text.encode("latin-1")
            case "dtype", str(code), _, _ if re.fullmatch("[fiu][1248]|b1", code):
                return np.dtype(code).newbyteorder("<")
            case "scalar", np.dtype() as dtype, bytes(raw) if len(raw) == dtype.itemsize:
                return np.frombuffer(raw, dtype)[0]
        _need(False, f"it calls {name} in an unknown way", _RESAVE)

    def storage(self, kind, dtype, key, _device, numel, view=None):
        """Returns the _Storage that a persistent id stands for; legacy ones end with a view, which is None."""
        _need(
            kind == "storage"
            and isinstance(dtype, np.dtype)
            and isinstance(key, str)
            and view is None
            and type(numel) is int
            and 0 <= numel < 1 << 60,
            "it refers to a storage in an unknown way",
            _RESAVE,
        )
        storage = _Storage(key=key, dtype=dtype, numel=numel, nbytes=numel * dtype.itemsize)
        _need(self.storages.setdefault(key, storage) == storage, f"its storage {_quote(key)} has two types or sizes")
        return storage

    def tensor(self, storage, offset, shape, strides):
        """Returns an array of that shape, to be filled; offset and strides count elements."""
        _need(isinstance(storage, _Storage) and type(shape) is type(strides) is tuple, "it has a broken tensor")
        _need(
            len(shape) == len(strides) <= 32
            and all(type(n) is int and 0 <= n < 1 << 60 for n in (offset, *shape, *strides)),
            "it has a tensor of impossible size",
        )
        numel, last = math.prod(shape), offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
        _need(
            not numel or numel <= storage.numel and last < storage.numel,
            f"it has a tensor of shape {shape} in a storage of {storage.numel} elements",
        )
        key = storage.key, offset, shape, strides
        if key not in self.tensors:
            self.budget -= numel * storage.dtype.itemsize
            _need(self.budget >= 0, "its tensors are far larger than the file")
            self.tensors[key] = np.empty(shape, storage.dtype)
        return self.tensors[key]

    def fill(self, raws, swap=False):
        """Copies the tensors from raws, {storage key: its uint8 bytes}; swap: they are big-endian."""
        for (key, offset, shape, strides), array in self.tensors.items():
            if array.size:
                # a bool is read as a number, as its byte may be neither 0 nor 1; a dimension of 1 has any stride
                dtype = np.dtype(np.uint8) if array.dtype == bool else array.dtype
                steps = [stride * dtype.itemsize if n > 1 else 0 for n, stride in zip(shape, strides)]
                view = np.ndarray(shape, dtype, raws[key], offset * dtype.itemsize, steps)  # checks the bounds again
                array[...] = view.byteswap() if swap else view
