"""Small annotated folders in each format, with objects whose pixels are known exactly."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image
from readers.samples import encode, noise

HEIGHT, WIDTH = 20, 30


def write_image(path: Path, height: int = HEIGHT, width: int = WIDTH, **options: Any) -> Path:
    """Writes an image of noise; `options` are Pillow's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(height, width).save(path, **options)
    return path


def box(left: float, top: float, right: float, bottom: float) -> list[float]:
    """The corners of a box, as COCO lists them."""
    return [left, top, right, top, right, bottom, left, bottom]


def filled(*boxes: tuple[int, int, int, int, int], background: int = 0) -> np.ndarray:
    """A label with boxes (class, left, top, right, bottom), later ones on top."""
    label = np.full((HEIGHT, WIDTH), background, np.uint8)
    for value, left, top, right, bottom in boxes:
        label[top:bottom, left:right] = value
    return label


def annotation(image: int, category: int, segmentation: Any, **fields: Any) -> dict[str, Any]:
    """An entry of COCO's `annotations`, without an id."""
    return {"image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0, **fields}


def coco(
    names: Sequence[str], annotations: Iterable[Mapping[str, Any]], categories: Mapping[int, str], **size: int
) -> dict[str, Any]:
    """The content of a COCO file, of images 1, 2, ... with these names."""
    size = {"height": HEIGHT, "width": WIDTH, **size}
    return {
        "images": [{"id": i, "file_name": name, **size} for i, name in enumerate(names, 1)],
        "annotations": [{"id": i, **fields} for i, fields in enumerate(annotations, 1)],
        "categories": [{"id": identifier, "name": name} for identifier, name in categories.items()],
    }


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_coco(source: Path, splits: Sequence[str] = ("train", "val")) -> Path:
    """COCO's own layout: two overlapping boxes of the categories 7 and 3 in each of two images a split."""
    for split in splits:
        names = [f"{i:012d}.jpg" for i in range(2)]
        for name in names:
            write_image(source / f"images/{split}2017" / name)
        objects = [(3, box(2, 2, 6, 6)), (7, box(1, 1, 11, 9))]
        content = coco(
            names,
            [annotation(image, category, [ring]) for image in (1, 2) for category, ring in objects],
            {7: "dog", 3: "cat"},
        )
        write_json(source / f"annotations/instances_{split}2017.json", content)
    return source


def labelme(name: str, shapes: Iterable[tuple[str, str, list]], **fields: Any) -> dict[str, Any]:
    """The content of a labelme file; shapes: (label, type, points)."""
    keys = ("label", "shape_type", "points")
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": [{**dict(zip(keys, shape)), "group_id": None, "flags": {}} for shape in shapes],
        "imagePath": name,
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
        **fields,
    }


def base64_png(mask: np.ndarray) -> str:
    """A mask as labelme stores it."""
    return base64.b64encode(encode(Image.fromarray(mask.astype(np.uint8) * 255), "PNG")).decode()


def cvat(images: Mapping[str, Sequence[str]], labels: Mapping[str, str], **subsets: str) -> str:
    """CVAT's XML: {image: shapes}, {label: colour}, and the subsets of images, by their stems."""
    declared = "".join(f"<label><name>{name}</name><color>{color}</color></label>" for name, color in labels.items())
    listed = "".join(
        f'<image id="{i}" name={quoteattr(name)} subset="{subsets.get(Path(name).stem, "default")}" width="{WIDTH}" '
        f'height="{HEIGHT}">{"".join(shapes)}</image>'
        for i, (name, shapes) in enumerate(images.items())
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task><labels>'
        f"{declared}</labels></task></meta>{listed}</annotations>"
    )


def shape(tag: str, label: str, z_order: int = 0, **attributes: Any) -> str:
    """A shape in CVAT's XML."""
    text = " ".join(f"{name}={quoteattr(str(value))}" for name, value in attributes.items())
    return f'<{tag} label="{label}" source="manual" occluded="0" {text} z_order="{z_order}"></{tag}>'
