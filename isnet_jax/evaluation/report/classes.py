"""Data of the section on classes: the table of all, and for each a sheet with its confusions and its worst images."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from isnet_jax.evaluation import metrics, protocols
from isnet_jax.evaluation.metrics import OTHER_NAMES
from isnet_jax.evaluation.report.confusions import MAX_TABLE_CLASSES
from isnet_jax.evaluation.report.formatting import ClassLabel, class_labels
from isnet_jax.evaluation.results import Results

MAX_ROWS = 30  # a table with more classes is split in two
MAX_CONFUSIONS, MAX_WORST = 4, 3  # of a sheet: confusions in either direction, images


class ClassRow(NamedTuple):
    """One class in the table; its scores are NaN where undefined."""

    label: ClassLabel
    iou: float
    other_ious: list[float]
    dice: float
    precision: float
    recall: float
    boundary: float
    share: float  # of the labelled pixels
    bar: float  # length, in percent
    marks: list[float]  # positions of the other evaluations' IoU, in percent


class Partner(NamedTuple):
    """A class that another one is confused with."""

    label: ClassLabel
    share: float


class WorstImage(NamedTuple):
    """An image with many wrong pixels of a class."""

    number: int  # in the evaluation
    name: str
    iou: float  # of the class in the image
    share: float  # of all wrong pixels of the class


class ClassSheet(NamedTuple):
    """What is wrong with one class."""

    row: ClassRow
    predicted_as: list[Partner]  # with the share of the class's pixels
    predicted_for: list[Partner]  # with the share of the pixels predicted as the class
    worst: list[WorstImage]


class Classes(NamedTuple):
    """The section."""

    tables: list[list[ClassRow]]
    sheets: list[ClassSheet]
    others: list[str]  # labels of the other evaluations
    pictured: set[int]  # images that the gallery shows
    num_classes: int
    num_absent: int
    is_numbered: bool
    other_names: str  # of the scores


def classes_section(evaluation: Results, others: Mapping[str, Results], pictured: set[int]) -> Classes:
    """The classes by IoU, the best first; pictured: the images that the gallery shows."""
    rows = _rows(evaluation, others)
    middle = -(-len(rows) // 2) if len(rows) > MAX_ROWS else len(rows)
    present = [row for row in rows if not np.isnan(row.iou)]
    return Classes(
        tables=[half for half in (rows[:middle], rows[middle:]) if half],
        sheets=[_sheet(evaluation, row) for row in present],
        others=list(others),
        pictured=pictured,
        num_classes=len(rows),
        num_absent=len(rows) - len(present),
        is_numbered=len(rows) > MAX_TABLE_CLASSES,
        other_names=OTHER_NAMES,
    )


def worst_images(counts: np.ndarray, k: int) -> list[int]:
    """Up to MAX_WORST images with the most wrong pixels of class k, the worst first; counts (N, 3, K)."""
    wrong = _wrong(counts, k)
    order = np.argsort(-wrong, kind="stable")[:MAX_WORST]
    return [int(i) for i in order if wrong[i]]


def worst_of_classes(evaluation: Results) -> list[int]:
    """The `worst_images` of all classes, each once: the worst of every class, by ascending IoU, the second ones, ..."""
    iou = protocols.scores(evaluation.confusion)["iou"]
    worst = [worst_images(evaluation.counts, k) for k in np.argsort(iou, kind="stable")]
    return list(dict.fromkeys(x[rank] for rank in range(MAX_WORST) for x in worst if rank < len(x)))


def _rows(evaluation: Results, others: Mapping[str, Results]) -> list[ClassRow]:
    scores = protocols.scores(evaluation.confusion)
    iou = scores["iou"]
    boundary = protocols.boundary_scores(evaluation.boundary.sum(0))["iou"]
    other_ious = [protocols.scores(other.confusion)["iou"] for other in others.values()]
    labels = class_labels(evaluation)
    return [
        ClassRow(
            label=labels[k],
            iou=iou[k],
            other_ious=[x[k] for x in other_ious],
            dice=scores["dice"][k],
            precision=scores["precision"][k],
            recall=scores["recall"][k],
            boundary=boundary[k],
            share=scores["share"][k],
            bar=100 * np.nan_to_num(iou[k]),
            marks=[100 * x[k] for x in other_ious if not np.isnan(x[k])],
        )
        for k in np.argsort(-iou, kind="stable")  # NaN is last
    ]


def _sheet(evaluation: Results, row: ClassRow) -> ClassSheet:
    k, labels, counts = row.label.number, class_labels(evaluation), evaluation.counts
    iou, wrong = metrics.iou(counts[:, :, k : k + 1])[:, 0], _wrong(counts, k)
    return ClassSheet(
        row=row,
        predicted_as=_partners(evaluation.confusion[k], k, labels),
        predicted_for=_partners(evaluation.confusion[:, k], k, labels),
        worst=[
            WorstImage(i, str(evaluation.images[i]), iou[i], wrong[i] / wrong.sum()) for i in worst_images(counts, k)
        ],
    )


def _partners(pixels: np.ndarray, k: int, labels: Sequence[ClassLabel]) -> list[Partner]:
    """The classes other than k with the most `pixels` (K,), and their shares of all."""
    order = [j for j in np.argsort(-pixels, kind="stable") if j != k and pixels[j]]
    return [Partner(labels[j], pixels[j] / pixels.sum()) for j in order[:MAX_CONFUSIONS]]


def _wrong(counts: np.ndarray, k: int) -> np.ndarray:
    """Pixels (N,) of each image that are of class k in either ground truth or prediction."""
    hits, predicted, ground_truth = counts[:, :, k].T
    return predicted + ground_truth - 2 * hits
