"""The project's own files, JSON and arrays: written atomically, and read as untrusted input."""

import contextlib
import errno
import hashlib
import json
import math
import os
import stat
import zipfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from isnet_jax.errors import UserError

MAX_JSON_BYTES, MAX_DEPTH = 2**24, 32  # the largest file, results of 255 classes, has 2**20 bytes
MAX_LONG_NAME = 120  # bytes; file systems allow 255, encrypted ones 143
URL_ROOTS = "/gs/", "/s3/", "/az/", "/hf/"  # etils takes them for gs:// and so on


@contextlib.contextmanager
def atomic_write(path: Path, writer: int = 0) -> Iterator[Path]:
    """Yields a temporary Path to write, which replaces `path` at the end: no reader sees a half-written file.

    A symbolic link at either path is replaced, not followed. Processes that may write the same file at the same time
    each need their own `writer`.
    """
    name = os.fsencode(path.name)
    stem = path.name if len(name) <= MAX_LONG_NAME else hashlib.sha256(name).hexdigest()  # leaves room for the suffix
    partial = path.with_name(f"{stem}{f'.{writer}' if writer else ''}.partial")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_write(path) as partial, open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or it may be empty after a power cut


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits; raises OSError, also for what is no regular file."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_inside(root: str | Path, *paths: str | Path) -> None:
    """Raises UserError if a symbolic link makes one of `paths`, below the directory `root`, lead out of it."""
    for path in paths:
        if not Path(path).resolve().is_relative_to(Path(root).resolve()):
            raise UserError(
                f"{path} leads out of {root} by a symbolic link, which whoever made that directory may "
                "have put there: remove the link, or choose another directory."
            )


def require_literal(path: str | Path, flag: str, *forbidden: str) -> None:
    """Raises UserError if libraries would take the absolute path for another, or for a pattern.

    They do if it holds one of the texts `forbidden`, is not UTF-8, or begins with one of URL_ROOTS. `flag` sets it.
    """
    text = f"{path}/"
    found = [root for root in URL_ROOTS if text.startswith(root)]
    found += [part for part in forbidden if part in text]
    found += [character for character in text if "\ud800" <= character <= "\udfff"]  # bytes that are not UTF-8
    if found:
        raise UserError(
            f"The path {path} holds '{found[0]}', which the libraries that read and write there do not take for a "
            f"name: rename that folder, or choose another {flag}."
        )


def symbolic_links(root: str | Path) -> Iterator[Path]:
    """All symbolic links in a directory and its subdirectories."""
    for folder, directories, files in os.walk(root):
        yield from (path for path in (Path(folder, name) for name in directories + files) if path.is_symlink())


def is_plain_filename(text: str) -> bool:
    """Whether `text` names an entry of a directory and cannot lead anywhere else."""
    return text not in ("", ".", "..") and not {"/", "\0"} & set(text)


def open_file(path: str | Path) -> BufferedReader:
    """Opens a regular file to read bytes.

    Raises OSError, also for a named pipe, on which `open` would block.
    """
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: SIM115  the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return file


def read_json(path: str | Path) -> Any:
    """The content of a JSON file of bounded size and depth; raises only OSError or ValueError."""
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_JSON_BYTES:
            raise ValueError(f"it is larger than {MAX_JSON_BYTES >> 20} MiB")
        text = file.read().decode()
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep") from None
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [child for value in level for child in _children(value)]
    if level:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    return content


def _children(value: Any) -> list:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes an .npz file atomically; unlike `np.savez` it takes an array of any name, `file` too."""
    with atomic_write(path) as partial, open(partial, "wb") as output:
        with zipfile.ZipFile(output, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
        output.flush()
        os.fsync(output.fileno())


def read_arrays(path: str | Path, *names: str) -> list[np.ndarray]:
    """Arrays of an .npz file, by name; none of them takes more memory than the file has bytes.

    Raises ValueError unless all of them are there, complete and uncompressed; otherwise only OSError.
    """
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            size = os.fstat(file.fileno()).st_size
            return [_read_array(archive, name, size) for name in names]
    except OSError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy report damage in many ways
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None


def _read_array(archive: zipfile.ZipFile, name: str, max_bytes: int) -> np.ndarray:
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > max_bytes:
        raise ValueError(f"{name} is compressed, or longer than the file")
    with archive.open(info) as file:
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, is_fortran, dtype = read_header[np.lib.format.read_magic(file)](file)
        data = bytearray(file.read())
    if dtype.kind not in "biufSU" or not dtype.itemsize or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{name} does not have the length in its header, or is not of a plain dtype")
    array = np.ndarray(shape, dtype, data, order="F" if is_fortran else "C")
    if dtype.kind == "U":
        array.tolist()  # raises ValueError for invalid Unicode
    return array
