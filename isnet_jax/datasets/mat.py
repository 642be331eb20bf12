"""Reads a matrix of whole numbers from MATLAB files of version 4 to 7.

SciPy's reader is for trusted files: damaged ones crash the interpreter, and compressed ones are inflated without limit.
"""

import math
import struct
import zlib

import numpy as np

from isnet_jax import limits
from isnet_jax.errors import UserError

MAX_PIXELS = 10_000_000  # of a matrix, whose numbers take 8 bytes
HEADER = 128
COMPRESSED, MATRIX = 15, 14  # kinds of elements
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # also kinds
NUMERIC = range(6, 16)  # classes of matrices
VERSION_4 = "f8", "f4", "i4", "i2", "u2", "u1"
HEAD_BYTES = 4096  # of a compressed matrix, enough for its flags, axes and name


def read_mat(path, key):
    """Reads a matrix.

    Args:
      path: Path.
      key: the variable's name.

    Returns:
      Integers [height, width].

    Raises:
      UserError: the file cannot be read, or has no such matrix, or one of more than MAX_PIXELS.
    """
    try:
        data = limits.read(path)
        found = _version_4(data, key) if 0 in data[:4] else _version_5(data, key)
        if found is None:
            raise UserError(f"{path} holds no matrix {key} of numbers, height x width.")
        shape, is_complex, values = found
        if math.prod(shape) > MAX_PIXELS:
            raise UserError(f"{path} has more than {MAX_PIXELS // 10**6} megapixels, the most accepted.")
        matrix = values(math.prod(shape)).reshape(shape, order="F")
    except UserError:
        raise
    except limits.TooLarge as error:
        raise UserError(f"{path} {error}.") from None
    except (OSError, ValueError, LookupError, struct.error, zlib.error) as error:
        raise UserError(f"{path} is damaged or unreadable ({error}).") from None
    if matrix.dtype.kind == "f" and (matrix == matrix.round()).all() and (abs(matrix) < 2**31).all():
        matrix = matrix.astype(np.int32)
    if matrix.dtype.kind not in "iu" or is_complex:
        raise UserError(f"{path} holds numbers in {key} that are not whole.")
    return np.ascontiguousarray(matrix)


def _version_5(data, key):
    """Returns ((height, width), whether there is an imaginary part, count -> numbers) of a matrix, or None."""
    order = {b"IM": "<", b"MI": ">"}[data[HEADER - 2 : HEADER]]
    at = HEADER
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        content = data[at + 8 : at + 8 + size]
        inflater = zlib.decompressobj()
        if kind == COMPRESSED:
            content = inflater.decompress(content, HEAD_BYTES)
            kind, content = struct.unpack_from(f"{order}I", content)[0], content[8:]
        if kind == MATRIX:
            found = _matrix(content, key, order, inflater)
            if found:
                return found
        at += 8 + size
    return None


def _matrix(content, key, order, inflater):
    """As `_version_5`, of the matrix in an element, whose end is still to come from `inflater`."""
    flags, at = _element(content, 0, order)
    axes, at = _element(content, at, order)
    name, at = _element(content, at, order)
    if name.tobytes() != key.encode():
        return None
    shape = tuple(axes.tolist())
    if int(flags[0]) & 0xFF not in NUMERIC or len(shape) != 2 or min(shape) < 1:
        return None

    def values(count):
        size = min(8 * count, struct.unpack_from(f"{order}4xI", content, at)[0])
        rest = inflater.decompress(inflater.unconsumed_tail, size + 8)
        found, _ = _element(content + rest, at, order)
        return _exactly(found, count)

    return shape, bool(int(flags[0]) & 0x800), values


def _element(content, at, order):
    """Returns the numbers of an element of a matrix, and where the next one begins."""
    kind, size = struct.unpack_from(f"{order}II", content, at)
    start, end = at + 8, at + 8 + -(-size // 8) * 8
    if kind >> 16:  # a short one
        kind, size = kind & 0xFFFF, kind >> 16
        start, end = at + 4, at + 8
    dtype = np.dtype(order + NUMBERS[kind])
    if size % dtype.itemsize or start + size > len(content) or start + size > end:
        raise ValueError("an element is cut short")
    return np.frombuffer(content, dtype, size // dtype.itemsize, start), end


def _version_4(data, key):
    """As `_version_5`."""
    order = "<" if struct.unpack_from("<I", data)[0] < 1000 else ">"
    at = 0
    while at + 20 <= len(data):
        kind, rows, cols, is_complex, length = struct.unpack_from(f"{order}5i", data, at)
        dtype = np.dtype(order + VERSION_4[kind // 10 % 10])
        if min(kind, rows, cols, length) < 0:
            raise ValueError("a matrix of negative size")
        name, at = data[at + 20 : at + 20 + length].rstrip(b"\0"), at + 20 + length
        if name == key.encode() and kind % 10 == 0 and min(rows, cols):
            return (
                (rows, cols),
                bool(is_complex),
                lambda count, at=at, dtype=dtype: _exactly(
                    np.frombuffer(data[at : at + count * dtype.itemsize], dtype), count
                ),
            )
        at += rows * cols * dtype.itemsize * (2 if is_complex else 1)
    return None


def _exactly(values, count):
    if len(values) != count:
        raise ValueError(f"there are {len(values)} numbers instead of {count}")
    return values
