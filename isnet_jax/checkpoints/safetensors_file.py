"""Reads and writes .safetensors files: a JSON header of names, dtypes and shapes, then the numbers."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  NumPy then knows bfloat16 by its name, by which safetensors asks for it
import numpy as np
import safetensors
from safetensors.numpy import save_file

from isnet_jax.errors import UserError
from isnet_jax.runtime import files

MAX_HEADER_BYTES = 4 << 20  # real ones have about 100 bytes a tensor
DTYPES = "F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"


def is_safetensors(path: str | os.PathLike) -> bool:
    """Whether a file has that suffix or begins as such a file does; raises OSError if it cannot be read."""
    if Path(path).suffix == ".safetensors":
        return True
    with files.open_file(Path(path)) as file:
        return re.fullmatch(rb".{8}\{", file.read(9), re.DOTALL) is not None


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors in a file by name, in NumPy's dtypes and ml_dtypes.bfloat16.

    They take no more memory than the file has bytes. Raises UserError, and nothing else, if the file is missing or
    damaged, or holds numbers of another kind, such as float8.
    """
    try:
        with files.open_file(Path(path)) as file:
            header_size = int.from_bytes(file.read(8), "little")
        if header_size > min(MAX_HEADER_BYTES, os.path.getsize(path)):
            raise ValueError("its header is longer than the file, or than any of a network")
        with safetensors.safe_open(path, framework="np") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.offset_keys()}
            others = sorted(set(kinds.values()) - set(DTYPES))
            if others:
                raise ValueError(f"it holds numbers of the kind {others[0]}")
            return {name: file.get_tensor(name) for name in kinds}
    except OSError as error:
        raise UserError(
            f"Cannot read the checkpoint {path} ({error.strerror or error}). Check the path and its permissions."
        ) from None
    except Exception as error:  # the library and NumPy raise many kinds
        reason = ascii(f"{type(error).__name__}: {error}"[:200])[1:-1]  # untrusted text may hold escape sequences
        raise UserError(
            f"Cannot read the checkpoint {path} as a .safetensors file ({reason}). Download or copy it again, and "
            "compare its size and checksum with those of the original; the numbers must be of the kind "
            f"{', '.join(DTYPES)}."
        ) from None


def write(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes arrays atomically; raises OSError."""
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}
    try:
        with files.atomic_write(Path(path)) as partial:
            save_file(contiguous, partial, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from None
