"""Writes the tables, curves and pictures of docs/accuracy.md from results.json.

usage: python -m benchmarks.accuracy.report [--runs=DIR]

  --runs  where benchmarks.accuracy.run kept everything (runs/accuracy): for the example predictions
"""

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import docs
from benchmarks.accuracy import drawn_people, records
from benchmarks.accuracy.divergence import EXACT, STEPS, TOLERANCE, describe, relative
from benchmarks.accuracy.runs import CURVE_STEPS, OURS, THEIRS
from benchmarks.paths import IMAGES, ROOT
from isnet_jax.datasets import tables
from isnet_jax.evaluation import pictures

PAGE = ROOT / "docs/accuracy.md"
NAMES = {OURS: "isnet_jax", THEIRS: "PyTorch"}
EXAMPLES = 4
WIDTH = 128  # of the page


def setting(config: dict[str, Any]) -> str:
    """How the recorded runs were trained and tested, from their config."""
    augment, train, test, data = (config[name] for name in ("augment", "train", "test", "data"))
    height, width = augment["crop_size"]
    start = f"a backbone trained with `{config['pretrained_on']}`" if config.get("pretrained_on") else "random weights"
    text = (
        f"Recorded runs: `{data['train_split']}` for {train['epochs']} epochs in batches of "
        f"{train['global_batch_size']} crops of {width}x{height} from images of {_size(augment['resize'])}, with a "
        f"learning rate of {train['base_lr']}, from {start}; tested on `{data['eval_split']}` at "
        f"{_size(test['resize'])}."
    )
    return textwrap.fill(text, WIDTH)


def _size(resize: Sequence[int]) -> str:
    return "{}x{}".format(*resize) if resize else "their own size"


def results_table(entry: dict[str, Any]) -> str:
    """Both frameworks, the difference of their means, and how long their losses agree without dropout."""
    lines = [records.comparison(entry)] if "runs" in entry else []
    lines += describe(entry["divergence"]) if "divergence" in entry else []
    return "\n".join(lines)


def kinds_table(scores: dict[str, list[float]]) -> str:
    """mIoU of each kind of run, and the difference of the others to the first."""
    lines, (first, *others) = [records.table(scores)], scores
    for kind in others:
        found = records.difference(scores[kind], scores[first])
        if found:
            interval = f"{records.CONFIDENCE:.0%} interval {found.low:+.2f} to {found.high:+.2f}"
            lines.append(f"{kind} minus {first}: {found.mean:+.2f} points, {interval}")
    return "\n".join(lines)


def commands(entry: dict[str, Any]) -> str:
    """The commands of a seed of each framework, and the versions."""
    lines, versions = [], {}
    for kind in (OURS, THEIRS):
        record = next((record for record in entry.get("runs", {}).values() if record["kind"] == kind), None)
        if record:
            lines += [command for command in record["commands"] if command not in lines]
            versions |= record["versions"]
    return "\n".join([*lines, ", ".join(f"{name} {version}" for name, version in versions.items())])


def plot(results: dict[str, Any]) -> None:
    """Loss curves of all seeds, and the difference of the losses without dropout, as docs/images/accuracy.png."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(
        len(results), 2, figsize=(10, 3.2 * len(results)), layout="constrained", squeeze=False
    )
    for (data, entry), (left, right) in zip(results.items(), grid):
        for color, kind in (("C0", OURS), ("C1", THEIRS)):
            curves = [record["losses"] for record in entry.get("runs", {}).values() if record["kind"] == kind]
            for i, curve in enumerate(curves):
                steps = CURVE_STEPS * (np.arange(len(curve)) + 0.5)
                left.plot(steps, curve, color=color, alpha=0.6, linewidth=1, label=None if i else NAMES[kind])
        left.set(title=f"{data}: loss, each seed", xlabel="step", ylabel=f"mean of {CURVE_STEPS} steps")
        for dtype in STEPS if "divergence" in entry else ():
            found = relative(entry["divergence"][dtype][OURS], entry["divergence"][dtype][THEIRS])
            right.semilogy(np.arange(len(found)) + 1, found, label=f"{dtype}, isnet_jax to PyTorch")
        for color, kind in (("C2", OURS), ("C3", THEIRS)) if "divergence" in entry else ():
            found = relative(entry["divergence"]["float32"][kind], entry["divergence"][EXACT])
            right.semilogy(np.arange(len(found)) + 1, found, color=color, label=f"float32 to float64, {NAMES[kind]}")
        right.axhline(TOLERANCE, color="gray", linewidth=1, linestyle=":")
        right.set(title=f"{data}, without dropout: difference of the losses", xlabel="step", ylabel="relative")
        for panel in (left, right):
            panel.grid(alpha=0.3)
            if panel.get_legend_handles_labels()[0]:
                panel.legend()
    figure.savefig(IMAGES / "accuracy.png", dpi=110)


def draw_examples(folder: Path, entry: dict[str, Any]) -> bool:
    """Predictions of both frameworks on drawn people, of the first seed, as docs/images/accuracy_people.png.

    Returns whether the runs in `folder` still have them.
    """
    seed = min((record["seed"] for record in entry.get("runs", {}).values()), default=0)
    predictions = [folder / f"{kind}-{seed}/evaluation/predictions" for kind in (OURS, THEIRS)]
    if not all(map(Path.exists, predictions)):
        return False
    paths = [
        [folder / "source/val/images" / name, folder / "source/val/labels" / name, *(p / name for p in predictions)]
        for name in sorted(path.name for path in predictions[0].glob("*.png"))[:EXAMPLES]
    ]
    rows = [tuple(np.asarray(Image.open(path)) for path in row) for row in paths]
    palette = tables.distinct_colors(range(1, len(drawn_people.CLASSES) + 1))
    titles = "image", "ground truth", *NAMES.values()
    pictures.comparison(rows, palette, drawn_people.CLASSES, titles).save(IMAGES / "accuracy_people.png")
    return True


def main(runs: Path) -> None:
    """Writes the page."""
    results = records.load()
    for data, entry in results.items():
        if "config" in entry:
            docs.write_section(PAGE, f"{data}_setting", setting(entry["config"]))
        docs.write_section(PAGE, data, docs.as_code(results_table(entry).splitlines()))
        docs.write_section(PAGE, f"{data}_commands", docs.as_code(commands(entry).splitlines()))
        for section in "ablation", "variants":
            if section in entry:
                docs.write_section(PAGE, f"{data}_{section}", docs.as_code(kinds_table(entry[section]).splitlines()))
    if results:
        plot(results)
        docs.write_section(
            PAGE, "curves", "![Losses of all seeds, and their difference without dropout](images/accuracy.png)"
        )
    if "people" in results and draw_examples(runs / "people", results["people"]):
        docs.write_section(PAGE, "people_examples", "![Predictions of both frameworks](images/accuracy_people.png)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"))
    main(**vars(parser.parse_args()))
