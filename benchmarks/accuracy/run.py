"""Trains ISNet in JAX and in PyTorch on the same batches, from the same weights, and compares the results.

usage: python -m benchmarks.accuracy.run --data=camvid --source=DIR [--seeds=0,1,2] [--ablation] [--variants]
                                        [--runs=DIR] [--jobs=N]
       python -m benchmarks.accuracy.run --data=people ...
       python -m benchmarks.accuracy.run --smoke

  --data      camvid (DIR has train/, val/ and test/), or people, which are drawn
  --seeds     of weights, batches and dropout: a run of each framework for each (0,1,2)
  --ablation  also trains our network without either context module, and without both
  --variants  also trains it with the modern recipe, and fine-tunes it from drawn scenes
  --runs      where everything is kept (runs/accuracy): run the same command again to resume
  --jobs      runs at a time, each with its share of the cores (1)
  --smoke     a few steps on drawn people in both frameworks, from scratch, recorded nowhere

Each finished run is recorded in benchmarks/accuracy/results.json; what is recorded there is not run again.
`python -m benchmarks.accuracy.report` writes docs/accuracy.md from it.
"""

import argparse
import concurrent.futures
import fcntl
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy import drawn_people, records
from benchmarks.accuracy.divergence import Divergence
from benchmarks.accuracy.runs import ABLATIONS, OURS, THEIRS, VARIANTS, Experiment, Run, python
from benchmarks.paths import ROOT
from isnet_jax.runtime.console import say

DATA_SETS = "camvid", "people"
SMOKE = {  # changes of the people's config
    "train.epochs": 4,
    "model.dropout": 0.0,
}
SMOKE_SPLITS = {"train": 48, "val": 16}


class Cores:
    """Shares of this machine's cores, for runs at the same time."""

    def __init__(self, jobs: int):
        available = sorted(os.sched_getaffinity(0))
        self._failed = threading.Event()
        self._free: queue.Queue[list[int]] = queue.Queue()
        for i in range(jobs):
            self._free.put(available[i::jobs] or available)

    def run(self, commands: Sequence[Sequence[str]], log: Path) -> None:
        """Runs commands one after the other on a free share, their output appended to `log`.

        Raises RuntimeError if one fails, if one of another call has failed, or if a process of an earlier call still
        runs.
        """
        cores = self._free.get()
        try:
            for command in commands:
                if self._failed.is_set():
                    raise RuntimeError(f"{' '.join(command)} was not started, since another command failed")
                with log.open("ab") as file:  # locked until the child exits, even if this process is killed
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    args = ["taskset", "--cpu-list", ",".join(map(str, cores)), *command]
                    status = subprocess.run(args, cwd=ROOT, stdout=file, stderr=file).returncode
                if status:
                    self._failed.set()
                    last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
                    raise RuntimeError(f"{' '.join(command)}: status {status}; {log} ends with: {last}")
        except BlockingIOError:
            raise RuntimeError(f"a process that writes {log} still runs: wait, or kill it") from None
        finally:
            self._free.put(cores)


def pretrain(experiment: Experiment, seed: int, cores: Cores) -> None:
    """Makes the weights that the runs of a seed start from."""
    if not experiment.backbone(seed).exists():
        cores.run(experiment.pretraining(seed), experiment.folder / f"pretraining-{seed}.log")


def train(task: Run | Divergence, cores: Cores) -> None:
    """Does what is left of a task."""
    started = time.monotonic()
    task.experiment.claim()
    cores.run(task.remaining(), task.experiment.folder / f"{task.name}.log")
    task.experiment.claim()  # the config file may have been edited meanwhile
    minutes = (time.monotonic() - started) / 60
    say(f"{task.experiment.data} {task.name}: {task.summary()}" + (f", {minutes:.0f} min" if minutes > 1 else ""))


def compare(tasks: Sequence[Run | Divergence], jobs: int, results: Path) -> dict[str, Any]:
    """Does the tasks of an experiment that `results` does not hold, in order, records each when it is done, and prints
    and returns all records.
    """
    experiment, cores = tasks[0].experiment, Cores(jobs)
    missing = [task for task in tasks if not records.is_recorded(results, task)]
    experiment.claim()
    prepare = python("isnet_jax.prepare", *experiment.flags(0, {}))
    cores.run([prepare], experiment.folder / "prepare.log")
    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    try:
        list(pool.map(lambda seed: pretrain(experiment, seed, cores), sorted({task.seed for task in missing})))
        pending = {pool.submit(train, task, cores): task for task in missing}
        for future in concurrent.futures.as_completed(pending):
            future.result()
            records.add(results, pending[future])
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    entry = records.load(results)[experiment.data]
    say(records.comparison(entry))
    return entry


def smoke() -> None:
    """Both frameworks on a few people, a few steps, from scratch."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drawn_people.write(folder / "source", SMOKE_SPLITS)
        experiment = Experiment("people", folder / "people", folder / "source", SMOKE, pretrained_on="")
        runs = [Run(experiment, kind, seed=0) for kind in (OURS, THEIRS)]
        entry = compare(runs, 1, folder / "results.json")
    first = [entry["runs"][run.name]["first_loss"] for run in runs]
    say(f"loss of the first step: isnet_jax {first[0]:.6f}, PyTorch {first[1]:.6f}")


def main(data: str, source: Path | None, seeds: str, ablation: bool, variants: bool, runs: Path, jobs: int) -> None:
    """Runs the command with the flags of the usage."""
    folder = runs.resolve() / data
    if data == "people":
        source = folder / "source"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "source.lock").open("w") as lock:  # another command may draw them now
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not source.exists():
                drawn_people.write(source)
    if not source:
        raise RuntimeError("--source=DIR is missing")
    experiment = Experiment(data, folder, source.resolve(), {})
    numbers = list(dict.fromkeys(map(int, seeds.split(","))))
    tasks: list[Run | Divergence] = [Run(experiment, kind, seed) for seed in numbers for kind in (OURS, THEIRS)]
    tasks.append(Divergence(experiment, numbers[0]))
    kinds = [*(ABLATIONS if ablation else ()), *(VARIANTS if variants else ())]
    tasks += [Run(experiment, kind, seed) for seed in numbers for kind in kinds]
    compare(tasks, max(1, jobs), records.FILE)


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"  # where PyTorch trains
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA_SETS, default="camvid")
    parser.add_argument("--source", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--jobs", type=int, default=1)
    try:
        smoke() if sys.argv[1:] == ["--smoke"] else main(**vars(parser.parse_args()))
    except (RuntimeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command resumes")
