"""Files that this program writes for itself, JSON and arrays: written whole, and read as if by a stranger."""

import contextlib
import errno
import json
import math
import os
import stat
import zipfile
from pathlib import Path

import numpy as np

from isnet_jax.errors import UserError

MAX_JSON_BYTES, MAX_DEPTH = 2**24, 32  # the largest, results of 255 classes, take 2**20


@contextlib.contextmanager
def replacing(path, writer=0):
    """Yields another Path to write, which takes the place of `path` at the end, so that nobody sees it half-written.

    A symbolic link with either name is replaced, and not followed. Of several processes that may write the same file at
    once each is another `writer`.
    """
    partial = path.with_name(f"{path.name}{f'.{writer}' if writer else ''}.partial")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def require_inside(root, *paths):
    """Raises UserError if one of `paths`, below the directory `root`, leads out of it by a symbolic link."""
    for path in paths:
        if not Path(path).resolve().is_relative_to(Path(root).resolve()):
            raise UserError(
                f"{path} leads out of {root} by a symbolic link, which whoever made that directory may "
                "have put there: remove the link, or choose another directory."
            )


def links(root):
    """The symbolic links anywhere below a directory."""
    for folder, *names in os.walk(root):
        yield from (path for path in (Path(folder, name) for name in sum(names, [])) if path.is_symlink())


def is_name(text):
    """Whether a text can be the name of a file in a directory, and leads nowhere else."""
    return text not in ("", ".", "..") and not {"/", "\0"} & set(text)


def read_json(path):
    """The content of a JSON file; raises OSError or ValueError, and nothing else."""
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_JSON_BYTES:
            raise ValueError(f"it has more than {MAX_JSON_BYTES >> 20} MiB")
        text = file.read().decode()
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [
            x
            for value in level
            for x in (value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
        ]
    if level:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    return content


def open_file(path):
    """Opens a regular file for reading bytes; raises OSError, also for a pipe, for which `open` would wait."""
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: SIM115  the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return file


def write_arrays(path, **arrays):
    """Writes an .npz file (np.savez takes no array named `file`), whole or not at all."""
    with replacing(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


def read_arrays(path, *names):
    """Some arrays of an .npz file, none of which takes more memory than the file is long.

    Raises ValueError unless all are there, whole and not compressed, or OSError; and nothing else.
    """
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            return [_array(archive, name) for name in names]
    except OSError:
        raise
    except Exception as error:  # zipfile, zlib and numpy have many ways to say that a file is damaged
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None


def _array(archive, name):
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > os.fstat(archive.fp.fileno()).st_size:
        raise ValueError(f"{name} is compressed, or longer than the file")
    with archive.open(info) as file:
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, by_columns, dtype = header[np.lib.format.read_magic(file)](file)
        data = bytearray(file.read())
    if dtype.kind not in "biufSU" or not dtype.itemsize or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{name} is not as long as its header says, or of no plain type")
    array = np.ndarray(shape, dtype, data, order="F" if by_columns else "C")
    if dtype.kind == "U":
        array.tolist()  # a ValueError for what is no text
    return array
