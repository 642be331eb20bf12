"""Reads what an evaluation left in its directory: results.json, images.npz, predictions/FILE.png.

All of it is untrusted input: shapes, types and sizes are checked before use.
"""

import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isnet_jax.errors import UserError
from isnet_jax.evaluation import boundary, metrics
from isnet_jax.runtime import files, limits
from isnet_jax.runtime.console import say

NUMBER = int, float
REQUIRED_FIELDS: dict[str, type | tuple[type, ...]] = {
    "dataset": str,
    "split": str,
    "setting": dict,
    "config": dict,
    "names": list,
    "palette": list,
    "confusion": list,
}  # of results.json, as far as they are used here
OPTIONAL_FIELDS: dict[str, type | tuple[type, ...]] = {
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
    "boundary_iou": dict,
    "boundary_iou.convention": str,
}  # these may be null or missing
LIMIT = 2**53  # every number in these files is below
MAX_NAME = 1000  # characters of a class name, which pages and tables repeat many times
MAX_DEPTH, MAX_LISTED = 4, 10  # of `find`: levels of directories, evaluations in a message
HOW_TO_EVALUATE = "python -m isnet_jax.evaluate --config=FILE --checkpoint=DIR writes one"
BOUNDARY_CAUTION = (
    "Boundary IoU was counted by an earlier version, which took ignored pixels for another class; to count it again, "
    "delete the evaluation and evaluate again."
)


class Results(NamedTuple):
    """One evaluation of N images and K classes."""

    directory: Path
    record: dict[str, Any]  # the content of results.json
    names: tuple[str, ...]  # of the classes
    images: np.ndarray  # (N,) str, image names
    files: np.ndarray  # (N,) str: the prediction of an image is predictions/FILE.png
    confusion: np.ndarray  # (K, K) int64, rows are ground truth
    counts: np.ndarray  # (N, 3, K) int64: hit, predicted and ground-truth pixels
    boundary: np.ndarray  # (N, 3, K) int64, the same within the boundary bands

    @property
    def has_predictions(self) -> bool:
        return (self.directory / "predictions").is_dir()

    def prediction(self, i: int) -> np.ndarray:
        """Train ids (H, W), uint8, of image i.

        Raises UserError for a missing or damaged file, or for classes that the evaluation does not have.
        """
        path = self.directory / "predictions" / f"{self.files[i]}.png"
        try:
            image = limits.open_image(io.BytesIO(limits.read(path)), ("PNG",))
            if image.mode not in ("P", "L"):
                raise ValueError(f"its mode is {image.mode}, not P")
            classes = np.array(image)
        except Exception as error:  # Pillow raises many kinds
            raise UserError(
                f"The prediction {path} cannot be read ({type(error).__name__}: {error}); to evaluate again, "
                f"delete {self.directory}."
            ) from None
        if classes.max(initial=0) >= len(self.names):
            raise UserError(
                f"The prediction {path} holds class {classes.max()}, but the classes of this evaluation are 0 to "
                f"{len(self.names) - 1}; it is not one of its predictions."
            )
        return classes


def find(directory: str | Path) -> Path:
    """A directory that holds an evaluation, or the only one below it that does, such as in a run's workdir; says so.

    Looks as `below` does. Raises UserError if there is none, or more than one.
    """
    directory = Path(directory)
    if (directory / "images.npz").is_file():  # a training run has a results.json of its own
        return directory
    found = below(directory)
    if len(found) > 1:
        listed = ", ".join(map(str, found[:MAX_LISTED]))
        raise UserError(
            f"{directory} holds {len(found)} evaluations; name one of them: {listed}"
            f"{', ...' if len(found) > MAX_LISTED else ''}."
        )
    if found:
        say(f"the evaluation in {directory}: {found[0]}")
        return found[0]
    if (directory / "results.json").is_file():
        return directory  # `load` says what is wrong
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; give one that holds an evaluation: {HOW_TO_EVALUATE}.")
    raise UserError(
        f"{directory} holds no evaluation (results.json beside images.npz), nor does a directory below it; "
        f"{HOW_TO_EVALUATE}."
    )


