"""Scores, differences, numbers and classes as the report shows them."""

import math
import string
from collections.abc import Sequence
from typing import NamedTuple

from isnet_jax.evaluation.results import Results

SIGNS = {"up": "+", "down": "\N{MINUS SIGN}", "same": "\N{PLUS-MINUS SIGN}"}


class Change(NamedTuple):
    """A signed difference of two scores, in percentage points."""

    direction: str  # "up", "down" or "same", which are classes of the style sheet
    text: str


class ClassLabel(NamedTuple):
    """A class of the data set."""

    number: int
    name: str
    color: str  # in CSS


def change_from(share: float, reference: float) -> Change | None:
    """The change from a reference share to `share`, None where either is NaN."""
    if not math.isfinite(share - reference):
        return None
    points = round(100 * (share - reference), 2)
    direction = "up" if points > 0 else "down" if points < 0 else "same"
    return Change(direction, f"{SIGNS[direction]}{abs(points):.2f}")


def grouped(number: int) -> str:
    """An integer with its digits in groups of three."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def class_labels(evaluation: Results) -> list[ClassLabel]:
    """The K classes of an evaluation."""
    colors = ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in evaluation.record["palette"]]
    return [ClassLabel(k, name, color) for k, (name, color) in enumerate(zip(evaluation.names, colors))]


def labelled(others: Sequence[Results]) -> dict[str, Results]:
    """Up to 25 other evaluations by the letters that the report gives them, from B on; A is its own."""
    return dict(zip(string.ascii_uppercase[1:], others))
