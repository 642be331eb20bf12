"""From what label files hold, values or colours, to train ids."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from isnet_jax.datasets.image_files import row_blocks
from isnet_jax.datasets.label_files import LabelImage
from isnet_jax.datasets.problems import FileProblem
from isnet_jax.labels import IGNORED

MAX_FOUND, MAX_KEPT, MAX_RANGES = 1000, 40, 20  # values or colours that are counted, kept, in a message
VALUES, COLORS = "values", "colors"  # what the labels of a data set are read by

Found = dict[int, int]  # pixels of each value, or of each colour 0xrrggbb, in a label


class LabelProblem(FileProblem):
    """A label that holds something that is no class, and all that it holds."""

    def __init__(self, path: Path, text: str, kind: str, found: Found, by: str):
        super().__init__(path, text, kind)
        most = sorted(found, key=found.__getitem__, reverse=True)[:MAX_KEPT]
        self.found, self.by = {value: found[value] for value in most}, by  # VALUES or COLORS


def values_to_ids(values: np.ndarray, table: np.ndarray, path: Path) -> np.ndarray:
    """Maps the values of a label file, integers (H, W), to train ids: uint8 (H, W).

    `table`, int (n,), holds at each value its train id, 255 if ignored, -1 if illegal; values from n on are illegal.
    Raises LabelProblem for illegal values, naming them and `path`.
    """
    table = np.asarray(table, np.int16)
    ids = np.empty(values.shape, np.uint8)
    illegal_values, illegal_pixels, first = np.zeros(0, values.dtype), 0, (0, 0)
    for rows in row_blocks(values):
        block = values[rows]
        in_table = (block >= 0) & (block < len(table))
        block_ids = table[np.where(in_table, block, 0)]
        illegal = ~in_table | (block_ids < 0)
        if illegal.any():
            illegal_values = np.union1d(illegal_values, block[illegal])[:MAX_FOUND]
            if not illegal_pixels:
                row, column = np.argwhere(illegal)[0]
                first = rows.start + row, column
            illegal_pixels += illegal.sum()
        ids[rows] = block_ids
    if illegal_pixels:
        text = (
            f"holds values that are not labels: {_ranges(illegal_values)}, in {illegal_pixels} "
            f"pixel{'s' if illegal_pixels > 1 else ''}, the first at row {first[0]}, column {first[1]}; the legal "
            f"values are {_ranges(np.flatnonzero(table >= 0))}."
        )
        raise LabelProblem(path, text, "illegal values", count(values), VALUES)
    return ids


def colors_to_ids(label: LabelImage, ids_of_colors: Mapping[int, int], path: Path) -> np.ndarray:
    """Maps the colours of a label to train ids: uint8 (H, W). `ids_of_colors`: {0xrrggbb: train id}.

    Raises LabelProblem for other colours, naming them, their share and `path`.
    """
    if label.values is not None and label.palette is None:
        grey = np.arange(label.white + 1) * 255 // label.white * 0x010101
        return _indices_to_ids(label.values, grey, ids_of_colors, path)
    if label.values is not None and label.palette is not None:
        return _indices_to_ids(label.values, label.palette, ids_of_colors, path)
    assert label.colors is not None
    ids = np.empty(label.shape, np.uint8)
    for rows in row_blocks(label.colors):
        colors, inverse = np.unique(label.colors[rows], return_inverse=True)
        block_ids = np.array([ids_of_colors.get(color, -1) for color in colors.tolist()])
        if (block_ids < 0).any():
            raise _color_problem(count(label.colors), ids_of_colors, path)
        ids[rows] = block_ids[inverse].reshape(label.colors[rows].shape)
    return ids


def color_image_problem(label: LabelImage, path: Path) -> LabelProblem:
    """What is wrong with a label (H, W) whose channels differ, if labels are read by their values."""
    assert label.colors is not None
    found = count(label.colors)
    shown = ", ".join(str(rgb(color)) for color in sorted(found, key=found.__getitem__, reverse=True)[:3])
    number = f"{len(found)} colour{'s' if len(found) > 1 else ''}"
    text = f"is a colour image with {number}: {shown}{', ...' * (len(found) > 3)}."
    return LabelProblem(path, text, "colour images", found, COLORS)


def _indices_to_ids(
    indices: np.ndarray, palette: np.ndarray, ids_of_colors: Mapping[int, int], path: Path
) -> np.ndarray:
    table = np.array([ids_of_colors.get(color, -1) for color in palette.tolist()])
    used = count(indices)
    beyond = [index for index in used if not 0 <= index < len(table)]
    if beyond:
        raise FileProblem(path, f"holds the value {beyond[0]}, which has no colour.", "values without a colour")
    if any(table[index] < 0 for index in used):
        colors: Found = {}
        for index, pixels in used.items():
            color = int(palette[index])
            colors[color] = colors.get(color, 0) + pixels
        raise _color_problem(colors, ids_of_colors, path)
    return table.astype(np.uint8)[indices]


def _color_problem(found: Found, ids_of_colors: Mapping[int, int], path: Path) -> LabelProblem:
    others = {color: pixels for color, pixels in found.items() if color not in ids_of_colors}
    shown = ", ".join(str(rgb(color)) for color in sorted(others, key=others.__getitem__, reverse=True)[:3])
    share = 100 * sum(others.values()) / sum(found.values())
    text = (
        f"holds {len(others)} colour{'s' if len(others) > 1 else ''} that config.data.folder.palette lacks, in "
        f"{share:.2g} % of its pixels: {shown}{', ...' if len(others) > 3 else ''}."
    )
    return LabelProblem(path, text, "colours that the palette lacks", found, COLORS)


def legal_ids(label: LabelImage, by: str, table: np.ndarray, ids_of_colors: Mapping[int, int]) -> np.ndarray | None:
    """The train ids of a label read by VALUES or COLORS, or None if that is impossible."""
    try:
        if by == COLORS:
            return colors_to_ids(label, ids_of_colors, Path())
        return None if label.values is None else values_to_ids(label.values, table, Path())
    except FileProblem:
        return None


def evidence(label: LabelImage, table: np.ndarray, ids_of_colors: Mapping[int, int]) -> str | None:
    """What a label can only be read by, VALUES or COLORS; None if by both, or by neither.

    A label whose colours are all known counts as read by them if its values would mean other classes, and it is a
    palette image, has fewer than 8 bits, or its white would be ignored.
    """
    values, colors = (legal_ids(label, by, table, ids_of_colors) for by in (VALUES, COLORS))
    if colors is None:
        return None if values is None else VALUES
    if values is None:
        return COLORS
    says_color = label.palette is not None or label.white < 255 or bool((values[colors != IGNORED] == IGNORED).any())
    return COLORS if says_color and not np.array_equal(values, colors) else None


def count(array: np.ndarray) -> Found:
    """The pixels of each value or colour in an array (H, W), of MAX_FOUND at most."""
    if array.dtype == np.uint8:
        counts = np.sum([np.bincount(array[rows].ravel(), minlength=256) for rows in row_blocks(array)], axis=0)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    found: Found = {}
    for rows in row_blocks(array):
        for value, pixels in zip(*(part.tolist() for part in np.unique(array[rows], return_counts=True))):
            if value in found or len(found) < MAX_FOUND:
                found[value] = found.get(value, 0) + pixels
    return found


def used_palette(label: LabelImage) -> tuple[tuple[int, int], ...]:
    """(colour, index) of the indices that occur in a palette image, without colours that its palette holds twice."""
    assert label.values is not None and label.palette is not None
    colors, counts = np.unique(label.palette, return_counts=True)
    unique = set(colors[counts == 1].tolist())
    used = [index for index in count(label.values) if 0 <= index < len(label.palette)]
    return tuple((int(label.palette[i]), i) for i in sorted(used) if int(label.palette[i]) in unique)


def rgb(color: int) -> tuple[int, int, int]:
    """(r, g, b) of a colour 0xrrggbb."""
    return color >> 16, color >> 8 & 255, color & 255


def code(color: Sequence[int]) -> int:
    """The colour 0xrrggbb of (r, g, b)."""
    red, green, blue = color
    return red << 16 | green << 8 | blue


def shares(found: Found) -> str:
    """Values with their shares: "0 (91 %), 255 (9 %)"."""
    total = sum(found.values())
    shown = sorted(found)[:MAX_RANGES]
    text = ", ".join(f"{value} ({100 * found[value] / total:.2g} %)" for value in shown)
    return text + ", ..." * (len(found) > len(shown))


def _ranges(values: np.ndarray) -> str:
    """Sorted integers as ranges: "0..2, 5" for 0, 1, 2, 5."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    text = ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs[:MAX_RANGES])
    return text + ", ..." * (len(runs) > MAX_RANGES)
