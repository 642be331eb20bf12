"""Writes the generated parts of README.md: the output of the quickstart, and the table of published results.

usage: python -m benchmarks.readme quickstart LOG
       python -m benchmarks.readme recipes

  quickstart  the output that `make quickstart 2>&1 | tee LOG` has left in LOG, and docs/images/quickstart.png
  recipes     the published mIoU of the official recipes, from isnet_jax/evaluation/published.py
"""

import argparse
import shutil
from pathlib import Path

from benchmarks.docs import as_code, write_section
from benchmarks.paths import README, ROOT
from isnet_jax.evaluation import published

DATASETS = {"ade20k": "ADE20K", "coco_stuff10k": "COCO-Stuff 10k", "cityscapes": "Cityscapes val", "lip": "LIP val"}
BACKBONES = {"resnet50": "ResNet-50", "resnet101": "ResNet-101", "resnest101": "ResNeSt-101"}


def quickstart_output(log: str) -> str:
    """The lines of the log from the description of the network to the last line of the run, as a code block."""
    lines = log.splitlines()
    start = next(i for i, line in enumerate(lines) if " ISNet, " in line)
    stop = next(i for i, line in enumerate(lines) if "TensorBoard events: " in line)
    return as_code(line.replace(f"{ROOT}/", "") for line in lines[start : stop + 1])


def recipes_table() -> str:
    """The published mIoU of the official recipes in Markdown, single scale / multi-scale and flip."""
    lines = [f"| | {' | '.join(BACKBONES.values())} |", "|---|---|---|---|"]
    for dataset, title in DATASETS.items():
        pairs = [published.BENCHMARKS[dataset].miou[backbone] for backbone in BACKBONES]
        cells = [f"{single:.2f} / {multi:.2f}" for single, multi in pairs]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(part: str, log: Path | None = None) -> None:
    """Runs the command with the arguments of the usage."""
    if part == "recipes":
        return write_section(README, "recipes", recipes_table())
    write_section(README, "quickstart", quickstart_output(log.read_text()))
    picture = ROOT / "docs/images/quickstart.png"
    picture.parent.mkdir(exist_ok=True)
    shutil.copy(ROOT / "runs/quickstart/predictions.png", picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("quickstart").add_argument("log", type=Path)
    parts.add_parser("recipes")
    main(**vars(parser.parse_args()))
