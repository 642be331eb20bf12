"""ISNet in JAX next to PyTorch on this machine: the same weights and inputs, in turn, in fresh processes.

usage: python -m benchmarks.compare_torch --work=train|forward|evaluate --backbone=resnet50 --size=512x512
           --classes=150 --batch=1 [--dtype=float32|bfloat16] [--turns=2] [--json=FILE]

  --work    train: a train step, to updated parameters; ours also normalises the images
            forward: the network in evaluation, from normalised images to logits at stride 8
            evaluate: `python -m isnet_jax.evaluate` on 12 photographs of mixed sizes of about --size, start to end
  --turns   how often each side has its turn

Sides: `ours`; `loop`, PyTorch as the official code computes; `fast`, the strongest PyTorch that computes the same
(benchmarks/torch_fast.py), eager and compiled by torch.compile where that works, whichever is faster. Ratios are
PyTorch's seconds over ours. The share of the matrix rate is that of the best rate of a matrix product measured in
either framework.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import compare_evaluation
from benchmarks.paths import ROOT
from isnet_jax.runtime.console import aligned

SIDES = {  # name: (module, variant)
    "ours": ("benchmarks.compare_ours", ""),
    "loop": ("benchmarks.compare_pytorch", "loop"),
    "fast": ("benchmarks.compare_pytorch", "fast"),
    "fast, compiled": ("benchmarks.compare_pytorch", "compiled"),
}


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=("train", "forward", "evaluate"), default="train")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=_size, default=(512, 512), metavar="HxW")
    parser.add_argument("--classes", type=_count, default=150)
    parser.add_argument("--batch", type=_count, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--turns", type=_count, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(words)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} must be height x width, as in 512x683")
    return int(found[1]), int(found[2])


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,4}", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 1")
    return int(text)


def run_side(side: str, spec: dict[str, Any], folder: Path, turn: int) -> dict[str, Any]:
    """What the side measured, in a process of its own; {"error": its last line} if it failed."""
    module, variant = SIDES[side]
    if spec["work"] == "evaluate":
        try:
            if side == "ours":
                return compare_evaluation.measure_ours(spec, folder, turn)
            return compare_evaluation.measure_theirs({**spec, "variant": variant}, folder)
        except RuntimeError as error:
            return {"error": str(error)}
    output = folder / f"{side}.json"
    words = [sys.executable, "-m", module, json.dumps({**spec, "variant": variant}), str(output)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return json.loads(output.read_text())


def merge_turns(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A side's result over its turns: median, least and largest of all seconds; the largest peak of memory."""
    failed = next((turn for turn in turns if "error" in turn), None)
    if failed:
        return failed
    seconds = [value for turn in turns for value in turn["seconds"]]
    spread = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    return {**turns[-1], "seconds": spread, "peak_gib": max(turn["peak_gib"] for turn in turns)}


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs every side in turn; returns the content of the JSON file."""
    spec = {name: value for name, value in vars(arguments).items() if name not in ("json", "turns")}
    sides = [side for side in SIDES if arguments.work != "evaluate" or side != "fast, compiled"]
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.work == "evaluate":
            compare_evaluation.make_place(spec, Path(folder))
        for turn in range(arguments.turns):
            for side in sides:
                if turns[side] and "error" in turns[side][-1]:
                    continue
                print(f"turn {turn + 1} of {arguments.turns}: {side}", file=sys.stderr, flush=True)
                turns[side].append(run_side(side, spec, Path(folder), turn))
    results = {side: merge_turns(turns[side]) for side in sides}
    for side in ("ours", "loop", "fast"):
        if "error" in results[side]:
            sys.exit(f"{side} failed: {results[side]['error']}")
    return {**spec, "turns": arguments.turns, **summarize(results)}


def summarize(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Ratios, shares of the matrix rate, and how far the sides' results agree, beside the sides themselves."""
    compiled = results.pop("fast, compiled", {"error": "not tried"})
    fast = {**results["fast"], "variant": "eager"}
    if "error" in compiled:
        fast["compiled"] = compiled["error"]
    elif compiled["seconds"]["median"] < fast["seconds"]["median"]:
        fast = {**compiled, "variant": "compiled", "eager_seconds": fast["seconds"]}
    else:
        fast["compiled_seconds"] = compiled["seconds"]
    results = {**results, "fast": fast}
    ours, rate = results["ours"], max(side.get("matrix_rate", 0) for side in results.values())
    summary: dict[str, Any] = {"device": ours["device"], "flops": ours.get("flops"), "matrix_rate": rate}
    for side in results.values():
        if ours.get("flops"):
            side["share_of_matrix_rate"] = ours["flops"] / side["seconds"]["median"] / rate
    for name in ("loop", "fast"):
        summary[f"ratio_{name}"] = results[name]["seconds"]["median"] / ours["seconds"]["median"]
        summary[f"difference_{name}"] = _difference(ours["result"], results[name]["result"])
        if "again_seconds" in ours:
            summary[f"ratio_{name}_again"] = results[name]["seconds"]["median"] / ours["again_seconds"]
    return {**summary, **results}


def _difference(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest difference of the results of two sides, relative to the largest value of each."""
    differences = []
    for name, mine in ours.items():
        a, b = ([x] if isinstance(x, (int, float)) else x for x in (mine, theirs[name]))
        scale = max(abs(x) for x in b) or 1
        differences.append(max(abs(x - y) for x, y in zip(a, b, strict=True)) / scale)
    return max(differences)


def table(comparison: dict[str, Any]) -> str:
    """The comparison as a person reads it."""
    height, width = comparison["size"]
    rows = [["", "seconds", "min", "max", "peak GiB", "of the matrix rate", "PyTorch / ours"]]
    for name in ("ours", "loop", "fast"):
        side, ratio = comparison[name], comparison.get(f"ratio_{name}")
        share = side.get("share_of_matrix_rate")
        rows.append(
            [f"{name} ({side['variant']})" if name == "fast" else name]
            + [f"{side['seconds'][key]:.2f}" for key in ("median", "min", "max")]
            + [f"{side['peak_gib']:.2f}", f"{100 * share:.0f} %" if share else "-", f"{ratio:.2f}" if ratio else "-"]
        )
    again = ""
    if "again_seconds" in comparison["ours"]:
        ratios = " and ".join(f"{comparison[f'ratio_{name}_again']:.2f} ({name})" for name in ("loop", "fast"))
        again = (
            f"\nours again, with programs kept: {comparison['ours']['again_seconds']:.2f} s, PyTorch / ours {ratios}"
        )
    return (
        f"{comparison['work']}, {comparison['backbone']}, {comparison['batch']} x {height}x{width}, "
        f"{comparison['classes']} classes, {comparison['dtype']}, {comparison['device']}, "
        f"{comparison['turns']} turn{'s' if comparison['turns'] > 1 else ''}\n{aligned(rows)}{again}\n"
        f"results differ by at most {max(comparison['difference_loop'], comparison['difference_fast']):.1e}"
    )


def _main() -> None:
    arguments = parse_arguments()
    comparison = compare(arguments)
    print(table(comparison))
    if arguments.json:
        arguments.json.write_text(f"{json.dumps(comparison, indent=1)}\n")


if __name__ == "__main__":
    _main()