def below(directory: str | Path) -> list[Path]:
    """The directories of evaluations in a directory and up to MAX_DEPTH levels below it; follows no links."""
    found = []
    for parent, folders, names in os.walk(directory):
        folders.sort()
        if {"results.json", "images.npz"} <= set(names):
            found.append(Path(parent))
        if len(Path(parent).relative_to(directory).parts) == MAX_DEPTH:
            folders.clear()
    return found


def load(directory: str | Path) -> Results:
    """The `Results` in a directory; raises UserError if there are none, or if they are damaged."""
    directory = Path(directory)
    path = directory / "results.json"
    if not path.is_file():
        raise UserError(f"{directory} holds no results.json, so no evaluation was written there; {HOW_TO_EVALUATE}.")
    record = _read(path, files.read_json)
    fault = _fault(record)
    if fault:
        raise UserError(
            f"{path} is not the results.json of an evaluation ({fault}); if it is a training run's, {HOW_TO_EVALUATE}."
        )
    confusion = np.array(record["confusion"], np.int64)
    path = directory / "images.npz"
    images, file_names, counts, boundary = _read_images(path, len(record["names"]))
    if not np.array_equal(metrics.class_counts(confusion), counts.sum(0)):
        raise UserError(
            f"{path} and results.json count different pixels, so they are not of the same evaluation; "
            f"{_to_evaluate_again(path)}."
        )
    return Results(directory, record, tuple(record["names"]), images, file_names, confusion, counts, boundary)


def has_current_boundary(record: Mapping[str, Any]) -> bool:
    """Whether the content of a results.json says that boundary IoU follows `boundary.CONVENTION`."""
    return (record.get("boundary_iou") or {}).get("convention") == boundary.CONVENTION


