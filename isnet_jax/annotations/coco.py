"""COCO's JSON: polygons and run lengths, as COCO itself and Roboflow, CVAT, Label Studio and others write it.

Larger objects are drawn first, so that smaller ones lie on top. Crowd regions become ignored where no object lies.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tqdm

from isnet_jax.annotations.drawing import (
    Object,
    Polygons,
    Runs,
    ShapeError,
    decompress,
    points,
    polygon,
    rectangle,
    runs,
)
from isnet_jax.annotations.findings import Findings
from isnet_jax.annotations.model import Annotations, Classes, Item, split_name
from isnet_jax.annotations.reading import find_image, json_files, read_json
from isnet_jax.errors import UserError, printable
from isnet_jax.labels import IGNORED

MAX_BYTES = 2 * 10**9  # of a JSON file; instances_train2017.json has 0.45 GB, and LVIS 1.1 GB
ORDER = "larger objects are drawn first, so that smaller ones lie on top"
SPLIT_WORD = re.compile(r"(?<![a-z])(train(?:ing)?|val(?:id(?:ation)?)?|test(?:ing)?)(?![a-z])")

Shape = Polygons | Runs


class _Image(NamedTuple):
    item: Item  # without objects
    objects: list[tuple[int, bool, Shape]]  # category id, whether it is a crowd, shape


class _File(NamedTuple):
    images: dict[int | str, _Image]
    categories: dict[int, str]


def read(source: Path, findings: Findings) -> Annotations:
    """The annotations in all COCO files below the folder `source`; raises UserError."""
    contents = _read_files(source, findings)
    categories = _merged([file.categories for file in contents.values()], findings)
    findings.require_none(source)
    classes = Classes(categories.values())
    index = {identifier: classes.index[name] for identifier, name in categories.items()}
    splits, used = {}, set()
    for split, file in contents.items():
        splits[split] = [item._replace(objects=_in_order(objects, index)) for item, objects in file.images.values()]
        used |= {value for item in splits[split] for value, _ in item.objects}
    for name in classes.names[1:]:
        if classes.index[name] not in used:
            findings.notes.add("categories without an object, which stay classes", name)
    return Annotations(classes.names, classes.palette, splits, ORDER, is_upright=False)


def _read_files(source: Path, findings: Findings) -> dict[str, _File]:
    """{split: file}; if files are called instances_*.json, as COCO's own, the others are passed over."""
    paths = json_files(source)
    own = [path for path in paths if path.name.startswith("instances_")]
    for path in paths if own else []:
        if path not in own:
            findings.notes.add("JSON files passed over, since there are files instances_*.json", path.name)
    found: dict[str, Path] = {}
    contents = {}
    for path in own or paths:
        content = read_json(path, MAX_BYTES)
        if not _is_coco(content):
            findings.notes.add("JSON files passed over: they lack images, annotations or categories", path.name)
            continue
        split = _split(path, source)
        if split in found:
            raise UserError(
                f"{found[split]} and {path} are both of the split {split}: merge them, name their splits in their "
                "file names, or give a --source with one of them."
            )
        found[split] = path
        contents[split] = _parse(content, path, split, source, findings)
    if not found:
        raise UserError(
            f"There is no COCO file in {source}: a JSON file with images, annotations and categories, such as "
            "annotations/instances_train2017.json."
        )
    return contents


def _is_coco(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
    )


def _split(path: Path, source: Path) -> str:
    """The split in the name of a file, or else of the folders above it below the source; train if there is none."""
    for name in (path.stem, *reversed(path.parent.relative_to(source).parts)):
        words = SPLIT_WORD.findall(name.lower())
        if words:
            return split_name(words[-1])
    return "train"


def _parse(content: Any, path: Path, split: str, source: Path, findings: Findings) -> _File:
    categories = _categories(content["categories"], path, findings)
    images = _images(content["images"], path, _folders(path, split, source), source, findings)
    description = printable(f"reading {path.name}")
    for annotation in tqdm.tqdm(content["annotations"], desc=description, unit=" annotations", disable=None):
        _add_annotation(annotation, images, categories, path, findings)
    for image, objects in images.values():
        if image.image and not objects:
            findings.notes.add(f"images of {split} without an object, which are all background", image.name)
    return _File({key: image for key, image in images.items() if image.item.image}, categories)


def _categories(entries: Iterable[Any], path: Path, findings: Findings) -> dict[int, str]:
    """{id: name} in the order of ids."""
    categories: dict[int, str] = {}
    for entry in entries:
        identifier, name = _fields(entry, "id", "name")
        if type(identifier) is not int or not isinstance(name, str):
            findings.problems.add(f"categories of {path.name} without a number as id and a text as name", _shown(name))
        elif categories.get(identifier, name) != name:
            findings.problems.add(f"ids that two categories of {path.name} share", identifier)
        else:
            categories[identifier] = name
    return dict(sorted(categories.items()))


