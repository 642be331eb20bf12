"""Speed, memory and accuracy of the official recipes on one accelerator, compared with PyTorch on the same device.

usage: python -m benchmarks.accelerator [options], from the repository's root

  --output=FILE  results, written after every measurement (docs/performance/accelerator.json; with --quick in /tmp)
  --seconds=N    starts no measurement after N seconds (420), of which PyTorch has the last 120 (or a third), ends one
                 30 s later, and lists the rest as skipped
  --resume       keeps the results in FILE and measures only what was skipped or failed
  --table_only   measures nothing, only writes the tables in docs/performance.md from FILE
  --quick        runs every code path at toy size, in a minute or two on a CPU; docs/performance.md is left alone

docs/performance.md says what is measured and how. Needs neither TensorFlow nor data, and PyTorch only to compare.
If ml_collections is not installed, put its wheel (`pip download --no-deps ml_collections`), unpacked, on PYTHONPATH.
"""

import argparse
import gc
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import accelerator_table
from benchmarks.paths import RESULTS
from benchmarks.recipes import RECIPES
from isnet_jax.runtime.files import atomic_write_text

COMPARED = ("ade20k-resnet50", "cityscapes-resnet50", "lip-resnet101", "ade20k-resnest101")  # with PyTorch
CASES = ("resnet50_150", "resnet18_19", "resnet101_20", "resnest50_182")  # of tests/reference
PACKAGES = ("jax", "jaxlib", "flax", "torch", "nvidia-cudnn-cu13")


def plan(quick: bool) -> list[str]:
    """Names of all measurements, JAX before PyTorch, the most informative first: time may run out."""
    recipes, compared, cases = RECIPES, COMPARED, CASES
    if quick:
        recipes, compared, cases = ["ade20k-resnet18"], ["ade20k-resnet18"], ["resnet18_19"]
    parity = [f"parity {case} {dtype}" for case in cases for dtype in ("float32", "bfloat16")]
    speeds = [f"{kind} {name}" for name in compared for kind in ("train", "infer")]
    names = ["matrix bfloat16", *parity[:2], *speeds, *parity[2:]]
    names += [f"{kind} {name}" for kind in ("train", "infer") for name in recipes]
    return list(dict.fromkeys(names + [f"torch {name}" for name in speeds + parity]))


def measure(backend: ModuleType, name: str, quick: bool) -> dict[str, Any]:
    """One measurement of the plan; an exception becomes its "error"."""
    kind, *args = name.removeprefix("torch ").split()
    try:
        if kind == "matrix":
            return backend.matrix_rate(quick)
        if kind == "parity":
            return backend.parity(*args)
        return backend.speed(*args, training=kind == "train", quick=quick)
    except Exception as error:  # the other measurements are still possible
        return {"error": f"{type(error).__name__}: {str(error).strip()[:500]}"}


def run(framework: str, results: dict[str, Any], path: Path, started: float, deadline: float, quick: bool) -> None:
    """Takes the measurements of "jax" or "torch" in this process until the deadline, and saves each in `path`."""
    backend = importlib.import_module(f"benchmarks.accelerator_{framework}")
    measured, longest = results["measured"], {}
    device, is_accelerator = backend.open_device()
    if framework == "jax" and results.setdefault("device", device) != device:
        sys.exit(f"{path} was measured on {results['device']}, but this device is {device}; leave out --resume.")
    if not is_accelerator and not quick:
        sys.exit(f"{framework} finds no accelerator; --quick runs every code path at toy size on a CPU.")
    save(results, path)
    for name in plan(quick):
        is_torch = name.startswith("torch")
        if is_torch != (framework == "torch") or (name in measured and "error" not in measured[name]):
            continue
        kind, start = name.removeprefix("torch ").split()[0], time.time()
        if start + longest.get(kind, 0) > deadline:
            print(f"{start - started:6.0f} s {name}: skipped, no time left", flush=True)
            continue
        value = measure(backend, name, quick)
        gc.collect()
        rate = measured.get("matrix bfloat16", {}).get("tflops")
        if rate and "gflops_per_image" in value:
            value["share"] = value["images_per_second"] * value["gflops_per_image"] / 1000 / rate
        measured[name], longest[kind] = value, max(longest.get(kind, 0), time.time() - start)
        save(results, path)
        fields = ", ".join(f"{key} {x:.4g}" if isinstance(x, float) else f"{key} {x}" for key, x in value.items())
        print(f"{time.time() - started:6.0f} s {name}: {fields}", flush=True)


def save(results: dict[str, Any], path: Path) -> None:
    """Writes the results as JSON."""
    atomic_write_text(path, json.dumps(results, indent=1) + "\n")


def main(output: Path | None, seconds: float, resume: bool, table_only: bool, quick: bool) -> None:
    """Runs the command with the flags of the usage."""
    output = output or Path(tempfile.gettempdir() if quick else RESULTS) / "accelerator.json"
    if table_only:
        return accelerator_table.write(json.loads(output.read_text()))
    installed = {package.metadata["Name"]: package.version for package in importlib.metadata.distributions()}
    started, spawn = time.time(), multiprocessing.get_context("spawn")
    results = {"measured": {}} if not (resume and output.exists()) else json.loads(output.read_text())
    results |= {"started": started, "versions": {name: installed.get(name) for name in PACKAGES}}
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    deadlines = {"jax": started + seconds - min(120, seconds / 3), "torch": started + seconds}
    if "torch" not in installed:
        deadlines = {"jax": started + seconds}
    for framework, deadline in deadlines.items():  # one process each, so that each has all of the memory
        process = spawn.Process(target=run, args=(framework, results, output, started, deadline, quick))
        process.start()
        process.join(deadline + 30 - time.time())
        process.kill()
        process.join()
        results = json.loads(output.read_text()) if output.exists() else {}
        if results.get("started") != started:
            sys.exit("Nothing was measured.")
        results["skipped"] = [name for name in plan(quick) if name not in results["measured"]]
        save(results, output)
        if not quick:
            accelerator_table.write(results)
    print(f"\n{accelerator_table.render(results)}\n\n{output}, {time.time() - started:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seconds", type=float, default=420)
    for flag in ("--quick", "--resume", "--table_only"):
        parser.add_argument(flag, action="store_true")
    main(**vars(parser.parse_args()))
