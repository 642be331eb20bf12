"""labelme's JSON files, one beside each image. Shapes are drawn in the order of the file, later ones on top."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tqdm

from isnet_jax.annotations import drawing
from isnet_jax.annotations.drawing import NoArea, Object, Polygons, Shape, ShapeError, polygon, rectangle
from isnet_jax.annotations.findings import Findings
from isnet_jax.annotations.images import ImageError
from isnet_jax.annotations.model import SPLITS, Annotations, Classes, Item, split_name
from isnet_jax.annotations.reading import files_below, find_image, json_files, read_json
from isnet_jax.datasets.decoding import SUFFIXES
from isnet_jax.errors import UserError
from isnet_jax.labels import IGNORED

MAX_BYTES = 2**28  # of a JSON file, which may hold its image
ORDER = "shapes are drawn in the order of the file, later ones on top"
IGNORE_LABEL, BACKGROUND_LABEL = "__ignore__", "_background_"
WITHOUT_IMAGE = "labelme files whose image is not on disk, which are left out"
WITHOUT_AREA = ("line", "linestrip", "point", "points")


class _File(NamedTuple):
    item: Item  # without objects
    shapes: list[tuple[str, Shape]]  # label, shape


def read(source: Path, findings: Findings) -> Annotations:
    """The annotations in all labelme files below the folder `source`; raises UserError."""
    folders = sorted(path.name for path in source.iterdir() if path.is_dir() and path.name.lower() in SPLITS)
    splits: dict[str, list[_File]] = {}
    for path in tqdm.tqdm(json_files(source), desc="reading", unit=" files", disable=None):
        top, *below = path.relative_to(source).parts
        if folders and not (below and top in folders):
            findings.notes.add("files outside the folders of splits, which are left out", str(path.relative_to(source)))
            continue
        file = _read_file(path, source / top if folders else source, source, findings)
        if file:
            splits.setdefault(split_name(top) if folders else "train", []).append(file)
    findings.require_none(source)
    if not splits:
        lacks_images = any(line.startswith(WITHOUT_IMAGE) for line in findings.notes.lines())
        which = "labelme file whose image is on disk" if lacks_images else "labelme file"
        raise UserError(f"There is no {which} in {source}: a JSON file with imagePath and shapes beside its image.")
    _report_unlabelled(source, splits, findings)
    labels = {label for files in splits.values() for file in files for label, _ in file.shapes}
    classes = Classes(sorted(labels - {IGNORE_LABEL, BACKGROUND_LABEL}))
    index = {**classes.index, IGNORE_LABEL: IGNORED, BACKGROUND_LABEL: drawing.BACKGROUND}
    items = {
        split: [
            item._replace(objects=[Object(index[label], shape) for label, shape in shapes]) for item, shapes in files
        ]
        for split, files in splits.items()
    }
    return Annotations(classes.names, classes.palette, items, ORDER, is_upright=True)


def _report_unlabelled(source: Path, splits: dict[str, list[_File]], findings: Findings) -> None:
    used = {item.image for files in splits.values() for item, _ in files}
    for path in files_below(source, *SUFFIXES):
        if path not in used:
            findings.notes.add("images without a labelme file, which are left out", str(path.relative_to(source)))


def _read_file(path: Path, root: Path, source: Path, findings: Findings) -> _File | None:
    """A file, or None if it is none of labelme's, or its image is missing."""
    name = path.relative_to(root).with_suffix("").as_posix()
    try:
        content = read_json(path, MAX_BYTES)
    except UserError as error:
        findings.problems.add("JSON files that cannot be used", str(error).rstrip("."))
        return None
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        findings.notes.add("JSON files passed over: they have no shapes", name)
        return None
    image_path = content.get("imagePath")
    names = [image_path] if isinstance(image_path, str) else []
    names += [f"{path.stem}{suffix}" for suffix in SUFFIXES]
    image = next((found for text in names if (found := find_image(text, [path.parent], source))), None)
    if image is None and not isinstance(content.get("imageData"), str):
        findings.notes.add(WITHOUT_IMAGE, name)
        return None
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = (height, width) if type(height) is type(width) is int else None
    if not content["shapes"]:
        findings.notes.add("images without a shape, which are all background", name)
    shapes = []
    for entry in content["shapes"]:
        try:
            shape = _shape(entry, name, findings)
        except NoArea as error:
            findings.notes.add(f"{error}, which are not drawn", name)
            continue
        except ShapeError as error:
            findings.problems.add(str(error), name)
            continue
        if shape:
            shapes.append((entry["label"].strip(), shape))
    return _File(Item(name, image, path, size, []), shapes)


def embedded_image(path: Path) -> bytes:
    """The image in a labelme file; raises ImageError, or UserError if the file has changed."""
    content = read_json(path, MAX_BYTES)
    try:
        return base64.b64decode(content["imageData"])
    except (ValueError, TypeError, KeyError):
        raise ImageError("embedded images (imageData) that are damaged") from None


def _shape(entry: Any, name: str, findings: Findings) -> Shape | None:
    """The shape of an entry in `shapes`, None if it has no area; raises ShapeError."""
    if not isinstance(entry, dict) or not isinstance(entry.get("label"), str) or not entry["label"].strip():
        raise ShapeError("shapes without a label")
    kind = entry.get("shape_type") or "polygon"  # early versions knew polygons only
    if kind in WITHOUT_AREA:
        findings.notes.add(f"shapes of the type {kind}, which have no area and are not drawn", name)
        return None
    builder = _BUILDERS.get(kind) if isinstance(kind, str) else None
    if builder is None:
        raise ShapeError("shapes of an unknown type")
    return builder(drawing.points(entry.get("points")).tolist(), entry)


def _polygon(points: list[list[float]], _: dict) -> Shape:
    return Polygons((polygon(points),))


def _rectangle(points: list[list[float]], _: dict) -> Shape:
    if len(points) == 4:  # all corners, as some converters write
        return Polygons((polygon(points),))
    if len(points) != 2:
        raise ShapeError("rectangles without 2 points")
    return rectangle(*points[0], *points[1])


def _circle(points: list[list[float]], _: dict) -> Shape:
    if len(points) != 2:
        raise ShapeError("circles without 2 points")
    (cx, cy), (x, y) = points
    radius = ((x - cx) ** 2 + (y - cy) ** 2) ** 0.5
    return drawing.ellipse((cx, cy), (radius, radius))


def _mask(points: list[list[float]], entry: dict) -> Shape:
    """A PNG over the box whose corner pixels are the two points."""
    if len(points) != 2:
        raise ShapeError("masks without 2 points")
    (left, top), (right, bottom) = ([int(x) for x in point] for point in points)
    try:
        png = base64.b64decode(entry.get("mask", ""))
    except (ValueError, TypeError):
        raise ShapeError("masks that are no readable PNG") from None
    return drawing.Bitmap(png, top, left, bottom - top + 1, right - left + 1)


_BUILDERS: dict[str, Callable[[list[list[float]], dict], Shape]] = {
    "polygon": _polygon,
    "oriented_rectangle": _polygon,
    "rectangle": _rectangle,
    "circle": _circle,
    "mask": _mask,
}
