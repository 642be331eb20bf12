"""The fields of config.data.folder: their checks, and the lines to write for labels that they do not accept."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from isnet_jax.datasets import label_values, tables
from isnet_jax.datasets.label_values import VALUES
from isnet_jax.datasets.patterns import num_stars
from isnet_jax.errors import UserError

MAX_VALUE = 2**16 - 1  # of a label file
MAX_COLORS, MAX_MISSING = 40, 5  # in a message


def with_defaults(folder: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as plain values; those that an earlier version did not have get their defaults."""
    defaults = {"palette": (), "label_values": (), "exif": True, "split_seed": 0}
    return defaults | {name: dict(value) if name == "splits" else value for name, value in folder.items()}


def as_json(value: Any) -> Any:
    """A field's value as JSON stores it: tuples become lists."""
    if isinstance(value, dict):
        return {name: as_json(item) for name, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, tuple | list) else value


def check(fields: Mapping[str, Any]) -> None:
    """Raises UserError, naming the field of config.data.folder, if a field is invalid."""

    def require(field: str, expected: str, is_valid: Callable[[Any], Any]) -> None:
        try:
            if is_valid(fields[field]):
                return
        except TypeError:  # the elements of a tuple may be of any type
            pass
        raise UserError(f"config.data.folder.{field} is {fields[field]!r:.300}; it must be {expected}.")

    classes = fields["classes"]
    require("name", "made of letters, digits, _ and -", _is_identifier)
    if len(classes) == 1:
        raise UserError(
            f"config.data.folder.classes is {classes!r:.300}: with one class, everything else is a class, too. Name "
            f'it: c.data.folder.classes = ("background", {str(classes[0])!r:.100}), c.model.num_classes = 2.'
        )
    require("classes", "2 to 255 different names, where '' marks a value to ignore", _are_classes)
    numbers = {len(classes), sum(map(bool, classes))}
    require(
        "palette",
        "() or an (r, g, b) of 0 to 255 for each class, those without a name included or not",
        lambda palette: not palette or any(tables.is_palette(palette, number) for number in numbers),
    )
    require(
        "label_values",
        f"() or, for each class, its value in label files, 0 to {MAX_VALUE}, or a tuple of several; no value twice",
        lambda values: not values or _are_values(values, len(classes)),
    )
    require("exif", "True or False", lambda value: isinstance(value, bool))
    require("split_seed", "an integer", lambda value: type(value) is int)
    require(
        "splits",
        "a dict of split: (images, labels), two folders or patterns with equally many * (one ** at most) under "
        "config.data.source, as in {'train': ('images/train', 'labels/train')}; a third element may be a list of "
        "names, a text file such as 'lists/train.txt', or the share of the pairs that the split takes, as in "
        "('images', 'labels', 0.9)",
        _are_splits,
    )


def _is_identifier(text: Any) -> bool:
    return isinstance(text, str) and bool(re.fullmatch("[A-Za-z0-9_-]+", text))


def _are_classes(classes: Sequence) -> bool:
    return (
        len(classes) <= 255
        and all(isinstance(name, str) for name in classes)
        and len({*classes} - {""}) == sum(map(bool, classes)) >= 2
    )


def _are_values(values: Sequence, num_classes: int) -> bool:
    flat = [v for value in values for v in (value if isinstance(value, tuple | list) else [value])]
    return (
        len(values) == num_classes
        and all(type(v) is int and 0 <= v <= MAX_VALUE for v in flat)
        and len(set(flat)) == len(flat)
        and all(value != () and value != [] for value in values)
    )


def _are_splits(splits: Mapping) -> bool:
    shares: dict[tuple, float] = {}
    for split, places in splits.items():
        if not (_is_identifier(split) and split != "all"):  # TFDS's name for all splits together
            return False
        if not (isinstance(places, tuple | list) and len(places) in (2, 3)):
            return False
        images, labels, *rest = places
        if not all(isinstance(place, str) and _is_pattern(place) for place in (images, labels)):
            return False
        if num_stars(images) != num_stars(labels):
            return False
        for extra in rest:
            if isinstance(extra, bool) or not isinstance(extra, str | float | int) or extra == "":
                return False
            if not isinstance(extra, str):
                shares[images, labels] = shares.get((images, labels), 0) + extra
                if not 0 < extra <= 1:
                    return False
    return bool(splits) and all(share < 1 + 1e-6 for share in shares.values())


def _is_pattern(place: str) -> bool:
    parts = place.split("/")
    return bool(place) and parts.count("**") <= 1 and all("**" not in part or part == "**" for part in parts)


def advice(by: str, found: label_values.Found, fields: Mapping[str, Any]) -> str:
    """The line of a config that accepts labels with the values or colours `found`."""
    classes = fields["classes"]
    if by == VALUES:
        return _value_advice(found, classes)
    total = sum(found.values())
    shown = sorted(found, key=found.__getitem__, reverse=True)[:MAX_COLORS]
    listed = ", ".join(f"{label_values.rgb(color)} {100 * found[color] / total:.2g} %" for color in shown)
    text = f"These labels hold {len(found)} colours: {listed}."
    rare = "Rare colours are often smoothed edges: export labels without anti-aliasing."
    known = [tuple(color) for color in fields["palette"]]
    if known:
        missing = [label_values.rgb(color) for color in shown if label_values.rgb(color) not in known]
        return (
            f"{text} config.data.folder.palette lacks {_tuple(missing[:MAX_MISSING])}"
            f"{' and more' if len(missing) > MAX_MISSING else ''}: add them, with a class '' for a colour to ignore. "
            f"{rare}"
        )
    example = [label_values.rgb(color) for color in shown[: max(2, len(classes))]]
    return (
        f"{text} If colours mean classes, write the colour of each class, in the order of config.data.folder.classes: "
        f"c.data.folder.palette = {_tuple(example)}, for instance. A class '' takes a colour to ignore. {rare}"
    )


def _value_advice(found: label_values.Found, classes: Sequence[str]) -> str:
    text = f"These labels hold the values {label_values.shares(found)}."
    values = sorted(found)
    if values[0] < 0 or values[-1] > MAX_VALUE:
        return f"{text} Values of classes must be from 0 to {MAX_VALUE}: export labels with such values."
    example = values if len(values) == len(classes) else [*range(len(classes) - 1), "..."]
    return (
        f"{text} If they mean other classes than 0, 1, ... in the order of config.data.folder.classes, write "
        f"c.data.folder.label_values = {_tuple(example)}: the value, or a tuple of several, of each class. A class '' "
        "takes values to ignore."
    )


def binary_advice(value: int, classes: Sequence[str]) -> str:
    """The line of a config for masks that hold `value` and 255."""
    rest = "" if len(classes) == 2 else f", and name two classes instead of {len(classes)}"
    return (
        f"If 255 is a class, write c.data.folder.label_values = {_tuple((value, 255))}{rest}; if it is to be ignored, "
        f"write c.data.folder.label_values = {_tuple(range(len(classes)))}."
    )


def _tuple(items: Any) -> str:
    return f"({', '.join(str(item) for item in items)})"
