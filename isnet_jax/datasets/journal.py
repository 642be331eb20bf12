"""What the check of a data set found, kept on disk while it goes on: a killed preparation need not begin again."""

import contextlib
import functools
import hashlib
import json
import os
import time
from typing import NamedTuple

import numpy as np

from isnet_jax import stored

CHUNK = 64  # findings in a file
SECONDS = 10  # or fewer, after this time
KINDS = {
    "warnings": "u1",
    "image": "u1",
    "label": "u1",
    "size": "i2",
    "counts": "i2",
    "palette": "b1",
    "num_bytes": "i1",
}  # and the number of axes of each column


class Finding(NamedTuple):
    """What is known of an item once it has been checked."""

    errors: tuple = ()  # sentences; if there are any, what follows may be missing
    warnings: tuple = ()  # sentences
    image: bytes = b""  # encoded, where there is no file that holds it
    label: bytes = b""  # PNG of train ids
    size: tuple = (0, 0)  # (height, width)
    counts: np.ndarray = np.zeros(0, np.int64)  # pixels of each class and, last, those ignored
    palette: bool = False  # whether the label file is a palette PNG
    num_bytes: int = 0  # of image and label in a record


class Journal:
    """Findings without errors by their stamps, in chunk files that are written whole or not at all.

    A stamp is a text that changes whenever the finding might. Chunks that cannot be read count for nothing.
    """

    def __init__(self, folder):
        """folder: an existing one, epath.Path or Path."""
        self.folder = folder
        self._places = {}  # key of a stamp: (file name, row)
        self._pending = {}  # key of a stamp: Finding
        self._written = time.monotonic()
        self._load = functools.lru_cache(4)(self._read)  # items come in about the order of the chunks
        for path in sorted(folder.glob("*.npz")):
            with contextlib.suppress(OSError, ValueError):
                (keys,) = stored.read_arrays(path, "keys")
                self._places |= {key: (path.name, row) for row, key in enumerate(keys.ravel().tolist())}

    def get(self, stamp):
        """Returns the Finding of a stamp, or None."""
        key = _key(stamp)
        if key in self._pending:
            return self._pending[key]
        name, row = self._places.get(key, (None, None))
        try:
            return name and self._load(name)[row]
        except (OSError, ValueError, TypeError, IndexError, RecursionError):
            return None

    def add(self, stamp, finding):
        """Keeps a Finding without errors."""
        self._pending[_key(stamp)] = finding
        if len(self._pending) >= CHUNK or time.monotonic() > self._written + SECONDS:
            self.flush()

    def flush(self):
        """Writes what has been added."""
        findings = list(self._pending.values())
        if findings:
            path = self.folder / f"{time.time_ns()}.npz"
            partial = self.folder / f"{path.name}.partial"
            with partial.open("wb") as file:
                np.savez(
                    file,
                    keys=np.array(list(self._pending)),
                    size=np.array([f.size for f in findings]),
                    counts=np.stack([f.counts for f in findings]),
                    palette=np.array([f.palette for f in findings]),
                    num_bytes=np.array([f.num_bytes for f in findings]),
                    warnings=_join([json.dumps(f.warnings).encode() for f in findings]),
                    image=_join([f.image for f in findings]),
                    label=_join([f.label for f in findings]),
                )
            os.replace(partial, path)
            self._places |= {key: (path.name, row) for row, key in enumerate(self._pending)}
            self._pending = {}
        self._written = time.monotonic()

    def _read(self, name):
        """Returns the findings in a chunk; raises OSError or ValueError."""
        fields = [field for field in Finding._fields if field != "errors"]
        columns = dict(zip(fields, stored.read_arrays(self.folder / name, *fields)))
        found = {field: f"{column.dtype.kind}{column.ndim}" for field, column in columns.items()}
        if found != KINDS or columns["size"].shape[1:] != (2,) or (columns["size"] < 1).any():
            raise ValueError("other columns")
        for field in "image", "label", "warnings":
            columns[field] = _split(columns[field])
        columns["warnings"] = [tuple(map(str, json.loads(text))) for text in columns["warnings"]]
        columns["size"] = [tuple(size) for size in columns["size"].tolist()]
        columns["palette"], columns["num_bytes"] = columns["palette"].tolist(), columns["num_bytes"].tolist()
        return [Finding(**dict(zip(columns, row))) for row in zip(*columns.values(), strict=True)]


def _key(stamp):
    return hashlib.sha256(stamp.encode()).hexdigest()


def _join(texts):
    """Returns several bytes as one uint8 array: how many, the length of each, the bytes."""
    return np.frombuffer(np.array([len(texts), *map(len, texts)], np.int64).tobytes() + b"".join(texts), np.uint8)


def _split(array):
    numbers = array[: array.size // 8 * 8].view(np.int64)
    if not numbers.size or not 0 <= numbers[0] < numbers.size:
        raise ValueError("no count")
    count, lengths = int(numbers[0]), numbers[1 : numbers[0] + 1]
    if (lengths < 0).any() or 8 * (count + 1) + sum(lengths.tolist()) != array.size:
        raise ValueError("other lengths")
    ends = lengths.cumsum() + 8 * (count + 1)
    return [array[start:end].tobytes() for start, end in zip([8 * (count + 1), *ends[:-1]], ends)]
