"""CVAT's XML, "CVAT for images 1.1". Shapes are drawn by z_order, equal ones in the order of the file."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import defusedxml
import defusedxml.ElementTree

from isnet_jax.annotations import drawing
from isnet_jax.annotations.drawing import NoArea, Object, Polygons, Shape, ShapeError, polygon, rectangle
from isnet_jax.annotations.findings import Findings
from isnet_jax.annotations.model import Annotations, Classes, Item, split_name
from isnet_jax.annotations.reading import check_size, files_below, find_image
from isnet_jax.errors import UserError
from isnet_jax.runtime import files

MAX_BYTES = 10**9  # of an XML file, which is read an image at a time
MAX_DEPTH = 32  # of its elements
ORDER = "shapes are drawn by z_order, equal ones in the order of the file"
WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton")


class _Labels:
    """The labels that an XML file declares, in its order, and their colours."""

    def __init__(self) -> None:
        self.colors: dict[str, tuple[int, int, int] | None] = {}

    def add(self, element: Element) -> None:
        """Adds a <label>, unless it is a part of a skeleton."""
        name, color = element.findtext("name") or "", element.findtext("color") or ""
        if element.find("parent") is None:
            match = re.fullmatch("#([0-9a-fA-F]{6})", color)
            r, g, b = bytes.fromhex(match[1]) if match else (0, 0, 0)
            self.colors.setdefault(name, (r, g, b) if match else None)


def read(source: Path, findings: Findings) -> Annotations:
    """The annotations in all CVAT files below the folder `source`; raises UserError."""
    labels = _Labels()
    found: list[tuple[str, Item, list[tuple[str, Shape]]]] = []
    for path in files_below(source, ".xml"):
        images = _images(path, labels)
        if images is None:
            findings.notes.add("XML files passed over: they are not of CVAT for images", path.name)
            continue
        found += [entry for image in images if (entry := _read_image(image, path, source, labels, findings))]
    if not labels.colors and not found:
        raise UserError(f'There is no annotations.xml of "CVAT for images 1.1" in {source}: export that format.')
    findings.require_none(source)
    classes = Classes(labels.colors, {name: color for name, color in labels.colors.items() if color})
    splits: dict[str, list[Item]] = {}
    for split, item, shapes in found:
        objects = [Object(classes.index[label], shape) for label, shape in shapes]
        splits.setdefault(split, []).append(item._replace(objects=objects))
    return Annotations(classes.names, classes.palette, splits, ORDER, is_upright=True)


def _images(path: Path, labels: _Labels) -> Iterator[Element] | None:
    """Yields the <image> elements of a file, and adds its labels first; None if the file is not CVAT's.

    Raises UserError for one that is damaged, or declares entities.
    """
    elements = _elements(path)
    root = next(elements)
    if root.tag != "annotations":
        return None

    def images() -> Iterator[Element]:
        for element in elements:
            if element.tag == "track":
                raise UserError(f'{path} is of "CVAT for video": export "CVAT for images 1.1" instead.')
            if element.tag == "label":
                labels.add(element)
            elif element.tag == "image":
                yield element
                element.clear()
                root.clear()

    return images()


def _elements(path: Path) -> Iterator[Element]:
    """Yields the root of an XML file as it starts, then every element as it ends; raises UserError."""
    depth = 0
    try:
        with files.open_file(path) as file:
            check_size(path, file.fileno(), MAX_BYTES)
            for event, element in defusedxml.ElementTree.iterparse(file, ("start", "end"), forbid_dtd=True):
                depth += 1 if event == "start" else -1
                if depth > MAX_DEPTH:
                    raise UserError(f"{path} is nested too deeply to be an annotation file.")
                if event == "end" or depth == 1:
                    yield element
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from None
    except defusedxml.DefusedXmlException:
        raise UserError(f"{path} declares entities or a document type, which CVAT's files do not have.") from None
    except (ParseError, ValueError, LookupError) as error:  # ValueError, LookupError: an unknown encoding
        raise UserError(f"{path} is not an XML file ({' '.join(str(error).split())[:200]}).") from None


def _read_image(
    image: Element, path: Path, source: Path, labels: _Labels, findings: Findings
) -> tuple[str, Item, list[tuple[str, Shape]]] | None:
    """Split, item without objects, and labels with shapes in the order of drawing; None if the image is missing."""
    name, subset = image.get("name", ""), image.get("subset") or ""
    places = ("images", "", f"images/{subset}", subset)
    folders = [root / place for root in dict.fromkeys((path.parent, source)) for place in places]
    file = find_image(name, folders, source)
    if file is None:
        findings.notes.add("images that are not on disk and are left out", name)
        return None
    shapes = []
    for element in image:
        if element.tag in WITHOUT_AREA:
            findings.notes.add(f"shapes of the type {element.tag}, which have no filled area and are not drawn", name)
        elif element.tag in _BUILDERS:
            label = element.get("label", "")
            try:
                shapes.append((_integer(element.attrib, "z_order", 0), label, _BUILDERS[element.tag](element.attrib)))
            except NoArea as error:
                findings.notes.add(f"{error}, which are not drawn", name)
            except ShapeError as error:
                findings.problems.add(str(error), name)
            if label not in labels.colors:
                findings.problems.add(f"shapes with a label that {path.name} does not declare", f"{label} in {name}")
    if not shapes:
        findings.notes.add("images without a shape, which are all background", name)
    try:
        size = _integer(image.attrib, "height"), _integer(image.attrib, "width")
    except ShapeError:
        size = None
    ordered = [(label, shape) for _, label, shape in sorted(shapes, key=lambda shape: shape[0])]
    return split_name(subset), Item(name, file, path, size, []), ordered


def _integer(attributes: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = attributes.get(name)
    if text is None and default is not None:
        return default
    if not re.fullmatch(r"-?[0-9]{1,9}", text or ""):
        raise ShapeError(f"shapes without an integer {name}")
    return int(text or "")


def _floats(attributes: Mapping[str, str], *names: str) -> list[float]:
    try:
        return [float(attributes[name]) for name in names]
    except (KeyError, ValueError):
        raise ShapeError(f"shapes without numbers {', '.join(names)}") from None


def _rotation(attributes: Mapping[str, str]) -> float:
    return _floats(attributes, "rotation")[0] if "rotation" in attributes else 0.0


def _polygon(attributes: Mapping[str, str]) -> Shape:
    return Polygons((polygon([pair.split(",") for pair in attributes.get("points", "").split(";")]),))


def _box(attributes: Mapping[str, str]) -> Shape:
    x0, y0, x1, y1 = _floats(attributes, "xtl", "ytl", "xbr", "ybr")
    return rectangle(x0, y0, x1, y1, _rotation(attributes))


def _ellipse(attributes: Mapping[str, str]) -> Shape:
    cx, cy, rx, ry = _floats(attributes, "cx", "cy", "rx", "ry")
    return drawing.ellipse((cx, cy), (rx, ry), _rotation(attributes))


def _mask(attributes: Mapping[str, str]) -> Shape:
    left, top, width, height = (_integer(attributes, name) for name in ("left", "top", "width", "height"))
    counts: Any = attributes.get("rle", "").split(",")
    try:
        counts = [int(count) for count in counts]
    except ValueError:
        raise ShapeError("masks with invalid run lengths or an invalid size") from None
    return drawing.runs(counts, height, width, by_columns=False, top=top, left=left)


_BUILDERS = {"polygon": _polygon, "box": _box, "ellipse": _ellipse, "mask": _mask}
