"""results.json: what is kept of the runs, and its statistics."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from benchmarks.accuracy.divergence import Divergence
from benchmarks.accuracy.runs import ABLATIONS, OURS, THEIRS, VARIANTS, Run
from benchmarks.paths import ROOT
from isnet_jax.runtime.console import aligned
from isnet_jax.runtime.files import atomic_write_text

FILE = ROOT / "benchmarks/accuracy/results.json"
CONFIDENCE = 0.95


def load(path: Path = FILE) -> dict[str, Any]:
    """{data set: {"config", "ours", "torch", "ablation", "variants", "runs", "divergence"}}, as far as measured.

    "ours" and "torch" hold mIoU in percent by seed, "ablation" and "variants" the same of each kind.
    """
    return json.loads(path.read_text()) if path.exists() else {}


def is_recorded(path: Path, task: Run | Divergence) -> bool:
    """Whether the file holds the task's record, of the same config."""
    entry = load(path).get(task.experiment.data, {})
    if entry.get("config") != task.experiment.config:
        return False
    return "divergence" in entry if isinstance(task, Divergence) else task.name in entry.get("runs", {})


def add(path: Path, task: Run | Divergence) -> None:
    """Records a finished task. Records of another config are dropped."""
    config = task.experiment.config
    with _locked(path.parent):
        results = load(path)
        entry = results.get(task.experiment.data, {})
        if entry.get("config") != config:
            entry = {"config": config}
        if isinstance(task, Divergence):
            entry["divergence"] = task.record()
        else:
            entry.setdefault("runs", {})[task.name] = task.record()
            _collect_scores(entry)
        results[task.experiment.data] = entry
        atomic_write_text(path, json.dumps(results, indent=1) + "\n")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Other processes that record here wait."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _collect_scores(entry: dict[str, Any]) -> None:
    scores: dict[str, list[float]] = {}
    for record in sorted(entry["runs"].values(), key=lambda record: record["seed"]):
        scores.setdefault(record["kind"], []).append(record["miou"])
    entry |= {kind: scores[kind] for kind in (OURS, THEIRS) if kind in scores}
    ablation = {kind: scores[kind] for kind in ABLATIONS if kind in scores}
    if ablation and OURS in scores:
        entry["ablation"] = {"both": scores[OURS], **ablation}
    variants = {kind: scores[kind] for kind in VARIANTS if kind in scores}
    if variants and OURS in scores:
        entry["variants"] = {"official recipe": scores[OURS], **variants}


class Difference(NamedTuple):
    """Of the means of two samples, the first minus the second, with its confidence interval (Welch)."""

    mean: float
    low: float
    high: float


def difference(first: list[float], second: list[float]) -> Difference | None:
    """None unless both have two values or more."""
    if min(len(first), len(second)) < 2:
        return None
    interval = scipy.stats.ttest_ind(first, second, equal_var=False).confidence_interval(CONFIDENCE)
    return Difference(float(np.mean(first) - np.mean(second)), float(interval.low), float(interval.high))


def table(scores: dict[str, list[float]]) -> str:
    """Mean, sample standard deviation and values of mIoU for each name."""
    rows = [["", "mean", "std", "mIoU % by seed"]]
    for name, values in scores.items():
        std = f"{np.std(values, ddof=1):.2f}" if len(values) > 1 else "-"
        rows.append([name, f"{np.mean(values):.2f}", std, "  ".join(f"{value:.2f}" for value in values)])
    return aligned(rows)


def comparison(entry: dict[str, Any]) -> str:
    """The table of both frameworks, and the difference of their means."""
    names = {"isnet_jax": OURS, "PyTorch": THEIRS}
    lines = [table({name: entry[kind] for name, kind in names.items() if kind in entry})]
    if OURS in entry and THEIRS in entry:
        found = difference(entry[OURS], entry[THEIRS])
        lines.append(
            f"difference of the means {found.mean:+.2f} points, {CONFIDENCE:.0%} interval {found.low:+.2f} to "
            f"{found.high:+.2f}"
            if found
            else f"difference {np.mean(entry[OURS]) - np.mean(entry[THEIRS]):+.2f} points"
        )
    return "\n".join(lines)
