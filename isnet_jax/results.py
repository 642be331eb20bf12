"""Reads what an evaluation left in its directory: results.json, images.npz, predictions/FILE.png."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from isnet_jax import limits, metrics, stored
from isnet_jax.errors import UserError

NUMBER = int, float
FIELDS = {
    "dataset": str,
    "split": str,
    "setting": dict,
    "config": dict,
    "names": list,
    "palette": list,
    "confusion": list,
}  # of results.json, as far as they are needed here
OPTIONAL = {
    "step": int,
    "run": dict,
    "published": dict,
    "config.model": dict,
    "config.model.backbone": str,
    "config.data": dict,
    "config.data.name": str,
    "config.data.data_dir": str,
    "config.data.folder": dict,
    "setting.name": str,
    "setting.scales": list,
    "setting.crop_size": list,
    "run.versions": dict,
    "run.seconds": NUMBER,
    "run.images_per_second": NUMBER,
    "run.padding_overhead": NUMBER,
    "published.miou": NUMBER,
}  # and of these, what may be null or missing
LARGE = 2**53  # no number there is so large
MAX_NAME = 1000  # characters; names of classes are repeated many times over


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
            image = limits.open_image(io.BytesIO(limits.read(path)), ("PNG",))
            if image.mode not in ("P", "L"):
                raise ValueError(f"its mode is {image.mode}, not P")
            classes = np.array(image)
        except Exception as error:  # Pillow raises many kinds
            raise UserError(
                f"The prediction {path} cannot be read ({type(error).__name__}: {error}); evaluate again."
            ) from None
        if classes.max(initial=0) >= len(self.names):
            raise UserError(
                f"The prediction {path} holds class {classes.max()}, but there are {len(self.names)}, from "
                "0; it is not a prediction of this evaluation."
            )
        return classes


def load(directory):
    """The `Results` in a directory; raises UserError where there are none, or damaged ones."""
    directory = Path(directory)
    path = directory / "results.json"
    if not path.is_file():
        raise UserError(
            f"{directory} holds no results.json, so no evaluation was written there; give a directory that "
            "isnet_jax.evaluate wrote."
        )
    record = _read(path, stored.read_json)
    fault = _fault(record)
    if fault:
        raise UserError(
            f"{path} is not that of an evaluation ({fault}); give a directory that isnet_jax.evaluate "
            "wrote, not that of a training run."
        )
    confusion = np.array(record["confusion"], np.int64)
    path = directory / "images.npz"
    names, files, counts, boundary = _read(path, stored.read_arrays, "name", "file", "counts", "boundary")
    k, n = len(record["names"]), len(names) if names.ndim else 0
    found = {"name": names, "file": files, "counts": counts, "boundary": boundary}
    found = {name: f"{x.dtype.kind} {x.shape}" for name, x in found.items()}
    wanted = {"name": f"U {(n,)}", "file": f"U {(n,)}", "counts": f"i {(n, 3, k)}", "boundary": f"i {(n, 3, k)}"}
    if not n or found != wanted:
        raise UserError(f"{path} and results.json do not fit together ({found} instead of {wanted}); evaluate again.")
    counts, boundary = counts.astype(np.int64), boundary.astype(np.int64)
    if min(counts.min(), boundary.min()) < 0 or max(counts.max(), boundary.max()) > LARGE // n:
        raise UserError(f"{path} holds impossible numbers of pixels; evaluate again.")
    odd = [file for file in files.tolist() if not stored.is_name(file)]
    if odd or len(set(files.tolist())) < n:
        raise UserError(
            f"{path} holds names of files that are {'none' if odd else 'repeated'}"
            f"{f' ({odd[0][:100]!a})' if odd else ''}; evaluate again."
        )
    if not np.array_equal(metrics.class_counts(confusion), counts.sum(0)):
        raise UserError(
            f"{path} and results.json count different pixels, so they are not of the same evaluation; evaluate again."
        )
    return Results(directory, record, tuple(record["names"]), names, files, confusion, counts, boundary)


def _read(path, read, *args):
    try:
        return read(path, *args)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path} cannot be read ({reason}); evaluate again.") from None


def _fault(record):
    """What is wrong with the content of a results.json, "" if nothing."""
    if not isinstance(record, dict):
        return "no JSON object"

    def at(field, value=record):
        for name in field.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    missing = [field for field, kind in FIELDS.items() if not isinstance(record.get(field), kind)]
    odd = [
        field
        for field, kind in OPTIONAL.items()
        if at(field) is not None
        and not (isinstance(at(field), kind) and (not isinstance(at(field), NUMBER) or abs(at(field)) < LARGE))
    ]
    if missing or odd:
        return f"missing: {', '.join(missing)}" if missing else f"of another kind: {', '.join(odd)}"
    names, palette, confusion = record["names"], record["palette"], record["confusion"]
    k = len(names)

    def are_counts(values, count, most):
        return (
            isinstance(values, list) and len(values) == count and all(type(x) is int and 0 <= x <= most for x in values)
        )

    if not 1 <= k <= 255 or not all(isinstance(name, str) and len(name) <= MAX_NAME for name in names):
        return f"names must be 1 to 255 texts of at most {MAX_NAME} characters"
    if len(palette) != k or not all(are_counts(color, 3, 255) for color in palette):
        return f"palette must be {k} colours"
    if len(confusion) != k or not all(are_counts(row, k, LARGE // k**2) for row in confusion):
        return f"confusion must be {k} x {k} numbers of pixels"
    if not all(isinstance(x, NUMBER) and 0 < x < LARGE for x in record["setting"].get("scales") or ()):
        return "setting.scales must be numbers"
    return ""


def align(a, b):
    """`b` with its images in the order of `a`'s; raises UserError unless both are of the same data and labels."""
    for what in "dataset", "split":
        if a.record[what] != b.record[what]:
            raise UserError(
                f"{a.directory} is of the {what} {a.record[what]}, {b.directory} of {b.record[what]}; only "
                "evaluations of the same images can be compared."
            )
    if a.names != b.names:
        k = next((k for k, pair in enumerate(zip(a.names, b.names)) if len(set(pair)) > 1), None)
        where = (
            f"{len(a.names)} and {len(b.names)} of them" if k is None else f"class {k} is {a.names[k]} and {b.names[k]}"
        )
        raise UserError(
            f"{a.directory} and {b.directory} have other classes ({where}); only evaluations of the same "
            "classes can be compared."
        )
    place = {file: i for i, file in enumerate(b.files)}  # names of images may repeat, those of files do not
    lacking = [str(file) for file in a.files if file not in place]
    extra = len(b.files) - (len(a.files) - len(lacking))
    if lacking or extra:
        raise UserError(
            f"{a.directory} has {len(a.images)} images, {b.directory} {len(b.images)}; "
            f"{len(lacking)} are only in the first{f' ({lacking[0]} ...)' if lacking else ''} and {extra} "
            "only in the second. Only evaluations of the same images can be compared."
        )
    order = np.array([place[file] for file in a.files])
    b = b._replace(images=b.images[order], files=b.files[order], counts=b.counts[order], boundary=b.boundary[order])
    other = np.flatnonzero((a.counts[:, 2] != b.counts[:, 2]).any(1))
    if other.size:
        raise UserError(
            f"The labels of {other.size} images, {a.images[other[0]]} the first, were other ones in "
            f"{a.directory} than in {b.directory}: the data were prepared anew in between. Evaluate both "
            "on the same data."
        )
    return b
