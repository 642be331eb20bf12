"""Data of the section on scores: the scores, what they are compared with, and what other protocols give."""

from collections.abc import Mapping, Sequence
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
    """One score and its references."""

    term: str
    share: float
    others: list[tuple[str, float]]  # label and share of the other evaluations
    published: float | None  # None without


class ClassScore(NamedTuple):
    """The IoU of one class."""

    name: str
    iou: float


class OtherEvaluation(NamedTuple):
    """An evaluation that changes refer to."""

    label: str
    directory: Path
    setting: str
    checkpoint: Any
    step: int | None


class ProtocolRow(NamedTuple):
    """Protocols whose scores agree in all digits that are shown."""

    protocols: list[str]
    scores: list[tuple[float, list[float]]]  # of PROTOCOL_SCORES: the evaluation's and the others'


class Scores(NamedTuple):
    """The section."""

    scores: list[Score]
    best: ClassScore | None
    worst: ClassScore | None
    confusion: Confusion | None  # the most frequent one
    others: list[OtherEvaluation]
    caution: str  # on how boundary IoU was counted, or ""
    protocols: list[ProtocolRow]
    reasons: list[str]  # why protocols differ


def scores_section(evaluation: Results, others: Mapping[str, Results]) -> Scores:
    """The section on scores, as changes from those of the others, which have labels."""
    ours, theirs = _shares(evaluation), {label: _shares(other) for label, other in others.items()}
    published = (evaluation.record.get("published") or {}).get("miou")
    references = {"miou": published / 100} if published else {}
    rows = [
        Score(term, ours[key], [(label, shares[key]) for label, shares in theirs.items()], references.get(key))
        for key, term in TERMS.items()
    ]
    best = worst = None
    iou = ours["iou"]
    if np.isfinite(iou).any():
        best, worst = (ClassScore(evaluation.names[k], iou[k]) for k in (np.nanargmax(iou), np.nanargmin(iou)))
    reasons = [protocols.difference(evaluation.confusion, "official", protocol) for protocol in protocols.PROTOCOLS]
    is_outdated = any(not has_current_boundary(x.record) for x in (evaluation, *others.values()))
    return Scores(
        scores=rows,
        best=best,
        worst=worst,
        confusion=next(iter(frequent_confusions(evaluation, 1)), None),
        others=[_describe(label, other) for label, other in others.items()],
        caution=BOUNDARY_CAUTION if is_outdated else "",
        protocols=_protocol_rows(evaluation, list(others.values())),
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


def _describe(label: str, other: Results) -> OtherEvaluation:
    record = other.record
    return OtherEvaluation(
        label, other.directory, describe_setting(record["setting"]), record.get("checkpoint"), record.get("step")
    )


def _protocol_rows(evaluation: Results, others: Sequence[Results]) -> list[ProtocolRow]:
    """The scores under every protocol; protocols that agree share a row."""
    rows: dict[tuple, ProtocolRow] = {}
    for protocol in protocols.PROTOCOLS:
        ours = protocols.scores(evaluation.confusion, protocol)
        theirs = [protocols.scores(other.confusion, protocol) for other in others]
        scores = [(ours[key], [shares[key] for shares in theirs]) for key in PROTOCOL_SCORES]
        shown = tuple((percent(share), *(change_from(share, x) for x in references)) for share, references in scores)
        rows.setdefault(shown, ProtocolRow([], scores)).protocols.append(protocol)
    return list(rows.values())
