"""Reads what an evaluation left in its directory: results.json, images.npz, predictions/FILE.png."""
import json
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from isnet_jax import metrics
from isnet_jax.errors import UserError

FIELDS = {"dataset": str, "split": str, "setting": dict, "config": dict, "names": list, "palette": list,
          "confusion": list}  # of results.json, as far as they are needed here


class Results(NamedTuple):
    """One evaluation of N images and K classes."""
    directory: Path
    record: dict  # results.json
    names: tuple  # of the classes
    images: np.ndarray  # (N,) str, the images' names
    files: np.ndarray  # (N,) str, their predictions/FILE.png
    confusion: np.ndarray  # (K, K) int64, rows truth
    counts: np.ndarray  # (N, 3, K) int64: hits, predicted, truth
    boundary: np.ndarray  # the same of the boundary bands

    @property
    def has_predictions(self):
        return (self.directory / "predictions").is_dir()

    def prediction(self, i):
        """Train ids (H, W), uint8, of image i; raises UserError for a missing or damaged file, or other classes."""
        path = self.directory / "predictions" / f"{self.files[i]}.png"
        try:
            with Image.open(path) as image:
                if image.mode not in ("P", "L"):
                    raise ValueError(f"its mode is {image.mode}, not P")
                classes = np.array(image)
        except Exception as error:  # Pillow raises many kinds
            raise UserError(f"The prediction {path} cannot be read ({type(error).__name__}: {error}); evaluate "
                            "again.") from None
        if classes.max(initial=0) >= len(self.names):
            raise UserError(f"The prediction {path} holds class {classes.max()}, but there are {len(self.names)}, from "
                            "0; it is not a prediction of this evaluation.")
        return classes


def load(directory):
    """The `Results` in a directory; raises UserError where there are none, or damaged ones."""
    directory = Path(directory)
    path = directory / "results.json"
    if not path.is_file():
        raise UserError(f"{directory} holds no results.json, so no evaluation was written there; give a directory that "
                        "isnet_jax.evaluate wrote.")
    record = _read(path, lambda: json.loads(path.read_text()))
    found = record if isinstance(record, dict) else {}
    missing = [key for key, kind in FIELDS.items() if not isinstance(found.get(key), kind)]
    if missing:
        raise UserError(f"{path} is not that of an evaluation (missing: {', '.join(missing)}); give a directory that "
                        "isnet_jax.evaluate wrote, not that of a training run.")
    confusion = _read(path, lambda: np.array(record["confusion"], np.int64))
    path = directory / "images.npz"
    names, files, counts, boundary = _read(path, lambda: _arrays(path))
    k, n = len(record["names"]), len(names)
    wanted = {"file": (n,), "counts": (n, 3, k), "boundary": (n, 3, k)}
    found = {"file": files.shape, "counts": counts.shape, "boundary": boundary.shape}
    if not n or found != wanted or confusion.shape != (k, k):
        raise UserError(f"{path} and results.json do not fit together ({found} instead of {wanted}, confusion "
                        f"{confusion.shape}); evaluate again.")
    if not np.array_equal(metrics.class_counts(confusion), counts.sum(0)):
        raise UserError(f"{path} and results.json count different pixels, so they are not of the same evaluation; "
                        "evaluate again.")
    return Results(directory, record, tuple(record["names"]), names, files, confusion, counts, boundary)


def _arrays(path):
    with np.load(path, allow_pickle=False) as file:
        return (file["name"].astype(str), file["file"].astype(str), file["counts"].astype(np.int64),
                file["boundary"].astype(np.int64))


def _read(path, read):
    try:
        return read()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path} cannot be read ({reason}); evaluate again.") from None


def align(a, b):
    """`b` with its images in the order of `a`'s; raises UserError unless both are of the same data and labels."""
    for what in "dataset", "split":
        if a.record[what] != b.record[what]:
            raise UserError(f"{a.directory} is of the {what} {a.record[what]}, {b.directory} of {b.record[what]}; only "
                            "evaluations of the same images can be compared.")
    if a.names != b.names:
        k = next((k for k, pair in enumerate(zip(a.names, b.names)) if len(set(pair)) > 1), None)
        where = (f"{len(a.names)} and {len(b.names)} of them" if k is None
                 else f"class {k} is {a.names[k]} and {b.names[k]}")
        raise UserError(f"{a.directory} and {b.directory} have other classes ({where}); only evaluations of the same "
                        "classes can be compared.")
    place = {file: i for i, file in enumerate(b.files)}  # names of images may repeat, those of files do not
    lacking = [str(file) for file in a.files if file not in place]
    extra = len(b.files) - (len(a.files) - len(lacking))
    if lacking or extra:
        raise UserError(f"{a.directory} has {len(a.images)} images, {b.directory} {len(b.images)}; "
                        f"{len(lacking)} are only in the first{f' ({lacking[0]} ...)' if lacking else ''} and {extra} "
                        "only in the second. Only evaluations of the same images can be compared.")
    order = np.array([place[file] for file in a.files])
    b = b._replace(images=b.images[order], files=b.files[order], counts=b.counts[order], boundary=b.boundary[order])
    other = np.flatnonzero((a.counts[:, 2] != b.counts[:, 2]).any(1))
    if other.size:
        raise UserError(f"The labels of {other.size} images, {a.images[other[0]]} the first, were other ones in "
                        f"{a.directory} than in {b.directory}: the data were prepared anew in between. Evaluate both "
                        "on the same data.")
    return b
