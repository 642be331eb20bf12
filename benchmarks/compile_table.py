"""What the official recipes need of TPUs, as the TPU compiler says: memory, FLOPs, communication. No TPU is needed.

usage: python -m benchmarks.compile_table [--rows=REGEX] [--minutes=N] [--table_only]

  --rows        only rows whose name matches, such as 'cityscapes.*float32'
  --minutes     nothing starts after N minutes (60); all rows take about an hour on two cores
  --table_only  compiles nothing: writes the table from benchmarks/compile_table.json

Needs libtpu, which `pip install libtpu` brings. Every row is kept in benchmarks/compile_table.json as soon as it is
there, so that the same command goes on where it was stopped; the table goes into docs/performance.md.
"""

import gc
import importlib.metadata
import json
import re
import runpy
import time
from pathlib import Path

import jax
from absl import flags

from benchmarks import docs
from isnet_jax import cli
from isnet_jax.runtime.console import aligned, say
from isnet_jax.training import compilation

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "benchmarks/compile_table.json"
RECIPES = [
    (data, backbone)
    for data in ("ade20k", "coco_stuff", "cityscapes", "lip")
    for backbone in ("resnet50", "resnet101", "resnest101")
]


def plan():
    """Names of rows, the most telling first: program, recipe, dtype, slice, effort."""
    names = [f"{data}-{backbone}" for data, backbone in RECIPES]
    rows = [
        f"{program} {name} {dtype} v5e:2x4 least"
        for program, dtype in (("train", "bfloat16"), ("train", "float32"), ("evaluate", "bfloat16"))
        for name in names
    ]
    rows += [
        f"train cityscapes-resnest101 float32 {topology} least" for topology in ("v4:2x2x1", "v5p:2x2x1", "v6e:2x4")
    ]
    return rows + [f"train ade20k-{backbone} bfloat16 v5e:2x4 full" for backbone in ("resnet50", "resnet101")]


def measure(name):
    """A row as JSON: `compilation.ProgramCost`, with "libtpu"."""
    program, recipe, dtype, topology, effort = name.split()
    data, backbone = recipe.split("-")
    config = runpy.run_path(str(ROOT / "configs" / f"{data}.py"))["get_config"](backbone)
    config.model.dtype = dtype
    devices = compilation.find_devices(topology)
    (report,) = compilation.check(config, devices, [program], full=effort == "full")
    jax.clear_caches()
    gc.collect()
    return report._asdict() | {"devices": len(devices), "libtpu": importlib.metadata.version("libtpu")}


def report_of(row):
    return compilation.ProgramCost(*(row[field] for field in compilation.ProgramCost._fields))


def write_table(rows):
    """The sections compile_train and compile_evaluate of docs/performance.md."""
    for program in compilation.PROGRAMS:
        head = [
            "",
            "images",
            "dtype",
            "slice",
            "effort",
            "GiB",
            "of",
            "TFLOP",
            "GB",
            "ms",
            "images/s",
            "XLA ms",
            "MB",
            "MiB",
            "s",
        ]
        lines = [head]
        for name in plan():
            kind, recipe, dtype, topology, effort = name.split()
            if kind == program and name in rows:
                lines.append([recipe, *_cells(report_of(rows[name]), dtype, topology, effort)])
        if len(lines) > 1:
            section = docs.Section(f"compile_{program}")
            section.tell(aligned(lines))
            section.write()


def _cells(r, dtype, topology, effort):
    def cell(value, scale, form):
        return "-" if value is None else form.format(value * scale)

    reduced = sum(size for _, size in r.collectives.values())
    seconds = r.step_seconds
    return [
        f"{r.images} x {r.size[0]}x{r.size[1]}",
        dtype,
        topology,
        effort,
        cell(r.wanted, 2**-30, "{:.2f}") + ("" if r.fits else " (!)"),
        cell(r.capacity, 2**-30, "{:.2f}"),
        cell(r.flops, 1e-12, "{:.2f}"),
        cell(r.traffic if r.thorough else None, 1e-9, "{:.1f}"),
        cell(seconds, 1e3, "{:.1f}"),
        cell(seconds and r.images / seconds, 1, "{:.0f}"),
        cell(r.estimated_seconds, 1e3, "{:.1f}"),
        cell(reduced, 1e-6, "{:.1f}"),
        cell(r.memory.get("program"), 2**-20, "{:.0f}"),
        cell(r.compile_seconds, 1, "{:.0f}"),
    ]


def _main(_, values):
    rows = json.loads(FILE.read_text()) if FILE.exists() else {}
    started = time.monotonic()
    for name in [] if values.table_only else plan():
        if name in rows or not re.search(values.rows, name):
            continue
        if time.monotonic() - started > 60 * values.minutes:
            say("no time left: the same command goes on")
            break
        rows[name] = measure(name)
        found = report_of(rows[name])
        say(
            f"{time.monotonic() - started:6.0f} s  {name}: {found.wanted / 2**30:.2f} GiB, "
            f"{found.compile_seconds:.0f} s"
        )
        unfinished = FILE.with_suffix(".partial")
        unfinished.write_text(json.dumps(rows, indent=1) + "\n")
        unfinished.replace(FILE)
    write_table(rows)


def _define_flags():
    flags.DEFINE_string("rows", "", "regular expression of rows' names")
    flags.DEFINE_float("minutes", 60, "when to stop")
    flags.DEFINE_boolean("table_only", False, "write the table alone")


if __name__ == "__main__":
    cli.run(_main, __doc__, _define_flags, needs_config=False, resume_hint="where it stopped")
