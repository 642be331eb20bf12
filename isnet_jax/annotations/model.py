"""What the readers of annotations return, and the names that they give to classes and splits."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from isnet_jax.annotations.drawing import Object
from isnet_jax.datasets import tables
from isnet_jax.errors import UserError

MAX_CLASSES, MAX_NAME = 255, 200  # the background included; characters of a class name
BACKGROUND_NAME = "background"
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class Item(NamedTuple):
    """An annotated image."""

    name: str  # of the annotated image, with its folders, for names of files and for messages
    image: Path | None  # None: the labelme file `annotation` holds it
    annotation: Path
    size: tuple[int, int] | None  # (height, width) as annotated
    objects: list[Object]  # in the order of drawing


class Annotations(NamedTuple):
    """The annotations of a data set."""

    classes: tuple[str, ...]  # the background first
    palette: tuple[tables.Color, ...]
    splits: dict[str, list[Item]]
    order: str  # the rule for objects that overlap
    is_upright: bool  # whether objects were drawn on images turned as EXIF says


class Classes:
    """The class of each name: the background is 0, the others follow in the given order."""

    def __init__(self, names: Iterable[str], colors: Mapping[str, tables.Color] | None = None):
        """Raises UserError for names that cannot be class names. `colors` count if they all differ."""
        given = list(dict.fromkeys(names))
        for name in given:
            _check_name(name)
        backgrounds = [name for name in given if name.lower() == BACKGROUND_NAME]
        if len(backgrounds) > 1:
            raise UserError(f"Two classes mean the background: {' and '.join(backgrounds)}. Keep one of them.")
        others = [name for name in given if name not in backgrounds]
        if not others or len(others) >= MAX_CLASSES:
            raise UserError(
                f"The annotations have {len(others)} classes besides the background; there must be 1 to "
                f"{MAX_CLASSES - 1}."
            )
        self.names = (*(backgrounds or [BACKGROUND_NAME]), *others)
        self.index = {name: i for i, name in enumerate(self.names)}
        chosen = {self.names[0]: (0, 0, 0), **(colors or {})}
        own = tuple(chosen[name] for name in self.names) if set(self.names) <= set(chosen) else ()
        self.palette = own if own and len(set(own)) == len(own) else tables.distinct_colors(range(len(self.names)))


def _check_name(name: str) -> None:
    try:
        is_valid = bool(name.strip()) and len(name) <= MAX_NAME and bool(name.encode())
    except UnicodeEncodeError:
        is_valid = False
    if not is_valid:
        raise UserError(
            f"A class has the name {name[:MAX_NAME]!a}: a name must be UTF-8 text of 1 to {MAX_NAME} characters, not "
            "only spaces. Rename it in the annotations."
        )


def split_name(text: str) -> str:
    """The split that a folder or subset called `text` means: lower case, "val" for "valid", "train" if it is empty."""
    name = re.sub(r"[^a-z0-9_-]+", "_", text.lower())[:100]
    name = SPLITS.get(name, name)
    return {"": "train", "default": "train", "all": "all_images"}.get(name, name)
