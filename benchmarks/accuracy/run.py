"""Trains ISNet in JAX and in PyTorch on the same batches, from the same weights, and compares the results.

usage: python -m benchmarks.accuracy.run --data=camvid --source=DIR [--seeds=0,1,2] [--ablation] [--runs=DIR] [--jobs=N]
       python -m benchmarks.accuracy.run --data=people ...
       python -m benchmarks.accuracy.run --smoke

  --data      camvid (DIR has train/, val/ and test/), or people, which are drawn
  --seeds     of weights, batches and dropout: a run of each framework for each (0,1,2)
  --ablation  also trains our network without its context modules
  --runs      where everything is kept (runs/accuracy): run the same command again to resume
  --jobs      runs at a time, each with its share of the cores (1)
  --smoke     a few steps on drawn people in both frameworks, from scratch, recorded nowhere

Each finished run is recorded in benchmarks/accuracy/results.json; `python -m benchmarks.accuracy.report` writes
docs/accuracy.md from it.
"""

import argparse
import concurrent.futures
import os
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy import drawn_people, records
from benchmarks.accuracy.parting import Parting
from benchmarks.accuracy.runs import ABLATIONS, OURS, THEIRS, Place, Run, python
from benchmarks.paths import ROOT
from isnet_jax.runtime.console import say

DATA_SETS = "camvid", "people"
SMOKE = {  # changes of the people's config
    "train.epochs": 4,
    "augment.resize": "(72,72)",
    "augment.crop_size": "(64,64)",
    "test.resize": "(64,64)",
}
SMOKE_SPLITS = {"train": 48, "val": 16}


class Cores:
    """Shares of this machine's cores, for runs at the same time."""

    def __init__(self, jobs: int):
        available = sorted(os.sched_getaffinity(0))
        self._free: queue.Queue[list[int]] = queue.Queue()
        for i in range(jobs):
            self._free.put(available[i::jobs] or available)

    def run(self, commands: Sequence[Sequence[str]], log: Path) -> None:
        """Runs commands one after the other on a free share, their output appended to `log`; raises RuntimeError."""
        cores = self._free.get()
        try:
            for command in commands:
                with log.open("ab") as file:
                    words = ["taskset", "--cpu-list", ",".join(map(str, cores)), *command]
                    status = subprocess.run(words, cwd=ROOT, stdout=file, stderr=file).returncode
                if status:
                    last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
                    raise RuntimeError(f"{' '.join(command)}: status {status}; {log} ends with: {last}")
        finally:
            self._free.put(cores)


def train(task: Run | Parting, cores: Cores) -> None:
    """Does what is left of a task."""
    started = time.monotonic()
    if not task.is_done:
        cores.run(task.commands(), task.place.folder / f"{task.name}.log")
    minutes = (time.monotonic() - started) / 60
    say(f"{task.place.data} {task.name}: {task.summary()}" + (f", {minutes:.0f} min" if minutes > 1 else ""))


def compare(place: Place, seeds: Sequence[int], ablation: bool, parting: bool, jobs: int, results: Path) -> None:
    """Everything about a data set, most important first; each run is recorded when it is done."""
    cores = Cores(jobs)
    tasks: list[Run | Parting] = [Run(place, kind, seed) for seed in seeds for kind in (OURS, THEIRS)]
    tasks += [Parting(place, seeds[0])] * parting
    tasks += [Run(place, kind, seed) for seed in seeds for kind in ABLATIONS] * ablation
    place.folder.mkdir(parents=True, exist_ok=True)
    cores.run([python("isnet_jax.prepare", *place.flags(seeds[0], {}))], place.folder / "prepare.log")
    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    try:
        pending = {pool.submit(train, task, cores): task for task in tasks}
        for future in concurrent.futures.as_completed(pending):
            future.result()
            task = pending[future]
            if isinstance(task, Run):
                records.add_run(results, task)
            else:
                records.add_parting(results, place.data, task.curves())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    say(records.comparison(records.load(results)[place.data]))


def smoke() -> None:
    """Both frameworks on a few people, a few steps, from scratch."""
    with tempfile.TemporaryDirectory() as folder:
        drawn_people.write(Path(folder) / "source", SMOKE_SPLITS)
        place = Place("people", Path(folder) / "people", Path(folder) / "source", SMOKE)
        compare(place, [0], ablation=False, parting=False, jobs=1, results=Path(folder) / "results.json")


def main(data: str, source: Path | None, seeds: str, ablation: bool, runs: Path, jobs: int) -> None:
    """Runs the command with the flags of the usage."""
    folder = runs.resolve() / data
    if data == "people":
        source = folder / "source"
        if not source.exists():
            drawn_people.write(source)
    if not source:
        raise SystemExit("error: --source=DIR is missing")
    place = Place(data, folder, source.resolve(), {})
    compare(place, list(map(int, seeds.split(","))), ablation, True, jobs, records.FILE)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA_SETS, default="camvid")
    parser.add_argument("--source", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--jobs", type=int, default=1)
    try:
        smoke() if sys.argv[1:] == ["--smoke"] else main(**vars(parser.parse_args()))
    except RuntimeError as error:
        sys.exit(f"error: {error}")
