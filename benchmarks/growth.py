"""How the cost of a step grows with image area, classes, batch and devices, on the CPU of this machine.

usage: python -m benchmarks.growth [--backbone=resnet50] [--quick] [--write]

  --quick  toy sizes, in a minute or two
  --write  writes docs/performance.md, its raw numbers and its plot

Seconds are the shortest of three steps. Memory is what the compiled program asks for (XLA's temporaries), per device.
An exponent of 1 is linear growth: 2 would be quadratic, 0 constant. It is fitted over all points; "at the end" is that
between the two largest. Several devices share the cores of one CPU, so only their memory and communication are
reported; the global batch is the same for all of them.
"""

import itertools
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from benchmarks import docs
from benchmarks.paths import IMAGES
from benchmarks.reference import random_variables
from benchmarks.train_program import make_train_program
from benchmarks.workload import cpu_name, random_batch
from isnet_jax import config as configs
from isnet_jax.evaluation.loop import make_eval_step
from isnet_jax.models.isnet import ISNet
from isnet_jax.runtime import roofline, sharding
from isnet_jax.runtime.console import aligned

PROGRAMS = "train", "evaluate"
QUANTITIES = {"seconds": "s", "memory": "GiB", "flops": "TFLOP", "communication": "GB"}
SCALES = {"seconds": 1, "memory": 2**-30, "flops": 1e-12, "communication": 1e-9}


def axes(quick: bool) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """For each axis its points: (position, arguments of `measure`)."""
    side, classes = (32, (19, 150)) if quick else (256, (19, 60, 150, 400, 1000))
    half = side // 2
    sizes = [(half, half), (half, side), (side, side), (side, 2 * side), (2 * side, 2 * side), (2 * side, 4 * side)]
    small = {"size": (half, half), "batch": 8}
    counts = (1, 2, 4, 8)
    return {
        "area": [(height * width, {"size": (height, width)}) for height, width in sizes[: 3 if quick else None]],
        "classes": [(count, {"size": (side, side), "classes": count}) for count in classes],
        "batch": [(count, {**small, "batch": count}) for count in counts],
        "devices": [(count, {**small, "devices": count}) for count in counts],
    }


def measure(
    backbone: str, program: str, size: tuple[int, int], classes: int = 150, batch: int = 1, devices: int = 1
) -> dict[str, float]:
    """Seconds of a step in float32, FLOPs of all devices, and of each its bytes of memory and of communication."""
    config, model = configs.default(backbone), ISNet(backbone, classes)
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    images, labels = random_batch(size, batch, min(classes, 255))
    if program == "train":
        step, state, arrays = make_train_program(config, model, random_variables(model), images, labels, mesh)
        traced = step.trace(state, arrays)
    else:
        state = jax.device_put(random_variables(model), sharding.replicated(mesh))
        sizes = np.tile(np.array(size, np.int32), (batch, 1))
        named = {"image": images, "label": labels, "image_size": sizes, "label_size": sizes}
        arrays = sharding.to_devices(named, mesh)
        traced = make_eval_step(model, mesh, configs.inference_settings(config)).trace(state, arrays, False)
    compiled, seconds = traced.lower().compile(), []
    for _ in range(4):  # the first of which is not counted
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(state, arrays))
        seconds.append(time.perf_counter() - start)
        state = result[0] if program == "train" else state
    collectives = roofline.traffic(compiled.as_text()).collectives
    return {
        "seconds": min(seconds[1:]),
        "memory": compiled.memory_analysis().temp_size_in_bytes,
        "flops": roofline.count_flops(traced.jaxpr.jaxpr).model,
        "communication": sum(size for _, size in collectives.values()),
    }


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """The slope of the line through (log position, log value); None without two values above 0."""
    points = [(position, value) for position, value in points if value > 0]
    if len(points) < 2:
        return None
    x, y = np.log(np.array(points)).T
    return float(np.polyfit(x, y, 1)[0])


