"""Measures everything in docs/performance.md and writes it again, with its raw numbers in docs/performance/.

usage: python -m benchmarks.performance [--only=REGEX] [--list] [--ade20k=DIR] [--coco_stuff=DIR] [--turns=N]

  --only        only parts whose name matches; --list prints the names
  --ade20k      ADEChallengeData2016, or a part of it, for the part input
  --coco_stuff  COCO-Stuff 164k, or a part of it, for the part evaluation
  --turns       turns of each side in a comparison with PyTorch (3)

A part whose program is not installed here (PyTorch, libtpu), or that has no data or no accelerator, is skipped; the
last lines say why, and the exit code is 1. A part that fails does not keep the others from running. The compile tables
keep the rows of docs/performance/compile_table.json. All but the accelerator takes about three hours on two cores,
which nothing else should use.
"""

import argparse
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import docs
from benchmarks.compare_torch import table
from benchmarks.paths import RESULTS, ROOT

COMPARISONS = {  # file: flags of benchmarks.compare_torch
    "train": "--work=train --size=512x512 --classes=150",
    "forward": "--work=forward --size=512x512 --classes=150",
    "forward_large": "--work=forward --size=1024x2048 --classes=19",
    "evaluate": "--work=evaluate --size=480x640 --classes=182",
}


class Part(NamedTuple):
    """A part of docs/performance.md."""

    words: list[str]  # of the command
    sections: tuple[str, ...]  # that it writes
    missing: str = ""  # why it cannot be measured here


def parts(arguments: argparse.Namespace) -> dict[str, Part]:
    """All parts by name, in the order in which they are measured."""
    no_torch = "" if importlib.util.find_spec("torch") else "needs PyTorch"
    no_libtpu = "" if importlib.util.find_spec("libtpu") else "needs libtpu"
    found: dict[str, Part] = {}
    for name, flags in COMPARISONS.items():
        output = f"--json={RESULTS}/compare_{name}.json"
        found[f"compare_{name}"] = Part(
            ["benchmarks.compare_torch", *flags.split(), f"--turns={arguments.turns}", output], ("compare",), no_torch
        )
    found["input"] = Part(
        ["benchmarks.input_pipeline", "--config=configs/ade20k.py", f"--config.data.source={arguments.ade20k}"]
        + ["--write"],
        ("input",),
        "" if arguments.ade20k else "needs --ade20k",
    )
    found["evaluation"] = Part(
        ["benchmarks.evaluation", "--config=configs/coco_stuff.py:resnet18", "--config.data.name=coco_stuff164k"]
        + ["--config.data.eval_split=val", f"--config.data.source={arguments.coco_stuff}", "--write"],
        ("evaluation",),
        "" if arguments.coco_stuff else "needs --coco_stuff",
    )
    found["products"] = Part(["benchmarks.products", "--write"], ("products",))
    found["growth"] = Part(["benchmarks.growth", "--write"], ("growth",))
    found["freezing"] = Part(["benchmarks.freezing", "--write"], ("freezing",))
    found["compile_table"] = Part(
        ["benchmarks.compile_table", "--minutes=600"], ("compile_train", "compile_evaluate"), no_libtpu
    )
    found["accelerator"] = Part(
        ["benchmarks.accelerator"], ("accelerator",), "" if _has_accelerator() else "needs an accelerator"
    )
    return found


def _has_accelerator() -> bool:
    """Whether JAX finds one; checked in a subprocess, which releases it."""
    words = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() in ("gpu", "tpu")


def write_comparisons() -> None:
    """Writes the section "compare" from the JSON files that are there."""
    section = docs.Section("compare")
    files = [RESULTS / f"compare_{name}.json" for name in COMPARISONS]
    found: list[dict[str, Any]] = [json.loads(path.read_text()) for path in files if path.exists()]
    section.lines = "\n\n".join(map(table, found)).splitlines()
    section.write(None)


def run(chosen: dict[str, Part]) -> bool:
    """Measures the parts, one after another; returns whether all of them were."""
    left_out = {name: part.missing for name, part in chosen.items() if part.missing}
    for name, part in chosen.items():
        if part.missing:
            continue
        print(f"{name}: python -m {' '.join(part.words)}", flush=True)
        code = subprocess.run([sys.executable, "-m", *part.words], cwd=ROOT, check=False).returncode
        if code:
            left_out[name] = f"exit code {code}"
        elif name.startswith("compare_"):
            write_comparisons()
    for name, reason in left_out.items():
        print(f"skipped: {name} ({reason})")
    return not left_out


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--turns", type=int, default=3)
    for flag in ("--ade20k", "--coco_stuff"):
        parser.add_argument(flag, type=Path, metavar="DIR")
    arguments = parser.parse_args()
    chosen = {name: part for name, part in parts(arguments).items() if re.search(arguments.only, name)}
    if arguments.list or not chosen:
        print("\n".join(parts(arguments)))
        return 0 if arguments.list else 2
    return 0 if run(chosen) else 1


if __name__ == "__main__":
    sys.exit(_main())
