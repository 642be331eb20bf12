"""The journal of a survey: its findings on disk, from which an interrupted preparation resumes."""

import contextlib
import functools
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from isnet_jax.datasets.problems import FileProblem
from isnet_jax.errors import UserError
from isnet_jax.runtime import files

CHUNK = 64  # findings per file
SECONDS = 10  # after which a file is written with fewer
COLUMNS = {  # of a file: dtype kind and number of axes
    "warnings": "u1",
    "image": "u1",
    "label": "u1",
    "size": "i2",
    "counts": "i2",
    "colors": "u1",
    "palette": "b1",
    "by_color": "b1",
    "turned": "b1",
    "num_bytes": "i1",
}


Colors = tuple[tuple[int, int], ...]  # of a palette: (0xrrggbb, index)


class Finding(NamedTuple):
    """The result of checking an item."""

    errors: tuple[UserError, ...] = ()  # if there are any, the other fields may be missing
    warnings: tuple[FileProblem, ...] = ()
    image: bytes = b""  # encoded, if it is not in a file
    label: bytes = b""  # PNG of train ids
    size: tuple[int, int] = (0, 0)  # (height, width)
    counts: np.ndarray = np.zeros(0, np.int64)  # pixels of each class and, last, ignored ones: (K + 1,)
    colors: Colors = ()  # (0xrrggbb, index) in the palette of a label read by its indices
    palette: bool = False  # whether the label is a palette image read by its indices
    by_color: bool = False  # whether the label is read by its colours
    turned: bool = False  # whether the image is turned as its EXIF orientation says
    num_bytes: int = 0  # of image and label in a record


class Journal:
    """Findings without errors, by their stamps, in files that are written atomically.

    A stamp is a text that changes whenever the finding might. Files that cannot be read are ignored.
    """

    def __init__(self, folder: Path):
        self.folder = folder  # must exist
        self._rows: dict[str, tuple[str, int]] = {}  # key of a stamp: (file name, row)
        self._pending: dict[str, Finding] = {}  # by the key of the stamp
        self._last_write = time.monotonic()
        self._load = functools.lru_cache(4)(self._read)  # items are requested in about the order of the files
        for path in sorted(folder.glob("*.npz")):
            with contextlib.suppress(OSError, ValueError):
                (keys,) = files.read_arrays(path, "keys")
                self._rows |= {key: (path.name, row) for row, key in enumerate(keys.ravel().tolist())}

    def get(self, stamp: str) -> Finding | None:
        """The finding with this stamp, or None."""
        key = _key(stamp)
        if pending := self._pending.get(key):  # one look: another thread may write them meanwhile
            return pending
        if key not in self._rows:
            return None
        name, row = self._rows[key]
        try:
            return self._load(name)[row]
        except (OSError, ValueError, TypeError, IndexError, OverflowError, RecursionError):
            return None

    def add(self, stamp: str, finding: Finding) -> None:
        """Keeps a finding without errors."""
        self._pending[_key(stamp)] = finding
        if len(self._pending) >= CHUNK or time.monotonic() > self._last_write + SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the findings that were added since the last file."""
        findings = list(self._pending.values())
        if findings:
            path = self.folder / f"{time.time_ns()}.npz"
            files.write_arrays(
                path,
                keys=np.array(list(self._pending)),
                size=np.array([f.size for f in findings]),
                counts=np.stack([f.counts for f in findings]),
                palette=np.array([f.palette for f in findings]),
                by_color=np.array([f.by_color for f in findings]),
                turned=np.array([f.turned for f in findings]),
                num_bytes=np.array([f.num_bytes for f in findings]),
                warnings=_join([json.dumps([(w.file, w.text, w.kind) for w in f.warnings]).encode() for f in findings]),
                colors=_join([json.dumps(f.colors).encode() for f in findings]),
                image=_join([f.image for f in findings]),
                label=_join([f.label for f in findings]),
            )
            self._rows |= {key: (path.name, row) for row, key in enumerate(self._pending)}
            self._pending = {}
        self._last_write = time.monotonic()

    def _read(self, name: str) -> list[Finding]:
        """The findings in a file; raises OSError or ValueError."""
        fields = [field for field in Finding._fields if field != "errors"]
        columns = dict(zip(fields, files.read_arrays(self.folder / name, *fields)))
        kinds = {field: f"{column.dtype.kind}{column.ndim}" for field, column in columns.items()}
        if kinds != COLUMNS or columns["size"].shape[1:] != (2,) or (columns["size"] < 1).any():
            raise ValueError("its columns are of other types or shapes")
        values = {
            "warnings": [
                tuple(FileProblem(*map(str, warning)) for warning in json.loads(text))
                for text in _split(columns["warnings"])
            ],
            "colors": [
                tuple((int(color), int(index)) for color, index in json.loads(text))
                for text in _split(columns["colors"])
            ],
            "image": _split(columns["image"]),
            "label": _split(columns["label"]),
            "size": [tuple(size) for size in columns["size"].tolist()],
            "counts": columns["counts"],
            **{name: columns[name].tolist() for name in ("palette", "by_color", "turned")},
            "num_bytes": columns["num_bytes"].tolist(),
        }
        return [Finding(**dict(zip(values, row))) for row in zip(*values.values(), strict=True)]


def _key(stamp: str) -> str:
    return hashlib.sha256(stamp.encode()).hexdigest()


def _join(texts: Sequence[bytes]) -> np.ndarray:
    """Several byte strings as one uint8 array: their number, the length of each, their content."""
    lengths = np.array([len(texts), *map(len, texts)], np.int64)
    return np.frombuffer(lengths.tobytes() + b"".join(texts), np.uint8)


def _split(array: np.ndarray) -> list[bytes]:
    """The byte strings that `_join` put into an array; raises ValueError if it is damaged."""
    numbers = array[: array.size // 8 * 8].view(np.int64)
    if not numbers.size or not 0 <= numbers[0] < numbers.size:
        raise ValueError("the number of texts is wrong")
    count, lengths = int(numbers[0]), numbers[1 : numbers[0] + 1]
    if (lengths < 0).any() or 8 * (count + 1) + sum(lengths.tolist()) != array.size:
        raise ValueError("the lengths of the texts are wrong")
    ends = lengths.cumsum() + 8 * (count + 1)
    return [array[start:end].tobytes() for start, end in zip([8 * (count + 1), *ends[:-1]], ends)]
