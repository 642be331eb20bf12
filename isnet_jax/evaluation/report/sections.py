"""The head and the sections of the report as plain data, which the templates lay out."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isnet_jax.evaluation import protocols
from isnet_jax.evaluation.report import charts
from isnet_jax.evaluation.report.classes import classes_section, worst_of_classes
from isnet_jax.evaluation.report.confusions import confusions_section
from isnet_jax.evaluation.report.formatting import grouped
from isnet_jax.evaluation.report.gallery import Gallery, gallery, image_scores
from isnet_jax.evaluation.report.scores import TERMS, describe_setting, scores_section
from isnet_jax.evaluation.results import Results, read_metrics
from isnet_jax.models.isnet import describe
from isnet_jax.runtime.console import duration

LOSSES = {"loss/total": "total", "loss/stage2": "stage 2", "loss/stage1": "stage 1", "loss/auxiliary": "auxiliary"}
MAX_DRAWABLE = 1e30  # larger values and non-finite ones are left out of charts
MAX_WEIGHTS = 3  # kinds of weights, such as `ema`, whose evaluations are drawn


class Header(NamedTuple):
    """The head of the page."""

    title: str
    miou: float
    details: list[str]


class Section(NamedTuple):
    """A section of the page; templates/ID.html lays out its data."""

    id: str
    heading: str
    data: Any


class Images(NamedTuple):
    """The section on images."""

    median: float  # of the images' mIoU
    tenth_percentile: float
    histogram: charts.Histogram
    gallery: Gallery


class Run(NamedTuple):
    """The section on the run of the evaluation."""

    facts: list[tuple[str, Any]]
    listings: list[tuple[str, str]]  # heading and text


def header(evaluation: Results) -> Header:
    """The head of the page."""
    record = evaluation.record
    step = record.get("step")
    details = [
        describe(record["config"].get("model") or {}),
        f"{len(evaluation.names)} classes",
        f"{grouped(len(evaluation.images))} images",
        describe_setting(record["setting"]),
        f"step {grouped(step)}" if step else "",
    ]
    miou = protocols.scores(evaluation.confusion)["miou"]
    return Header(f"{record['dataset']} {record['split']}", miou, list(filter(None, details)))


def sections(evaluation: Results, others: Mapping[str, Results]) -> list[Section]:
    """The sections in their order; others: evaluations of the same images and classes to compare with, by labels."""
    charts_of_training = training_section(evaluation.record)
    images = images_section(evaluation, others)
    pictured = {image.number for image in images.gallery.images} if images else set()
    return [
        Section("scores", "Scores", scores_section(evaluation, others)),
        Section("classes", "Classes", classes_section(evaluation, others, pictured)),
        Section("confusions", "Confusions", confusions_section(evaluation)),
        Section("images", "Images", images),
        *([Section("training", "Training", charts_of_training)] if charts_of_training else []),
        Section("run", "Run", run_section(evaluation.record)),
    ]


def images_section(evaluation: Results, others: Mapping[str, Results]) -> Images | None:
    """The images; None if none has a labelled pixel."""
    scores = {label: image_scores(x.counts) for label, x in {"": evaluation, **others}.items()}
    known = scores[""][np.isfinite(scores[""])]
    if not known.size:
        return None
    return Images(
        median=np.median(known),
        tenth_percentile=np.percentile(known, 10),
        histogram=charts.histogram("Images by their mIoU", known, "mIoU, %", "images"),
        gallery=gallery(evaluation, others, scores, worst_of_classes(evaluation)),
    )


def training_section(record: Mapping[str, Any]) -> list[charts.LineChart]:
    """Curves of the training run that the checkpoint belongs to; empty for other checkpoints."""
    try:
        rows = read_metrics(Path(str(record.get("checkpoint"))) / "metrics.jsonl")
    except (OSError, ValueError):  # a .pth file, or a converted one; or no path at all
        return []
    scores = (key.removesuffix("/miou") for row in rows for key in row if key.endswith("/miou"))
    weights = list(dict.fromkeys(scores))[:MAX_WEIGHTS]
    evaluations = {
        f"{kind}/{name}": TERMS[name] + (f", {kind}" if len(weights) > 1 else "")
        for kind in weights
        for name in ("miou", "pixel_accuracy")
    }
    series = (
        ("Losses", _series(rows, LOSSES), "loss"),
        ("Evaluations", _series(rows, evaluations, 100.0), "%"),
    )
    return [charts.line_chart(title, curves, "step", unit) for title, curves, unit in series if curves]


def run_section(record: Mapping[str, Any]) -> Run:
    """Where and how the evaluation ran, with its settings in full."""
    run, published = record.get("run") or {}, record.get("published") or {}
    seconds, rate, padding = (run.get(key) for key in ("seconds", "images_per_second", "padding_overhead"))
    facts = [
        ("checkpoint", record.get("checkpoint")),
        ("devices", run.get("devices") and f"{run.get('num_devices', '')} {run['devices']}"),
        ("processes", run.get("processes")),
        ("activations", run.get("dtype")),
        ("compiled programs", run.get("programs")),
        ("time", seconds and duration(seconds)),
        ("images per second", rate and f"{rate:.2f}"),
        ("padding", padding is not None and f"{100 * padding:.1f} % more pixels"),
        ("date", run.get("date")),
        *(run.get("versions") or {}).items(),
        ("published score", published.get("source")),
    ]
    listings = [
        ("Test setting", "\n".join(_flatten(record["setting"], ""))),
        ("Config", "\n".join(_flatten(record["config"], "config."))),
    ]
    return Run([(term, value) for term, value in facts if value], listings)


def _series(rows: list[dict], labels: Mapping[str, str], factor: float = 1.0) -> dict[str, list[charts.Point]]:
    """{label: [(step, factor * value), ...]} of the metrics {key: label} that have drawable values."""

    def is_drawable(value: Any) -> bool:
        return isinstance(value, int | float) and abs(value) < MAX_DRAWABLE  # False for NaN

    series = {
        label: [(float(row["step"]), factor * row[key]) for row in rows if is_drawable(row.get(key))]
        for key, label in labels.items()
    }
    return {label: points for label, points in series.items() if points}


def _flatten(tree: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """`FIELD = VALUE` for every leaf of nested dicts."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name} = {json.dumps(value, ensure_ascii=False)}"