def _merged(parts: Iterable[Mapping[int, str]], findings: Findings) -> dict[int, str]:
    """The categories of all files in the order of ids; categories of the same name become one class."""
    merged: dict[int, str] = {}
    for categories in parts:
        for identifier, name in categories.items():
            if merged.setdefault(identifier, name) != name:
                findings.problems.add("category ids with different names in different files", f"{identifier} {name}")
    names: set[str] = set()
    for _, name in sorted(merged.items()):
        if name in names:
            findings.notes.add("categories with the name of another, which become one class with it", name)
        names.add(name)
    return dict(sorted(merged.items()))


def _folders(path: Path, split: str, source: Path) -> list[Path]:
    """Where the images of a COCO file may be, the most likely place first."""
    own = path.stem.removeprefix("instances_")
    roots = [path.parent, source, path.parent.parent]
    names = ["", own, split, "images", f"images/{own}", f"images/{split}"]
    return [folder for root in dict.fromkeys(roots) for name in names if (folder := root / name).is_dir()]


def _images(
    entries: Iterable[Any], path: Path, folders: list[Path], source: Path, findings: Findings
) -> dict[int | str, _Image]:
    """{id: image}, an image that is not on disk without a path."""
    images: dict[int | str, _Image] = {}
    for entry in entries:
        identifier, name, height, width = _fields(entry, "id", "file_name", "height", "width")
        if type(identifier) not in (int, str) or not isinstance(name, str):
            findings.problems.add(f"images of {path.name} without an id or a file_name", _shown(name))
        elif identifier in images:
            findings.problems.add(f"ids that two images of {path.name} share", identifier)
        else:
            size = (height, width) if type(height) is type(width) is int else None
            image = find_image(name, folders, source)
            if image is None:
                findings.notes.add(f"images of {path.name} that are not on disk and are left out", name)
            images[identifier] = _Image(Item(name, image, path, size, []), [])
    return images


def _add_annotation(
    annotation: Any, images: Mapping[Any, _Image], categories: Mapping[Any, str], path: Path, findings: Findings
) -> None:
    keys = ("id", "image_id", "category_id", "segmentation", "iscrowd")
    identifier, image_id, category, segmentation, is_crowd = _fields(annotation, *keys)
    name = f"annotation {_shown(identifier)}"
    if type(image_id) not in (int, str) or image_id not in images:
        findings.problems.add(f"annotations of images that {path.name} does not list", name)
    elif type(category) is not int or category not in categories:
        findings.problems.add(f"annotations of categories that {path.name} does not list", name)
    elif is_crowd not in (0, 1, None):
        findings.problems.add(f"annotations of {path.name} whose iscrowd is neither 0 nor 1", name)
    elif not segmentation:
        findings.notes.add(f"boxes of {path.name} without a segmentation: ignored (255) where no object lies", name)
        _add_box(annotation, images[image_id], category)
    else:
        try:
            shape = _shape(segmentation, name, path, findings)
        except ShapeError as error:
            findings.problems.add(f"{error}, in {path.name}", name)
            return
        if shape:
            if is_crowd:
                findings.notes.add("crowd regions (iscrowd=1): ignored (255) where no object lies", name)
            images[image_id].objects.append((category, bool(is_crowd), shape))


def _add_box(annotation: Any, image: "_Image", category: int) -> None:
    """Adds the box of an object whose pixels are unknown, to be ignored like a crowd."""
    try:
        left, top, width, height = points(_fields(annotation, "bbox")[0]).ravel().tolist()
    except ValueError:  # ShapeError is one
        return
    if min(width, height) > 0:
        image.objects.append((category, True, rectangle(left, top, left + width, top + height)))


def _shape(segmentation: Any, name: str, path: Path, findings: Findings) -> Shape | None:
    """The shape of an annotation, None if all its polygons are degenerate; raises ShapeError."""
    if isinstance(segmentation, dict):
        counts, size = segmentation.get("counts"), segmentation.get("size")
        if not isinstance(size, list) or len(size) != 2:
            raise ShapeError("masks with invalid run lengths or an invalid size")
        counts = decompress(counts) if isinstance(counts, str) else counts
        return runs(counts, *size, by_columns=True, covers_image=True)
    if not isinstance(segmentation, list):
        raise ShapeError("segmentations that are neither polygons nor a mask")
    rings = []
    for ring in [segmentation] if type(segmentation[0]) in (int, float) else segmentation:
        corners = points(ring)
        if len(corners) < 3:
            findings.notes.add(f"polygons of {path.name} with fewer than 3 points, which are not drawn", name)
        else:
            rings.append(polygon(corners))
    return Polygons(tuple(rings)) if rings else None


def _in_order(objects: list[tuple[int, bool, Shape]], classes: Mapping[int, int]) -> list[Object]:
    """Crowds first, then objects by falling area; equal ones as in the file."""
    ordered = sorted(objects, key=lambda entry: (not entry[1], -entry[2].area))
    return [Object(IGNORED if is_crowd else classes[category], shape) for category, is_crowd, shape in ordered]


def _fields(entry: Any, *names: str) -> list[Any]:
    """Fields of a JSON object; None where it lacks them or is none."""
    return [entry.get(name) if isinstance(entry, dict) else None for name in names]


def _shown(value: Any) -> str:
    """An id or a name in a message; a nested value may be too deep to print."""
    return f"{value!a:.50}" if isinstance(value, str | int | float) else type(value).__name__
