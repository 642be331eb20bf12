"""Compares two evaluations of the same images, or one evaluation with the published result."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tqdm
from PIL import Image

from isnet_jax.errors import UserError
from isnet_jax.evaluation import bootstrap, metrics, pictures, protocols, published
from isnet_jax.evaluation.metrics import CLASS_SCORES, NOTHING_LABELLED, OTHER_NAMES, TERMS, percent
from isnet_jax.evaluation.results import BOUNDARY_CAUTION, Results, align, find, has_current_boundary, load
from isnet_jax.models import isnet
from isnet_jax.runtime.console import aligned, say
from isnet_jax.runtime.files import atomic_write_text

MOST_DIFFERENT, DISAGREEMENTS = 10, 10  # listed
PICTURES, PICTURE_WIDTH = 4, 320


class Scored(NamedTuple):
    """An evaluation, its official scores, and bootstrap samples of them."""

    evaluation: Results
    scores: dict[str, Any]  # protocols.scores
    boundary: dict[str, Any]  # protocols.boundary_scores
    iou_samples: np.ndarray  # (repeats, K)
    boundary_samples: np.ndarray  # (repeats, K)
    known: published.Published | None  # published for the same network, split and test setting

    @property
    def miou_interval(self) -> np.ndarray:
        return bootstrap.interval(metrics.mean(self.iou_samples))

    @property
    def class_intervals(self) -> np.ndarray:
        """(K, 2), of the IoU."""
        return bootstrap.interval(self.iou_samples).T


class Agreement(NamedTuple):
    """How much the predictions of two evaluations, A and B, agree, pixel by pixel."""

    matrix: np.ndarray  # (K, K) int64 pixel counts: rows are A's classes, columns are B's
    share: float  # of equal pixels
    equal: np.ndarray  # (N,): the share of equal pixels in each image
    iou: np.ndarray  # (K,): between A's and B's pixels of a class; NaN if there are none

    def most_different(self) -> np.ndarray:
        """Indices of the images that are not equal, the most different first."""
        ranked = np.argsort(self.equal, kind="stable")
        return ranked[self.equal[ranked] < 1]

    def disagreements(self, names: Sequence[str]) -> list[tuple[str, str, float]]:
        """(A's class, B's class, share of all pixels) of the largest disagreements, the most frequent first."""
        return [
            (names[i], names[j], self.matrix[i, j] / self.matrix.sum())
            for i, j in metrics.most_frequent_confusions(self.matrix, DISAGREEMENTS)
        ]


def compare_directories(directories: Sequence[str], output: str | None) -> None:
    """`compare` for two directories, `describe` for one; in each, the evaluation is searched as `find` does.

    output: a path for the numbers as JSON; the picture gets the same path with the suffix .png.
    """
    path = _checked_output(output)
    found = [find(directory) for directory in directories]
    summary, picture = compare(*found) if len(found) == 2 else (describe(*found), None)
    if path:
        atomic_write_text(path, json.dumps(jsonable(summary), indent=1) + "\n")
        say(f"\n{path}")
        if picture:
            picture.save(path.with_suffix(".png"))
            say(f"images that differ most: {path.with_suffix('.png')}")


def _checked_output(output: str | None) -> Path | None:
    """The path of --output; raises UserError if it cannot be written, before any work is done."""
    if output is None:
        return None
    path = Path(output)
    if path.suffix != ".json":
        raise UserError(f"--output is {output}; it must be a file named *.json.")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(
            f"--output={output} cannot be written: {path.parent} must be a writable directory, and {path} must not be "
            "a directory."
        )
    return path


def score(evaluation: Results) -> Scored:
    """The official scores of an evaluation, their bootstrap samples, and the published result."""
    facts = evaluation.record
    return Scored(
        evaluation,
        protocols.scores(evaluation.confusion),
        protocols.boundary_scores(evaluation.boundary.sum(0)),
        metrics.iou(bootstrap.resample(evaluation.counts)),
        metrics.iou(bootstrap.resample(evaluation.boundary)),
        published.find(facts["dataset"], _model(evaluation), facts["split"], facts["setting"]),
    )


def describe(directory: str | Path) -> dict[str, Any]:
    """Prints the scores of an evaluation beside the published result; returns the same numbers, for `jsonable`."""
    evaluation = load(directory)
    scored = score(evaluation)
    table, cautions = protocols.format_table(evaluation.confusion), _cautions(evaluation)
    say("\n".join([*_heading("", scored), "", _class_table(scored), *cautions, "", table]))
    if evaluation.record["dataset"] == "cityscapes":
        categories = protocols.scores(protocols.merge(evaluation.confusion, protocols.CITYSCAPES_CATEGORIES.values()))
        each = ", ".join(f"{name} {percent(x)}" for name, x in zip(protocols.CITYSCAPES_CATEGORIES, categories["iou"]))
        say(f"categories: mIoU {percent(categories['miou'], unit=' %')} ({each})")
    scores, boundary, intervals = scored.scores, scored.boundary, scored.class_intervals
    classes = {
        name: {
            "interval": 100 * intervals[i],
            **{name: 100 * scores[name][i] for name in (*CLASS_SCORES, "f1", "accuracy", "share")},
            "boundary_iou": 100 * boundary["iou"][i],
        }
        for i, name in enumerate(evaluation.names)
    }
    return _summary(scored) | {"classes": classes, "cautions": cautions}


def _class_table(scored: Scored) -> str:
    scores, boundary, intervals = scored.scores, scored.boundary, scored.class_intervals
    others = "dice", "precision", "recall"
    titles = [f"{TERMS[key]} %" for key in (*others, "share")]
    rows = [("class", "IoU %", "95 % interval", *titles, "boundary IoU %")]
    for i, name in enumerate(scored.evaluation.names):
        cells = [percent(scores[key][i]) for key in (*others, "share")]
        rows.append((name, percent(scores["iou"][i]), _range(intervals[i]), *cells, percent(boundary["iou"][i])))
    means = [percent(scores[CLASS_SCORES[key]]) for key in others]
    rows.append(("mean", percent(scores["miou"]), _range(scored.miou_interval), *means, "", percent(boundary["miou"])))
    return f"{aligned(rows)}\n{OTHER_NAMES}"


def _cautions(a: Results, b: Results | None = None) -> list[str]:
    """Sentences on what not to rely on, for an evaluation or for two of the same images."""
    if not a.confusion.any():
        return [NOTHING_LABELLED]
    cautions = bootstrap.cautions(a.counts[:, 2], a.names)
    old = [str(x.directory) for x in (a, b) if x and not has_current_boundary(x.record)]
    return cautions + ([f"caution: {' and '.join(old)}: {BOUNDARY_CAUTION}"] if old else [])


def compare(directory_a: str | Path, directory_b: str | Path) -> tuple[dict[str, Any], Image.Image | None]:
    """Prints two evaluations side by side.

    Returns the same numbers in percent, for `jsonable`, and a picture of the images that differ most. Raises UserError
    unless both evaluations are of the same data set, split, classes, images and labels.
    """
    a = load(directory_a)
    b = align(a, load(directory_b))
    agree = agreement(a, b) if a.has_predictions and b.has_predictions else None
    class_agreement = np.full(len(a.names), np.nan) if agree is None else agree.iou
    scored_a, scored_b = score(a), score(b)
    intervals = {
        "classes": bootstrap.interval(scored_b.iou_samples - scored_a.iou_samples).T,  # (K, 2)
        "miou": bootstrap.interval(metrics.mean(scored_b.iou_samples) - metrics.mean(scored_a.iou_samples)),
        "boundary": bootstrap.interval(
            metrics.mean(scored_b.boundary_samples) - metrics.mean(scored_a.boundary_samples)
        ),
    }
    table = _difference_table(scored_a, scored_b, intervals, class_agreement)
    cautions = _cautions(a, b)
    say("\n".join([*_heading("A  ", scored_a), *_heading("B  ", scored_b), "", table, *cautions]))
    summary = _difference_summary(scored_a, scored_b, intervals, class_agreement) | {"cautions": cautions}
    if agree is None:
        say("\nOne of them has no predictions/, so pixels are not compared.")
        return summary, None
    ranked = agree.most_different()
    say(_agreement_text(agree, a, ranked))
    summary["agreement"] = {
        "equal": 100 * agree.share,
        "disagreements": [{"a": x, "b": y, "share": 100 * share} for x, y, share in agree.disagreements(a.names)],
        "most_different_images": [
            {"name": a.images[i], "differing": 100 * (1 - agree.equal[i])} for i in ranked[:MOST_DIFFERENT]
        ],
    }
    return summary, _sheet(a, b, ranked[:PICTURES]) if ranked.size else None


def _difference_table(a: Scored, b: Scored, intervals: dict[str, np.ndarray], class_agreement: np.ndarray) -> str:
    def row(name, of_a, of_b, interval, agree):
        excludes_zero = "*" if interval[0] > 0 or interval[1] < 0 else " "
        difference = percent(of_b - of_a, "+"), _range(interval, "+") + excludes_zero
        return name, percent(of_a), percent(of_b), *difference, percent(agree)

    iou_a, iou_b, mean_agreement = a.scores["iou"], b.scores["iou"], metrics.mean(class_agreement)
    rows = [("class", "A IoU %", "B IoU %", "B - A", "95 % interval ", "agree %")]
    rows += [
        row(name, iou_a[i], iou_b[i], intervals["classes"][i], class_agreement[i])
        for i, name in enumerate(a.evaluation.names)
    ]
    rows += [
        row("mean", a.scores["miou"], b.scores["miou"], intervals["miou"], mean_agreement),
        row("mean at boundaries", a.boundary["miou"], b.boundary["miou"], intervals["boundary"], np.nan),
    ]
    return "\n".join(
        [
            aligned(rows),
            "*: the interval excludes 0; for one class in twenty it does so by chance alone.",
            "agree: of the pixels that A or B gives the class, the share that both do.",
        ]
    )


def _difference_summary(
    a: Scored, b: Scored, intervals: dict[str, np.ndarray], class_agreement: np.ndarray
) -> dict[str, Any]:
    return {
        "a": _summary(a),
        "b": _summary(b),
        "miou": {"difference": 100 * (b.scores["miou"] - a.scores["miou"]), "interval": 100 * intervals["miou"]},
        "boundary_miou": {
            "difference": 100 * (b.boundary["miou"] - a.boundary["miou"]),
            "interval": 100 * intervals["boundary"],
        },
        "classes": {
            name: {
                "a": 100 * a.scores["iou"][i],
                "b": 100 * b.scores["iou"][i],
                "interval": 100 * intervals["classes"][i],
                "agreement": 100 * class_agreement[i],
            }
            for i, name in enumerate(a.evaluation.names)
        },
    }


def agreement(a: Results, b: Results) -> Agreement:
    """The `Agreement` of the predictions of two aligned evaluations.

    Raises UserError for predictions that are missing, damaged or of different sizes.
    """
    k, equal = len(a.names), []
    matrix = np.zeros((k, k), np.int64)
    for i in tqdm.tqdm(range(len(a.images)), "predictions", leave=False, disable=None, unit="image"):
        x, y = a.prediction(i), b.prediction(i)
        if x.shape != y.shape:
            raise UserError(
                f"The predictions of {a.images[i]} have different sizes, {x.shape} in {a.directory} and "
                f"{y.shape} in {b.directory}; evaluate both again."
            )
        counts = np.bincount(x.ravel() * np.int64(k) + y.ravel(), minlength=k * k).reshape(k, k)
        matrix += counts
        equal.append(np.trace(counts) / x.size)
    iou = metrics.iou(metrics.class_counts(matrix))
    return Agreement(matrix, np.trace(matrix) / matrix.sum(), np.array(equal), iou)


def _agreement_text(agree: Agreement, a: Results, ranked: np.ndarray) -> str:
    lines = [f"\npredictions: {percent(agree.share, unit=' %')} of the pixels are equal"]
    if ranked.size:
        pairs = [(x, y, percent(share)) for x, y, share in agree.disagreements(a.names)]
        images = [(a.images[i], percent(1 - agree.equal[i])) for i in ranked[:MOST_DIFFERENT]]
        lines += ["", aligned([("A predicts", "B predicts", "% of all pixels"), *pairs])]
        lines += ["", aligned([("images that differ most", "% of pixels"), *images])]
    return "\n".join(lines)


def _sheet(a: Results, b: Results, chosen: np.ndarray) -> Image.Image:
    """A picture of some images: where the predictions differ (white), A's prediction, B's prediction."""
    panels = []
    for i in chosen:
        x, y = a.prediction(i), b.prediction(i)
        scale = min(1, PICTURE_WIDTH / x.shape[1])
        size = max(1, round(x.shape[1] * scale)), max(1, round(x.shape[0] * scale))
        panels.append(
            [
                np.asarray(Image.fromarray(panel).resize(size, Image.Resampling.NEAREST))
                for panel in (np.uint8(255) * (x != y), x, y)
            ]
        )
    shown = np.unique(np.concatenate([panel.ravel() for row in panels for panel in row[1:]]))  # classes in the legend
    rows = [
        (np.repeat(differs[..., None], 3, -1), np.searchsorted(shown, x), np.searchsorted(shown, y))
        for differs, x, y in panels
    ]
    palette, names = [a.record["palette"][c] for c in shown], [a.names[c] for c in shown]
    return pictures.comparison(rows, palette, names, titles=("where they differ", "A", "B"))


def _model(evaluation: Results) -> Mapping[str, Any]:
    return evaluation.record["config"].get("model") or {}


def _heading(label: str, scored: Scored) -> list[str]:
    """Lines that say what was evaluated and how, its mIoU, and the published result."""
    evaluation, known, indent = scored.evaluation, scored.known, " " * len(label)
    facts, miou = evaluation.record, scored.scores["miou"]
    setting = ", ".join(
        value if key == "name" else f"{key} {value}" for key, value in facts["setting"].items() if value is not None
    )
    official = (
        f"published {known.miou:.2f} %, here {percent(miou - known.miou / 100, '+')}"
        if known
        else "nothing is published for this network, data and test setting"
    )
    data = f"{facts['dataset']} {facts['split']}, {len(evaluation.images)} images; {isnet.describe(_model(evaluation))}"
    ours = f"mIoU {percent(miou, unit=' %')} (official protocol; 95 % interval {_range(scored.miou_interval)})"
    return [
        f"{label}{evaluation.directory}",
        f"{indent}{data}, checkpoint {facts.get('checkpoint')}, step {facts.get('step')}",
        f"{indent}setting: {setting}",
        f"{indent}{ours}; {official}",
    ]


def _summary(scored: Scored) -> dict[str, Any]:
    """What an evaluation is of and its means, in percent."""
    evaluation, known = scored.evaluation, scored.known
    by_protocol = protocols.all_scores(evaluation.confusion)
    return {
        "directory": str(evaluation.directory),
        **{key: evaluation.record.get(key) for key in ("dataset", "split", "setting", "checkpoint", "step")},
        "images": len(evaluation.images),
        "miou": 100 * scored.scores["miou"],
        "interval": 100 * scored.miou_interval,
        "boundary_miou": 100 * scored.boundary["miou"],
        "protocols": {name: 100 * scores["miou"] for name, scores in by_protocol.items()},
        "published": known and {"miou": known.miou, "source": known.source},
        "bootstrap": {"repeats": bootstrap.REPEATS, "seed": bootstrap.SEED},
    }


def _range(interval: np.ndarray, sign: str = "") -> str:
    low, high = interval
    return f"[{percent(low, sign)}, {percent(high, sign)}]" if np.isfinite(low) else percent(low)


def jsonable(x: Any) -> Any:
    """The nested `x` for JSON: arrays become lists, NaN becomes null."""
    if isinstance(x, dict):
        return {str(key): jsonable(value) for key, value in x.items()}
    if isinstance(x, (list, tuple, np.ndarray)):
        return [jsonable(value) for value in x]
    if isinstance(x, (float, np.floating)):
        return float(x) if np.isfinite(x) else None
    return x.item() if isinstance(x, np.generic) else x