def summarize(results: dict[str, dict[str, list[dict[str, float]]]]) -> list[list[str]]:
    """Rows of a table: for each axis and program, the range of each quantity and its exponents."""
    rows = [["axis", "program", "quantity", "from", "to", "exponent", "at the end"]]
    for (axis, programs), quantity in itertools.product(results.items(), QUANTITIES):
        for program, points in programs.items():
            curve = [(point["at"], point[quantity]) for point in points if point[quantity] > 0]
            slopes = exponent(curve), exponent(curve[-2:])
            if slopes[0] is None or axis == "devices" and quantity in ("seconds", "flops"):
                continue
            ends = [f"{curve[i][1] * SCALES[quantity]:.3g} {QUANTITIES[quantity]}" for i in (0, -1)]
            span = f"{axis} {curve[0][0]:,} to {curve[-1][0]:,}"
            rows.append([span, program, quantity, *ends, *("-" if x is None else f"{x:.2f}" for x in slopes)])
    return rows


def plot(results: dict[str, dict[str, list[dict[str, float]]]], title: str) -> None:
    """Draws seconds and memory over each axis, with dotted lines of linear growth, as docs/images/growth.png."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    figure, grid = pyplot.subplots(2, len(results), figsize=(3 * len(results), 5.4), layout="constrained")
    for column, (axis, programs) in enumerate(results.items()):
        for row, quantity in enumerate(("seconds", "memory")):
            panel = grid[row][column]
            if (axis, quantity) == ("devices", "seconds"):  # they share the cores
                panel.set_axis_off()
                continue
            for program, points in programs.items():
                x, y = (np.array([point[key] for point in points]) for key in ("at", quantity))
                y = y * SCALES[quantity]
                (line,) = panel.loglog(x, y, "o-", label=program)
                linear = y[0] / (x / x[0]) if axis == "devices" else y[0] * x / x[0]
                panel.loglog(x, linear, ":", color=line.get_color(), linewidth=1)
            panel.set_xticks(x, [f"{value:,}" for value in x], rotation=30, fontsize=7)
            panel.minorticks_off()
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.grid(alpha=0.3)
            panel.set_xlabel({"area": "pixels of an image"}.get(axis, axis))
            panel.set_ylabel(f"{quantity} ({QUANTITIES[quantity]})" if column == 0 else "")
    grid[0][0].legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(IMAGES / "growth.png", dpi=110)


def measure_axis(backbone: str, axis: str, quick: bool) -> dict[str, list[dict[str, float]]]:
    """{program: points} of an axis."""
    results: dict[str, list[dict[str, float]]] = {}
    for program, (position, arguments) in itertools.product(PROGRAMS, axes(quick)[axis]):
        point = {"at": position, **measure(backbone, program, **arguments)}
        results.setdefault(program, []).append(point)
        shown = ", ".join(f"{point[key] * SCALES[key]:.3g} {unit}" for key, unit in QUANTITIES.items())
        print(f"{axis} {position:,}, {program}: {shown}", flush=True)
        jax.clear_caches()
    return results


def main(backbone: str, quick: bool, write: bool) -> None:
    """Runs the command with the flags of the usage."""
    results = {}
    for axis in axes(quick):  # each in a process of its own: XLA starts as many threads as devices
        os.environ["JAX_NUM_CPU_DEVICES"] = "8" if axis == "devices" else "1"
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            results[axis] = pool.submit(measure_axis, backbone, axis, quick).result()
    section = docs.Section("growth")
    section.say(f"{backbone}, float32, {cpu_name()}, {os.cpu_count()} cores\n")
    section.say(aligned(summarize(results)))
    if write:
        section.write({"backbone": backbone, "cpu": cpu_name(), "cores": os.cpu_count(), "growth": results})
        plot(results, f"Cost of a step, ISNet on {backbone}, float32 (dotted: linear)")


if __name__ == "__main__":
    main(**docs.parse_args(__doc__))
