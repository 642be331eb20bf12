"""Seconds of a network and of its exports for one image, on the CPU of this machine.

usage: python -m benchmarks.export [--recipe=ade20k-resnet50] [--size=HxW] [--turns=N] [--output=FILE.json] [--write]

  --write  writes the table of docs/export.md, and docs/performance/export.json

The weights are random, which changes no speed. Each turn runs every contestant once, so that other work on the machine
slows all of them alike; the first, which compiles, is not counted. CPU seconds, of all cores together, depend little on
other work.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from benchmarks import docs
from benchmarks.paths import RESULTS, ROOT
from benchmarks.recipes import load_config
from benchmarks.reference import random_variables
from benchmarks.workload import cpu_name, random_batch
from isnet_jax.exports import formats
from isnet_jax.exports.program import OUTPUTS, image_spec, make_program
from isnet_jax.models.isnet import create_model
from isnet_jax.runtime import compiler, sharding
from isnet_jax.runtime.console import aligned

SCORES = "argmax"


def contestants(recipe: str, size: tuple[int, int], folder: Path) -> dict[str, Callable[[np.ndarray], Any]]:
    """{name: function of an image uint8 (1, H, W, 3)}: the network as `predict` compiles it, and its exports."""
    model = create_model(load_config(recipe).model)
    variables = random_variables(model)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    network = jax.jit(make_program(model, variables, SCORES), compiler_options=compiler.options(mesh))
    functions: dict[str, Callable[[np.ndarray], Any]] = {
        "network": lambda image: jax.block_until_ready(network(image)[OUTPUTS[SCORES]])
    }
    for kind, suffix in formats.SUFFIXES.items():
        path = folder / f"{kind}{suffix}"
        formats.write(kind, path, make_program(model, variables, SCORES), image_spec(size), {})
        run = formats.open_to_run(kind, path)
        functions[kind] = lambda image, run=run: run(image, [OUTPUTS[SCORES]])
    return functions


def measure(recipe: str, size: tuple[int, int], turns: int) -> dict[str, Any]:
    """Facts of the machine, the medians of each contestant, and its (seconds, CPU seconds) in each turn."""
    image = random_batch(size, 1, 2)[0]
    with tempfile.TemporaryDirectory() as folder:
        functions = contestants(recipe, size, Path(folder))
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
        for _ in range(turns + 1):
            for name, function in functions.items():
                start = time.perf_counter(), time.process_time()
                function(image)
                times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {
        "recipe": recipe,
        "size": size,
        "scores": SCORES,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "median": {
            name: {key: statistics.median(column) for key, column in zip(("seconds", "cpu_seconds"), zip(*rows[1:]))}
            for name, rows in times.items()
        },
        "turns": {name: rows[1:] for name, rows in times.items()},
    }


def table(results: dict[str, Any]) -> str:
    """The lines of docs/export.md."""
    rows = [["", "seconds", "CPU seconds"]]
    for name, medians in results["median"].items():
        rows.append([name, *(f"{medians[key]:.2f}" for key in ("seconds", "cpu_seconds"))])
    height, width = results["size"]
    title = f"{results['recipe']}, one image of {height}x{width}, {results['cpu']}, {results['cores']} cores"
    load = f"medians of {len(results['turns']['network'])} turns; the load of the machine was {results['load']:.0f}"
    return docs.as_code([title, load, "", *aligned(rows).splitlines()])


def main(recipe: str, size: str, turns: int, output: str | None, write: bool) -> None:
    """Runs the command with the flags of the usage."""
    height, width = map(int, size.split("x"))
    results = measure(recipe, (height, width), turns)
    text = json.dumps(results, indent=1) + "\n"
    print(text, end="")
    for path in filter(None, (output, RESULTS / "export.json" if write else None)):
        Path(path).write_text(text)
    if write:
        docs.write_section(ROOT / "docs/export.md", "export", table(results))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="ade20k-resnet50")
    parser.add_argument("--size", default="512x512", help="HEIGHTxWIDTH")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", help="a JSON file")
    parser.add_argument("--write", action="store_true")
    main(**vars(parser.parse_args()))
