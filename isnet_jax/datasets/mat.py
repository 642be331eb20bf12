"""Reading a matrix of whole numbers from MATLAB files of versions 4 to 7.

SciPy's reader is for trusted files: damaged files crash the interpreter, and compressed ones are inflated without
limit.
"""

import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isnet_jax.errors import UserError
from isnet_jax.runtime import limits

MAX_PIXELS = 10_000_000  # of a matrix, whose numbers take up to 8 bytes each
HEADER = 128  # bytes before the first element
COMPRESSED, MATRIX = 15, 14  # types of elements
DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # more types
NUMERIC_CLASSES = range(6, 16)  # of matrices; others are text, cells, structures, sparse matrices
VERSION_4_DTYPES = "f8", "f4", "i4", "i2", "u2", "u1"
MATRIX_HEADER = 4096  # bytes of a compressed matrix that are inflated to read its flags, axes and name


class _Matrix(NamedTuple):
    """A matrix whose numbers are not decoded yet."""

    shape: tuple[int, int]
    is_complex: bool
    values: Callable[[int], np.ndarray]  # the real parts, column by column, given their number; raises ValueError


def read_mat(path: Path, key: str) -> np.ndarray:
    """The matrix stored under the name `key`: integers (H, W).

    Raises UserError if the file cannot be read, or has no such matrix of at most MAX_PIXELS whole numbers.
    """
    try:
        data = limits.read(path)
        found = _find_in_version_4(data, key) if 0 in data[:4] else _find_in_version_5(data, key)
        if found is None:
            raise UserError(f"{path} holds no matrix {key} of numbers, height x width.")
        if math.prod(found.shape) > MAX_PIXELS:
            raise UserError(f"{path} has more than {MAX_PIXELS // 10**6} megapixels, the limit.")
        matrix = found.values(math.prod(found.shape)).reshape(found.shape, order="F")
    except UserError:
        raise
    except limits.TooLarge as error:
        raise UserError(f"{path} {error}.") from None
    except (OSError, ValueError, LookupError, struct.error, zlib.error) as error:
        raise UserError(f"{path} is damaged or unreadable ({error}).") from None
    if matrix.dtype.kind == "f" and (matrix == matrix.round()).all() and (abs(matrix) < 2**31).all():
        matrix = matrix.astype(np.int32)
    if matrix.dtype.kind not in "iu" or found.is_complex:
        raise UserError(f"{path} holds numbers in {key} that are not whole.")
    return np.ascontiguousarray(matrix)


def _find_in_version_5(data: bytes, key: str) -> _Matrix | None:
    """The matrix of that name in a file of versions 5 to 7, or None."""
    order = {b"IM": "<", b"MI": ">"}[data[HEADER - 2 : HEADER]]
    at = HEADER
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        content = data[at + 8 : at + 8 + size]
        inflater = zlib.decompressobj()
        if kind == COMPRESSED:
            content = inflater.decompress(content, MATRIX_HEADER)
            kind, content = struct.unpack_from(f"{order}I", content)[0], content[8:]
        if kind == MATRIX:
            found = _parse_matrix(content, key, order, inflater)
            if found:
                return found
        at += 8 + size
    return None


def _parse_matrix(content: bytes, key: str, order: str, inflater: Any) -> _Matrix | None:
    """The matrix in an element if it has that name, else None; `inflater` still holds the end of the content."""
    flags, at = _read_element(content, 0, order)
    axes, at = _read_element(content, at, order)
    name, at = _read_element(content, at, order)
    if name.tobytes() != key.encode():
        return None
    shape = tuple(axes.tolist())
    if int(flags[0]) & 0xFF not in NUMERIC_CLASSES or len(shape) != 2 or min(shape) < 1:
        return None

    def values(count: int) -> np.ndarray:
        size = min(8 * count, struct.unpack_from(f"{order}4xI", content, at)[0])
        rest = inflater.decompress(inflater.unconsumed_tail, size + 8)
        numbers, _ = _read_element(content + rest, at, order)
        return _require_count(numbers, count)

    return _Matrix(shape, bool(int(flags[0]) & 0x800), values)


def _read_element(content: bytes, at: int, order: str) -> tuple[np.ndarray, int]:
    """The numbers of the element that begins at `at`, and where the next one begins."""
    kind, size = struct.unpack_from(f"{order}II", content, at)
    start, end = at + 8, at + 8 + -(-size // 8) * 8
    if kind >> 16:  # a short element: size, type and up to 4 bytes of content in 8 bytes
        kind, size = kind & 0xFFFF, kind >> 16
        start, end = at + 4, at + 8
    dtype = np.dtype(order + DTYPES[kind])
    if size % dtype.itemsize or start + size > len(content) or start + size > end:
        raise ValueError("an element is cut short")
    return np.frombuffer(content, dtype, size // dtype.itemsize, start), end


def _find_in_version_4(data: bytes, key: str) -> _Matrix | None:
    """The matrix of that name in a file of version 4, or None."""
    order = "<" if struct.unpack_from("<I", data)[0] < 1000 else ">"
    at = 0
    while at + 20 <= len(data):
        kind, rows, columns, is_complex, length = struct.unpack_from(f"{order}5i", data, at)
        dtype = np.dtype(order + VERSION_4_DTYPES[kind // 10 % 10])
        if min(kind, rows, columns, length) < 0:
            raise ValueError("a matrix has a negative size")
        name, at = data[at + 20 : at + 20 + length].rstrip(b"\0"), at + 20 + length
        if name == key.encode() and kind % 10 == 0 and min(rows, columns):

            def values(count: int, at: int = at, dtype: np.dtype = dtype) -> np.ndarray:
                return _require_count(np.frombuffer(data[at : at + count * dtype.itemsize], dtype), count)

            return _Matrix((rows, columns), bool(is_complex), values)
        at += rows * columns * dtype.itemsize * (2 if is_complex else 1)
    return None


def _require_count(values: np.ndarray, count: int) -> np.ndarray:
    if len(values) != count:
        raise ValueError(f"there are {len(values)} numbers instead of {count}")
    return values
