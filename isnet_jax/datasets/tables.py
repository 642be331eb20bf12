"""Compact notation for long tables of names and colours."""

from collections.abc import Iterable, Sequence
from typing import Any

Color = tuple[int, int, int]  # r, g, b of 0..255


def names(text: str) -> tuple[str, ...]:
    """The names in a comma-separated text of any number of lines."""
    return tuple(name.strip() for name in text.replace("\n", " ").strip(" ,").split(","))


def colors(text: str) -> tuple[Color, ...]:
    """The colours in a text of hexadecimal rrggbb triplets, separated by white space."""
    return tuple((r, g, b) for r, g, b in map(bytes.fromhex, text.split()))


def is_palette(palette: Any, num_classes: int) -> bool:
    """Whether `palette` is a sequence of `num_classes` colours (r, g, b), 0 to 255."""
    return (
        isinstance(palette, Sequence)
        and len(palette) == num_classes
        and all(
            isinstance(color, (tuple, list)) and len(color) == 3 and all(x in range(256) for x in color)
            for color in palette
        )
    )


def colors_of_named(classes: Sequence[str], palette: Sequence[Color]) -> tuple[Color, ...]:
    """The colours of the classes that have a name, from those of all or of these; () if they are of neither."""
    num_named = sum(map(bool, classes))
    if is_palette(palette, len(classes)):
        palette = [color for name, color in zip(classes, palette) if name]
    return tuple((r, g, b) for r, g, b in palette) if is_palette(palette, num_named) else ()


def distinct_colors(indices: Iterable[int]) -> tuple[Color, ...]:
    """The colours at these indices of Pascal VOC's colour map, all of them distinct."""
    return tuple((_voc_channel(index), _voc_channel(index >> 1), _voc_channel(index >> 2)) for index in indices)


def _voc_channel(index: int) -> int:
    """Every third bit of the index, the lowest as the most significant bit of the channel."""
    return sum((index >> 3 * bit & 1) << 7 - bit for bit in range(8))
