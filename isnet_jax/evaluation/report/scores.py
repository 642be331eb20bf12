"""Data of the section on scores: the scores, what they are compared with, and what other protocols give."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isnet_jax.evaluation import protocols
from isnet_jax.evaluation.metrics import percent
from isnet_jax.evaluation.report.confusions import Confusion, frequent_confusions
from isnet_jax.evaluation.report.formatting import change_from
from isnet_jax.evaluation.results import BOUNDARY_CAUTION, Results, has_current_boundary

TERMS = {
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "mean_dice": "mean Dice",
    "mean_precision": "mean precision",
    "frequency_weighted_iou": "freq.-weighted IoU",
    "boundary": "boundary IoU",
}
PROTOCOL_SCORES = ("miou", "mean_accuracy")  # those that depend on the protocol


class Score(NamedTuple):
    """One score and its references, None without."""

    term: str
    share: float
    other: float | None
    published: float | None


class ClassScore(NamedTuple):
    """The IoU of one class."""

    name: str
    iou: float


class OtherEvaluation(NamedTuple):
    """The evaluation that changes refer to."""

    directory: Path
    setting: str
    checkpoint: Any
    step: int | None


class ProtocolRow(NamedTuple):
    """Protocols whose scores agree in all digits that are shown."""

    protocols: list[str]
    scores: list[tuple[float, float | None]]  # of PROTOCOL_SCORES: the evaluation's and the other's


class Scores(NamedTuple):
    """The section."""

    scores: list[Score]
    best: ClassScore | None
    worst: ClassScore | None
    confusion: Confusion | None  # the most frequent one
    other: OtherEvaluation | None
    caution: str  # on how boundary IoU was counted, or ""
    protocols: list[ProtocolRow]
    reasons: list[str]  # why protocols differ


def scores_section(evaluation: Results, other: Results | None) -> Scores:
    """The section on scores, as changes from those of `other` if given."""
    ours, theirs = _shares(evaluation), _shares(other) if other else None
    published = (evaluation.record.get("published") or {}).get("miou")
    references = {"miou": published / 100} if published else {}
    rows = [Score(term, ours[key], theirs[key] if theirs else None, references.get(key)) for key, term in TERMS.items()]
    best = worst = None
    iou = ours["iou"]
    if np.isfinite(iou).any():
        best, worst = (ClassScore(evaluation.names[k], iou[k]) for k in (np.nanargmax(iou), np.nanargmin(iou)))
    reasons = [protocols.difference(evaluation.confusion, "official", protocol) for protocol in protocols.PROTOCOLS]
    return Scores(
        scores=rows,
        best=best,
        worst=worst,
        confusion=next(iter(frequent_confusions(evaluation, 1)), None),
        other=_describe(other) if other else None,
        caution=BOUNDARY_CAUTION if any(x and not has_current_boundary(x.record) for x in (evaluation, other)) else "",
        protocols=_protocol_rows(evaluation, other),
        reasons=list(filter(None, reasons)),
    )


def describe_setting(setting: Mapping[str, Any]) -> str:
    """A test setting (scales, flip, windows) in a few words."""
    scales = setting.get("scales") or [1.0]
    text = "single scale" if list(scales) == [1.0] else f"scales {', '.join(f'{scale:g}' for scale in scales)}"
    text += " and horizontal flip" if setting.get("flip") else ""
    if setting.get("mode") == "slide" and setting.get("crop_size"):
        text += ", windows of " + " \N{MULTIPLICATION SIGN} ".join(map(str, setting["crop_size"]))
    return text


def _shares(evaluation: Results) -> dict[str, Any]:
    boundary = protocols.boundary_scores(evaluation.boundary.sum(0))["miou"]
    return protocols.scores(evaluation.confusion) | {"boundary": boundary}


def _describe(other: Results) -> OtherEvaluation:
    record = other.record
    return OtherEvaluation(
        other.directory, describe_setting(record["setting"]), record.get("checkpoint"), record.get("step")
    )


def _protocol_rows(evaluation: Results, other: Results | None) -> list[ProtocolRow]:
    """The scores under every protocol; protocols that agree share a row."""
    rows: dict[tuple, ProtocolRow] = {}
    for protocol in protocols.PROTOCOLS:
        ours = protocols.scores(evaluation.confusion, protocol)
        theirs = protocols.scores(other.confusion, protocol) if other else None
        pairs = [(ours[key], theirs[key] if theirs else None) for key in PROTOCOL_SCORES]
        shown = tuple((percent(a), None if b is None else change_from(a, b)) for a, b in pairs)
        rows.setdefault(shown, ProtocolRow([], pairs)).protocols.append(protocol)
    return list(rows.values())
