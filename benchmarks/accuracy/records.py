"""results.json: what is kept of the runs, and its statistics."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from benchmarks.accuracy.runs import ABLATIONS, OURS, THEIRS, Run
from benchmarks.paths import ROOT
from isnet_jax.runtime.console import aligned
from isnet_jax.runtime.files import atomic_write_text

FILE = ROOT / "benchmarks/accuracy/results.json"
CONFIDENCE = 0.95


def load(path: Path = FILE) -> dict[str, Any]:
    """{data set: {"ours", "torch": mIoU in percent by seed, "ablation": {kind: mIoU by seed}, "runs", "parting"}}."""
    return json.loads(path.read_text()) if path.exists() else {}


def add_run(path: Path, run: Run) -> None:
    """Records a finished run."""
    results = load(path)
    entry = results.setdefault(run.place.data, {})
    runs = entry.setdefault("runs", {})
    runs[run.name] = {"kind": run.kind, **run.record()}
    scores: dict[str, list[float]] = {}
    for record in sorted(runs.values(), key=lambda record: record["seed"]):
        scores.setdefault(record["kind"], []).append(record["miou"])
    entry |= {kind: scores[kind] for kind in (OURS, THEIRS) if kind in scores}
    ablation = {kind: scores[kind] for kind in ABLATIONS if kind in scores}
    if ablation:
        entry["ablation"] = {"both": scores.get(OURS, []), **ablation}
    atomic_write_text(path, json.dumps(results, indent=1) + "\n")


def add_parting(path: Path, data: str, curves: dict[str, Any]) -> None:
    """Records the loss curves without dropout, see parting.py."""
    results = load(path)
    results.setdefault(data, {})["parting"] = curves
    atomic_write_text(path, json.dumps(results, indent=1) + "\n")


class Difference(NamedTuple):
    """Of the means of two samples, ours minus theirs, with its confidence interval (Welch)."""

    mean: float
    low: float
    high: float


def difference(ours: list[float], theirs: list[float]) -> Difference | None:
    """None unless both have two values or more."""
    if min(len(ours), len(theirs)) < 2:
        return None
    interval = scipy.stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(CONFIDENCE)
    return Difference(float(np.mean(ours) - np.mean(theirs)), float(interval.low), float(interval.high))


def table(scores: dict[str, list[float]]) -> str:
    """Mean, spread (sample standard deviation) and values of mIoU for each name."""
    rows = [["", "mean", "spread", "mIoU % by seed"]]
    for name, values in scores.items():
        spread = f"{np.std(values, ddof=1):.2f}" if len(values) > 1 else "-"
        rows.append([name, f"{np.mean(values):.2f}", spread, "  ".join(f"{value:.2f}" for value in values)])
    return aligned(rows)


def comparison(entry: dict[str, Any]) -> str:
    """The table of both frameworks, and the difference of their means."""
    ours, theirs = entry.get(OURS, []), entry.get(THEIRS, [])
    lines = [table({"isnet_jax": ours, "PyTorch": theirs})]
    found = difference(ours, theirs)
    if found:
        lines.append(
            f"difference of the means {found.mean:+.2f} points, {CONFIDENCE:.0%} interval {found.low:+.2f} to "
            f"{found.high:+.2f}"
        )
    elif ours and theirs:
        lines.append(f"difference {np.mean(ours) - np.mean(theirs):+.2f} points")
    return "\n".join(lines)
