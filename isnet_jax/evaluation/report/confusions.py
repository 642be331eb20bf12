"""Data of the section on confusions: the matrix as a table or a picture, and the most frequent confusions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from isnet_jax.evaluation import metrics
from isnet_jax.evaluation.report import images
from isnet_jax.evaluation.report.formatting import ClassLabel, class_labels
from isnet_jax.evaluation.results import Results

MAX_TABLE_CLASSES = 24  # more are shown as a picture, without numbers
MOST_CONFUSED = 20  # classes of the picture that also get a table
MOST_FREQUENT = 15  # confusions in the list
MIN_PERCENT = 0.05  # smaller shares leave their cell of the table empty
PICTURE_MARGIN, PICTURE_SIDE = 46, 700  # SVG units; labels lie in the margin


class Confusion(NamedTuple):
    """Pixels of one class that were predicted as another."""

    ground_truth: ClassLabel
    prediction: ClassLabel
    share_of_class: float  # of the pixels of the ground-truth class
    share_of_pixels: float  # of all labelled pixels


class Cell(NamedTuple):
    """A cell of the table: the percentage of the row's pixels that were predicted as the column's class."""

    prediction: str
    percent: float
    shade: float  # 0 to 100
    styles: str  # classes of the style sheet


class Row(NamedTuple):
    """A row of the table: the pixels of one ground-truth class."""

    ground_truth: str
    cells: list[Cell | None]  # None: empty


class Table(NamedTuple):
    """Some classes of a confusion matrix, with numbers."""

    names: list[str]
    rows: list[Row]


class Picture(NamedTuple):
    """A whole confusion matrix without numbers."""

    uri: str
    labels: list[tuple[int, float]]  # numbers of some classes, and their positions along a side
    margin: int = PICTURE_MARGIN
    side: int = PICTURE_SIDE


class Confusions(NamedTuple):
    """The section."""

    num_classes: int
    picture: Picture | None  # if a table of all classes would be too large
    table: Table | None
    frequent: list[Confusion]


def confusions_section(evaluation: Results) -> Confusions | None:
    """The section on confusions; None if the evaluation has no labelled pixel."""
    matrix, names = evaluation.confusion, evaluation.names
    if not matrix.any():
        return None
    fits_table = len(names) <= MAX_TABLE_CLASSES
    classes = list(range(len(names))) if fits_table else most_confused_classes(matrix, MOST_CONFUSED)
    return Confusions(
        num_classes=len(names),
        picture=None if fits_table else _picture(matrix),
        table=_table(matrix, names, classes) if classes else None,
        frequent=frequent_confusions(evaluation, MOST_FREQUENT),
    )


def frequent_confusions(evaluation: Results, count: int) -> list[Confusion]:
    """Up to `count` confusions of an evaluation, the most frequent first."""
    matrix, labels = evaluation.confusion, class_labels(evaluation)
    class_pixels, pixels = matrix.sum(1), matrix.sum()
    return [
        Confusion(labels[t], labels[p], matrix[t, p] / class_pixels[t], matrix[t, p] / pixels)
        for t, p in metrics.most_frequent_confusions(matrix, count)
    ]


def most_confused_classes(matrix: np.ndarray, count: int) -> list[int]:
    """Up to `count` classes that occur in the most frequent confusions, in ascending order."""
    classes: list[int] = []
    for pair in metrics.most_frequent_confusions(matrix, matrix.size):
        classes += [k for k in pair if k not in classes]
        if len(classes) >= count:
            break
    return sorted(classes[:count])


def _table(matrix: np.ndarray, names: Sequence[str], classes: Sequence[int]) -> Table:
    """The table of the rows and columns `classes`."""
    percents = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    rows = [Row(names[t], [_cell(names[p], percents[t, p], t == p) for p in classes]) for t in classes]
    return Table([names[k] for k in classes], rows)


def _cell(prediction: str, percent: float, is_hit: bool) -> Cell | None:
    if percent < MIN_PERCENT:
        return None
    shade = percent if is_hit else 10 * percent**0.5  # the square root makes rare confusions visible
    styles = ("hit" if is_hit else "miss") + (" high" if shade >= 85 else " middle" if shade >= 60 else "")
    return Cell(prediction, percent, shade, styles)


def _picture(matrix: np.ndarray) -> Picture:
    size = len(matrix)
    labels = [(k, round(PICTURE_MARGIN + (k + 0.5) * PICTURE_SIDE / size, 1)) for k in range(0, size, _step(size))]
    return Picture(images.confusion_map(matrix), labels)


def _step(size: int) -> int:
    """How many rows of the picture share a label."""
    return 10 if size < 100 else 20
