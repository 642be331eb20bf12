"""Writes the generated parts of README.md and docs/quickstart.md: the table of the official recipes, and the output.

usage: python -m benchmarks.readme quickstart LOG
       python -m benchmarks.readme recipes

  quickstart  the output that `make quickstart 2>&1 | tee LOG` has left in LOG, and docs/images/quickstart.png
  recipes     the published mIoU of the official recipes, from isnet_jax/evaluation/published.py; measured numbers stay
"""

import argparse
import shutil
from pathlib import Path

from benchmarks.docs import as_code, write_section
from benchmarks.paths import README, ROOT
from isnet_jax.evaluation import published


def quickstart_output(log: str) -> str:
    """The lines of the log from the description of the network to the last line of the run, as a code block."""
    lines = log.splitlines()
    start = next(i for i, line in enumerate(lines) if " ISNet, " in line)
    stop = next(i for i, line in enumerate(lines) if "TensorBoard events: " in line)
    return as_code(line.replace(f"{ROOT}/", "") for line in lines[start : stop + 1])


def recipes_table(text: str = "") -> str:
    """The official recipes in Markdown, with the cells of `text`, an earlier table, that hold measured numbers."""
    rows = dict.fromkeys(published.table_row(*recipe, {}) for recipe in published.RESULTS)
    for line in text.splitlines():
        empty = f"{line.rsplit('|', 2)[0]}| - / - |"
        if empty in rows:
            rows[empty] = line
    heading = ["| recipe | published by the authors | measured here |", "|---|---|---|"]
    return "\n".join([*heading, *(line or empty for empty, line in rows.items())])


def main(part: str, log: Path | None = None) -> None:
    """Runs the command with the arguments of the usage."""
    if part == "recipes":
        return write_section(README, "recipes", recipes_table(README.read_text()))
    write_section(ROOT / "docs/quickstart.md", "quickstart", quickstart_output(log.read_text()))
    picture = ROOT / "docs/images/quickstart.png"
    picture.parent.mkdir(exist_ok=True)
    shutil.copy(ROOT / "runs/quickstart/predictions.png", picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("quickstart").add_argument("log", type=Path)
    parts.add_parser("recipes")
    main(**vars(parser.parse_args()))
