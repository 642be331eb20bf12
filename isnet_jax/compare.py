"""Compares two evaluations of the same images, or one with what is published.

usage: python -m isnet_jax.compare DIR_A DIR_B [--output=FILE.json]
       python -m isnet_jax.compare DIR [--output=FILE.json]

  DIR       what isnet_jax.evaluate wrote
  --output  the same numbers as JSON; FILE.png beside it shows the images that differ most

Scores follow the official protocol. Intervals of 95 % are bootstrapped over the images, the same for both.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tqdm
from absl import flags
from PIL import Image

from isnet_jax import bootstrap, command, metrics, pictures, protocols, published, results
from isnet_jax.console import aligned, say
from isnet_jax.errors import UserError
from isnet_jax.protocols import percent

MOST_DIFFERENT, DISAGREEMENTS = 10, 10  # listed
PICTURES, PICTURE_WIDTH = 4, 320


def _define_flags():
    flags.DEFINE_string("output", None, "the numbers as JSON")


def _main(config, values, *directories):
    if config is not None:
        raise flags.Error("--config does not go with a comparison: an evaluation knows its own")
    if not directories:
        raise flags.Error("DIR is missing")
    output = _checked_output(values.output)
    record, sheet = compare(*directories) if len(directories) == 2 else describe(*directories)
    if output:
        from isnet_jax.checkpoints import write_whole  # it takes a second to import

        write_whole(output, json.dumps(_jsonable(record), indent=1) + "\n")
        say(f"\n{output}")
        if sheet:
            sheet.save(output.with_suffix(".png"))
            say(f"images that differ most: {output.with_suffix('.png')}")


class Scored(NamedTuple):
    """An evaluation, its official scores, and how they move with the choice of images."""

    evaluation: results.Results
    scores: dict
    boundary: dict  # protocols.boundary_scores
    iou_samples: np.ndarray  # (repeats, K)
    boundary_samples: np.ndarray  # (repeats, K)
    known: published.Published | None  # of the same split and test setting

    @property
    def miou_interval(self):
        return bootstrap.interval(metrics.mean(self.iou_samples))


def score(evaluation):
    """`Scored` of a `results.Results`."""
    record = evaluation.record
    known = published.find(record["dataset"], _backbone(evaluation), record["split"], record["setting"])
    return Scored(
        evaluation,
        protocols.scores(evaluation.confusion),
        protocols.boundary_scores(evaluation.boundary.sum(0)),
        metrics.iou(bootstrap.resample(evaluation.counts)),
        metrics.iou(bootstrap.resample(evaluation.boundary)),
        known,
    )


def describe(directory):
    """Prints the scores of an evaluation beside what is published -> the same for JSON, in percent, and no picture."""
    evaluation = results.load(directory)
    scored = score(evaluation)
    scores, boundary, interval = scored.scores, scored.boundary, bootstrap.interval(scored.iou_samples).T  # (K, 2)
    rows = [("class", "IoU %", "95 % interval", "acc %", "share %", "boundary IoU %")]
    rows += [
        (
            name,
            percent(scores["iou"][i]),
            _range(interval[i]),
            percent(scores["accuracy"][i]),
            percent(scores["share"][i]),
            percent(boundary["iou"][i]),
        )
        for i, name in enumerate(evaluation.names)
    ]
    rows.append(
        (
            "mean",
            percent(scores["miou"]),
            _range(scored.miou_interval),
            percent(scores["mean_accuracy"]),
            "",
            percent(boundary["miou"]),
        )
    )
    say("\n".join([*_head("", scored), "", aligned(rows), "", protocols.format_table(evaluation.confusion)]))
    if evaluation.record["dataset"] == "cityscapes":
        categories = protocols.scores(protocols.merge(evaluation.confusion, protocols.CITYSCAPES_CATEGORIES.values()))
        each = ", ".join(f"{name} {percent(x)}" for name, x in zip(protocols.CITYSCAPES_CATEGORIES, categories["iou"]))
        say(f"categories: mIoU {percent(categories['miou'])} % ({each})")
    return _record(scored) | {
        "classes": {
            name: {
                "iou": 100 * scores["iou"][i],
                "interval": 100 * interval[i],
                "accuracy": 100 * scores["accuracy"][i],
                "share": 100 * scores["share"][i],
                "boundary_iou": 100 * boundary["iou"][i],
            }
            for i, name in enumerate(evaluation.names)
        }
    }, None


def compare(directory_a, directory_b):
    """Prints two evaluations side by side -> the same for JSON, in percent, and a PIL image of what differs most.

    Raises UserError unless both are of the same data set, split, classes, images and labels.
    """
    a, b = results.load(directory_a), results.load(directory_b)
    b = results.align(a, b)
    agree = agreement(a, b) if a.has_predictions and b.has_predictions else None
    alike = np.full(len(a.names), np.nan) if agree is None else agree["iou"]
    x, y = score(a), score(b)
    change = bootstrap.interval(y.iou_samples - x.iou_samples).T  # (K, 2)
    mean_change = bootstrap.interval(metrics.mean(y.iou_samples) - metrics.mean(x.iou_samples))
    boundary_change = bootstrap.interval(metrics.mean(y.boundary_samples) - metrics.mean(x.boundary_samples))

    def row(name, u, v, interval, share):
        sure = "*" if interval[0] > 0 or interval[1] < 0 else " "
        return name, percent(u), percent(v), percent(v - u, "+"), _range(interval, "+") + sure, percent(share)

    rows = [("class", "A IoU %", "B IoU %", "B - A", "95 % interval ", "agree %")]
    rows += [row(name, x.scores["iou"][i], y.scores["iou"][i], change[i], alike[i]) for i, name in enumerate(a.names)]
    rows += [
        row("mean", x.scores["miou"], y.scores["miou"], mean_change, metrics.mean(alike)),
        row("mean at boundaries", x.boundary["miou"], y.boundary["miou"], boundary_change, np.nan),
    ]
    say(
        "\n".join(
            [
                *_head("A  ", x),
                *_head("B  ", y),
                "",
                aligned(rows),
                "*: the interval leaves out 0; by chance alone it does so for one class in twenty.",
                "agree: of the pixels that either calls so, those that both do.",
            ]
        )
    )
    record = {
        "a": _record(x),
        "b": _record(y),
        "miou": {"difference": 100 * (y.scores["miou"] - x.scores["miou"]), "interval": 100 * mean_change},
        "boundary_miou": {
            "difference": 100 * (y.boundary["miou"] - x.boundary["miou"]),
            "interval": 100 * boundary_change,
        },
        "classes": {
            name: {
                "a": 100 * x.scores["iou"][i],
                "b": 100 * y.scores["iou"][i],
                "interval": 100 * change[i],
                "agreement": 100 * alike[i],
            }
            for i, name in enumerate(a.names)
        },
    }
    if agree is None:
        say("\nOne of them has no predictions/, so pixels are not compared.")
        return record, None
    ranked = np.argsort(agree["equal"], kind="stable")
    ranked = ranked[agree["equal"][ranked] < 1]
    pairs = _disagreements(agree["matrix"], a.names)
    say(_agreement_text(agree, a.images, ranked, pairs))
    record["agreement"] = {
        "equal": 100 * agree["share"],
        "disagreements": [{"a": u, "b": v, "share": 100 * s} for u, v, s in pairs],
        "most_different_images": [
            {"name": a.images[i], "differing": 100 * (1 - agree["equal"][i])} for i in ranked[:MOST_DIFFERENT]
        ],
    }
    return record, _sheet(a, b, ranked[:PICTURES]) if ranked.size else None


def agreement(a, b):
    """How far two evaluations with the same images predict alike, pixel by pixel.

    -> "matrix" (K, K) int64, rows A's class, columns B's; "share" of equal pixels; "equal" (N,) of each image; "iou"
    (K,), of the pixels that either gives a class those that both do, NaN without any. Raises UserError for predictions
    that are missing, damaged or of different sizes.
    """
    k, matrix, equal = len(a.names), 0, []
    for i in tqdm.tqdm(range(len(a.images)), "predictions", leave=False, disable=None, unit="image"):
        x, y = a.prediction(i), b.prediction(i)
        if x.shape != y.shape:
            raise UserError(
                f"The predictions of {a.images[i]} have different sizes, {x.shape} in {a.directory} and "
                f"{y.shape} in {b.directory}; evaluate both again."
            )
        counts = np.bincount(x.ravel() * np.int64(k) + y.ravel(), minlength=k * k).reshape(k, k)
        matrix = matrix + counts
        equal.append(np.trace(counts) / x.size)
    return {
        "matrix": matrix,
        "share": np.trace(matrix) / matrix.sum(),
        "equal": np.array(equal),
        "iou": metrics.iou(metrics.class_counts(matrix)),
    }


def _disagreements(matrix, names):
    """[(A's class, B's class, share of all pixels)], the most frequent first."""
    apart = matrix * (1 - np.eye(len(matrix), dtype=np.int64))
    order = np.argsort(-apart, axis=None, kind="stable")[:DISAGREEMENTS]
    return [
        (names[x], names[y], apart[x, y] / matrix.sum())
        for x, y in zip(*np.unravel_index(order, apart.shape))
        if apart[x, y]
    ]


def _agreement_text(agree, images, ranked, pairs):
    lines = [f"\npredictions: {percent(agree['share'])} % of the pixels are equal"]
    if ranked.size:
        lines += [
            "",
            aligned([("A says", "B says", "% of all pixels"), *((u, v, percent(s)) for u, v, s in pairs)]),
            "",
            aligned(
                [
                    ("images that differ most", "% of pixels"),
                    *((images[i], percent(1 - agree["equal"][i])) for i in ranked[:MOST_DIFFERENT]),
                ]
            ),
        ]
    return "\n".join(lines)


def _sheet(a, b, chosen):
    """Picture of some images: where they differ (white), A's prediction, B's."""
    rows = []
    for i in chosen:
        x, y = a.prediction(i), b.prediction(i)
        scale = min(1, PICTURE_WIDTH / x.shape[1])
        size = max(1, round(x.shape[1] * scale)), max(1, round(x.shape[0] * scale))
        rows.append(
            [
                np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.NEAREST))
                for plane in (np.uint8(255) * (x != y), x, y)
            ]
        )
    used = np.unique(np.concatenate([plane.ravel() for row in rows for plane in row[1:]]))  # a legend of these alone
    rows = [
        (np.repeat(apart[..., None], 3, -1), np.searchsorted(used, x), np.searchsorted(used, y)) for apart, x, y in rows
    ]
    return pictures.comparison(
        rows, [a.record["palette"][c] for c in used], [a.names[c] for c in used], titles=("where they differ", "A", "B")
    )


def _backbone(evaluation):
    return evaluation.record["config"].get("model", {}).get("backbone")


def _head(label, scored):
    """Lines that say what was evaluated and how, its mIoU, and what is published."""
    evaluation, known, indent = scored.evaluation, scored.known, " " * len(label)
    record, miou = evaluation.record, scored.scores["miou"]
    setting = ", ".join(
        value if key == "name" else f"{key} {value}" for key, value in record["setting"].items() if value is not None
    )
    beside = (
        f"published {known.miou:.2f} %, here {100 * miou - known.miou:+.2f}"
        if known
        else "nothing is published for this network, data and test setting"
    )
    of = f"{record['dataset']} {record['split']}, {len(evaluation.images)} images; {_backbone(evaluation)}"
    found = f"mIoU {percent(miou)} % (official protocol; 95 % interval {_range(scored.miou_interval)})"
    return [
        f"{label}{evaluation.directory}",
        f"{indent}{of}, checkpoint {record.get('checkpoint')}, step {record.get('step')}",
        f"{indent}setting: {setting}",
        f"{indent}{found}; {beside}",
    ]


def _record(scored):
    evaluation, known = scored.evaluation, scored.known
    every = protocols.all_scores(evaluation.confusion)
    return {
        "directory": str(evaluation.directory),
        **{key: evaluation.record.get(key) for key in ("dataset", "split", "setting", "checkpoint", "step")},
        "images": len(evaluation.images),
        "miou": 100 * scored.scores["miou"],
        "interval": 100 * scored.miou_interval,
        "boundary_miou": 100 * scored.boundary["miou"],
        "protocols": {name: 100 * result["miou"] for name, result in every.items()},
        "published": known and {"miou": known.miou, "source": known.source},
        "bootstrap": {"repeats": bootstrap.REPEATS, "seed": bootstrap.SEED},
    }


def _range(interval, sign=""):
    low, high = interval
    return f"[{percent(low, sign)}, {percent(high, sign)}]" if np.isfinite(low) else "-"


def _checked_output(output):
    """The path of --output, None without; raises UserError for one that cannot be written, before any work."""
    if output is None:
        return None
    path = Path(output)
    if path.suffix != ".json":
        raise UserError(f"--output is {output}; it must be a file named *.json.")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(
            f"--output={output} cannot be written: {path.parent} must be a directory that can be, and no "
            "directory may have that name."
        )
    return path


def _jsonable(x):
    """The nested `x` for JSON: arrays as lists, NaN as null."""
    if isinstance(x, dict):
        return {str(key): _jsonable(value) for key, value in x.items()}
    if isinstance(x, (list, tuple, np.ndarray)):
        return [_jsonable(value) for value in x]
    if isinstance(x, (float, np.floating)):
        return float(x) if np.isfinite(x) else None
    return x.item() if isinstance(x, np.generic) else x


if __name__ == "__main__":
    command.run(_main, __doc__, _define_flags, needs_config=False, goes_on="from the start", most_words=2)
