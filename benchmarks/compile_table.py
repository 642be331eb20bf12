"""What the official recipes need of TPUs according to the TPU compiler: memory, FLOPs, communication.

usage: python -m benchmarks.compile_table [--rows=REGEX] [--minutes=N] [--table_only]

  --rows        only rows whose name matches, such as 'cityscapes.*float32'
  --minutes     starts no compilation after N minutes (60). On two cores, all rows of least effort take 45 minutes, and
                each row of full effort half an hour
  --table_only  compiles nothing, only writes the tables from docs/performance/compile_table.json

Needs libtpu (`pip install libtpu`), but no TPU. Each row is saved in docs/performance/compile_table.json once it is
compiled, and the same command resumes with the missing rows. The tables go into docs/performance.md.
"""

import gc
import importlib.metadata
import json
import re
import time
from typing import Any

import jax
from absl import flags

from benchmarks import docs
from benchmarks.paths import RESULTS
from benchmarks.recipes import RECIPES, load_config
from isnet_jax import cli
from isnet_jax.runtime.console import aligned, say
from isnet_jax.runtime.files import atomic_write_text
from isnet_jax.training import compilation
from isnet_jax.training.compilation import ProgramCost

FILE = RESULTS / "compile_table.json"
COLUMNS = "images,dtype,slice,effort,GiB,of,TFLOP,GB,ms,images/s,XLA ms,MB,MiB,s".split(",")


def plan() -> list[str]:
    """Names of the rows, the most informative first: program, recipe, dtype, slice, effort."""
    rows = [
        f"{program} {recipe} {dtype} v5e:2x4 least"
        for program, dtype in (("train", "bfloat16"), ("train", "float32"), ("evaluate", "bfloat16"))
        for recipe in RECIPES
    ]
    rows += [
        f"train cityscapes-resnest101 float32 {topology} least" for topology in ("v4:2x2x1", "v5p:2x2x1", "v6e:2x4")
    ]
    return rows + [f"train ade20k-{backbone} bfloat16 v5e:2x4 full" for backbone in ("resnet50", "resnet101")]


def measure(name: str) -> dict[str, Any]:
    """A row as JSON: the fields of `compilation.ProgramCost`, "devices" and "libtpu"."""
    program, recipe, dtype, topology, effort = name.split()
    config = load_config(recipe)
    config.model.dtype = dtype
    devices = compilation.find_devices(topology)
    (cost,) = compilation.check(config, devices, [program], full=effort == "full")
    jax.clear_caches()
    gc.collect()
    return cost._asdict() | {"devices": len(devices), "libtpu": importlib.metadata.version("libtpu")}


def parse_row(row: dict[str, Any]) -> ProgramCost:
    """The cost in a row of the JSON file."""
    return ProgramCost(*(row[field] for field in ProgramCost._fields))


def write_tables(rows: dict[str, dict[str, Any]]) -> None:
    """Writes the sections compile_train and compile_evaluate of docs/performance.md."""
    for program in compilation.PROGRAMS:
        lines = [["", *COLUMNS]]
        for name in plan():
            kind, recipe, dtype, topology, effort = name.split()
            if kind == program and name in rows:
                lines.append([recipe, *_cells(parse_row(rows[name]), dtype, topology, effort)])
        if len(lines) > 1:
            section = docs.Section(f"compile_{program}")
            section.say(aligned(lines))
            section.write(None)


def _cells(cost: ProgramCost, dtype: str, topology: str, effort: str) -> list[str]:
    """The row under `COLUMNS`."""

    def cell(value: float | None, scale: float, form: str) -> str:
        return "-" if value is None else form.format(value * scale)

    exchanged = sum(size for _, size in cost.collectives.values())
    seconds = cost.step_seconds
    return [
        f"{cost.images} x {cost.size[0]}x{cost.size[1]}",
        dtype,
        topology,
        effort,
        cell(cost.wanted, 2**-30, "{:.2f}") + ("" if cost.fits else " (!)"),
        cell(cost.capacity, 2**-30, "{:.2f}"),
        cell(cost.flops, 1e-12, "{:.2f}"),
        cell(cost.traffic if cost.thorough else None, 1e-9, "{:.1f}"),
        cell(seconds, 1e3, "{:.1f}"),
        cell(seconds and cost.images / seconds, 1, "{:.0f}"),
        cell(cost.estimated_seconds, 1e3, "{:.1f}"),
        cell(exchanged, 1e-6, "{:.1f}"),
        cell(cost.memory.get("program"), 2**-20, "{:.0f}"),
        cell(cost.compile_seconds, 1, "{:.0f}"),
    ]


def _main(_: None, flag_values: Any) -> None:
    rows = json.loads(FILE.read_text()) if FILE.exists() else {}
    started = time.monotonic()
    for name in [] if flag_values.table_only else plan():
        if name in rows or not re.search(flag_values.rows, name):
            continue
        if time.monotonic() - started > 60 * flag_values.minutes:
            say("no time left; the same command resumes with the missing rows")
            break
        rows[name] = measure(name)
        atomic_write_text(FILE, json.dumps(rows, indent=1) + "\n")
        cost = parse_row(rows[name])
        say(f"{time.monotonic() - started:6.0f} s  {name}: {cost.wanted / 2**30:.2f} GiB, {cost.compile_seconds:.0f} s")
    write_tables(rows)


def _define_flags() -> None:
    flags.DEFINE_string("rows", "", "regular expression of the names of rows")
    flags.DEFINE_float("minutes", 60, "when to stop")
    flags.DEFINE_boolean("table_only", False, "only write the tables")


if __name__ == "__main__":
    cli.run(_main, __doc__, _define_flags, needs_config=False, resume_hint="with the missing rows")