def _read_images(path: Path, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The arrays of an images.npz for K classes: name, file, counts, boundary."""
    images, file_names, counts, boundary = _read(path, files.read_arrays, "name", "file", "counts", "boundary")
    n = len(images) if images.ndim else 0
    arrays = {"name": images, "file": file_names, "counts": counts, "boundary": boundary}
    found = {name: f"{x.dtype.kind} {x.shape}" for name, x in arrays.items()}
    expected = {"name": f"U {(n,)}", "file": f"U {(n,)}", "counts": f"i {(n, 3, k)}", "boundary": f"i {(n, 3, k)}"}
    if not n or found != expected:
        raise UserError(
            f"{path} and results.json do not match ({found} instead of {expected}); {_to_evaluate_again(path)}."
        )
    counts, boundary = counts.astype(np.int64), boundary.astype(np.int64)
    if min(counts.min(), boundary.min()) < 0 or max(counts.max(), boundary.max()) > LIMIT // n:
        raise UserError(f"{path} holds impossible numbers of pixels; {_to_evaluate_again(path)}.")
    invalid = [file for file in file_names.tolist() if not files.is_plain_filename(file)]
    if invalid:
        raise UserError(f"{path} holds invalid file names, such as {invalid[0][:100]!a}; {_to_evaluate_again(path)}.")
    if len(set(file_names.tolist())) < n:
        raise UserError(f"{path} holds repeated file names; {_to_evaluate_again(path)}.")
    return images, file_names, counts, boundary


def _to_evaluate_again(path: Path) -> str:
    return f"to evaluate again, delete {path.parent / 'results.json'}"


def _read(path: Path, read: Callable, *args: Any) -> Any:
    try:
        return read(path, *args)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path} cannot be read ({reason}); {_to_evaluate_again(path)}.") from None


def _fault(record: Any) -> str:
    """What is wrong with the content of a results.json; "" if nothing is."""
    if not isinstance(record, dict):
        return "it is not a JSON object"
    missing = [field for field, kind in REQUIRED_FIELDS.items() if not isinstance(record.get(field), kind)]
    if missing:
        return f"missing: {', '.join(missing)}"
    wrong = [field for field, kind in OPTIONAL_FIELDS.items() if not _is_null_or(kind, _value(record, field))]
    if wrong:
        return f"of the wrong type: {', '.join(wrong)}"
    names, palette, confusion = record["names"], record["palette"], record["confusion"]
    k = len(names)
    if not 1 <= k <= 255 or not all(isinstance(name, str) and len(name) <= MAX_NAME for name in names):
        return f"names must be 1 to 255 texts of at most {MAX_NAME} characters"
    if len(palette) != k or not all(_are_counts(color, 3, 255) for color in palette):
        return f"palette must be {k} colours"
    if len(confusion) != k or not all(_are_counts(row, k, LIMIT // k**2) for row in confusion):
        return f"confusion must be {k} x {k} numbers of pixels"
    if not all(isinstance(x, NUMBER) and 0 < x < LIMIT for x in record["setting"].get("scales") or ()):
        return "setting.scales must be numbers"
    return ""


def _value(record: Mapping[str, Any], field: str) -> Any:
    """The value of a dotted field; None if it is missing."""
    value: Any = record
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _is_null_or(kind: type | tuple[type, ...], value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, kind) and (not isinstance(value, NUMBER) or abs(value) < LIMIT)


def _are_counts(values: Any, length: int, maximum: int) -> bool:
    return (
        isinstance(values, list) and len(values) == length and all(type(x) is int and 0 <= x <= maximum for x in values)
    )


def align(a: Results, b: Results) -> Results:
    """`b` with its images in the order of those of `a`; raises UserError unless both have the same data and labels."""
    for field in "dataset", "split":
        if a.record[field] != b.record[field]:
            raise UserError(
                f"The {field} is {a.record[field]} in {a.directory}, but {b.record[field]} in {b.directory}; only "
                "evaluations of the same images can be compared."
            )
    if a.names != b.names:
        k = next((k for k, pair in enumerate(zip(a.names, b.names)) if len(set(pair)) > 1), None)
        where = (
            f"{len(a.names)} and {len(b.names)} classes" if k is None else f"class {k} is {a.names[k]} and {b.names[k]}"
        )
        raise UserError(
            f"{a.directory} and {b.directory} have different classes ({where}); only evaluations of the same "
            "classes can be compared."
        )
    order = _order(a, b)
    b = b._replace(images=b.images[order], files=b.files[order], counts=b.counts[order], boundary=b.boundary[order])
    changed = np.flatnonzero((a.counts[:, 2] != b.counts[:, 2]).any(1))
    if changed.size:
        raise UserError(
            f"The labels of {changed.size} images, the first of which is {a.images[changed[0]]}, differ between "
            f"{a.directory} and {b.directory}: the data were prepared again in between. Evaluate both on the same data."
        )
    return b


def _order(a: Results, b: Results) -> np.ndarray:
    """Indices (N,) of the images of `a` in `b`; raises UserError unless both have the same images."""
    index_in_b = {file: i for i, file in enumerate(b.files)}  # image names may repeat, file names do not
    missing = [str(file) for file in a.files if file not in index_in_b]
    extra = len(b.files) - (len(a.files) - len(missing))
    if missing or extra:
        raise UserError(
            f"{a.directory} has {len(a.images)} images, {b.directory} {len(b.images)}; "
            f"{len(missing)} are only in the first{f' ({missing[0]} ...)' if missing else ''} and {extra} "
            "only in the second. Only evaluations of the same images can be compared."
        )
    return np.array([index_in_b[file] for file in a.files])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, dicts with "step"; rows from the first damaged one on are dropped.

    A crash may have cut off the last line.
    """
    rows: list[dict[str, Any]] = []
    with files.open_file(path) as file:
        lines = file.read().decode(errors="replace").splitlines()
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not (isinstance(row, dict) and isinstance(row.get("step"), int) and abs(row["step"]) < LIMIT):
            break
        rows.append(row)
    return rows
