"""The log of a run: console lines, a progress bar, and the sinks that keep its numbers and pictures."""

import contextlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import tqdm
from ml_collections import ConfigDict

from isnet_jax.evaluation.results import read_metrics
from isnet_jax.runtime import distributed
from isnet_jax.runtime.console import duration, say
from isnet_jax.training.sinks import METRICS_FILE, MetricsFile, Sink, TensorBoard
from isnet_jax.training.trackers import open_trackers

LOSSES = "auxiliary", "stage1", "stage2", "total"


class Log:
    """The log of one run, from step `first`; only the first process writes and prints.

    Rows that an earlier start logged after `first` are dropped: those steps are about to be repeated.
    """

    def __init__(self, workdir: Path, config: ConfigDict, first: int, total_steps: int):
        self._config, self._total_steps = config, total_steps
        self._active, self._sinks = distributed.is_first(), list[Sink]()
        if self._active:
            self._sinks += [MetricsFile(workdir, first), TensorBoard(workdir, first), *open_trackers(config, workdir)]
        self._bar = tqdm.tqdm(
            total=total_steps,
            initial=first,
            unit="step",
            disable=None if self._active else True,
            leave=False,
            dynamic_ncols=True,
        )
        self._warm = False  # the first step compiles: it is no measure of speed
        self._reset_speed()

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        for sink in self._sinks:
            with contextlib.suppress(OSError):  # on a full disk, the error that ends the run is reported
                sink.close(failed=kind is not None)

    def resume_clock(self) -> None:
        """Leaves evaluations and checkpoints out of the measured speed."""
        self._clock = time.perf_counter()

    def on_metrics(self, step: int, metrics: Mapping[str, float], waited: float) -> None:
        """Logs every `run.log_every_steps` steps. metrics: of step `step`; waited: seconds that it waited for data."""
        now = time.perf_counter()
        self._bar.update(step - self._bar.n)
        if self._warm:
            self._seconds += now - self._clock
            self._waited += waited
            self._steps += 1
        self._warm, self._clock = True, now
        if self._active and (step % self._config.run.log_every_steps == 0 or step == self._total_steps):
            self._report(step, metrics)
            self._reset_speed()

    def _reset_speed(self) -> None:
        self._seconds = self._waited = 0.0
        self._steps = 0

    def _report(self, step: int, metrics: Mapping[str, float]) -> None:
        values = {f"loss/{name}": metrics[name] for name in LOSSES}
        values |= {"grad_norm": metrics["grad_norm"], "lr": metrics["lr"]}
        speed = ""
        if self._steps:
            images_per_second = self._steps / self._seconds * self._config.train.global_batch_size
            data_wait = self._waited / self._seconds
            values |= {"images_per_second": images_per_second, "data_wait_share": data_wait}
            eta = (self._total_steps - step) * self._seconds / self._steps
            speed = f"  {images_per_second:.1f} img/s  data wait {100 * data_wait:.0f} %  ETA {duration(eta)}"
        say(
            f"step {step:>{len(str(self._total_steps))}}/{self._total_steps}  loss {metrics['total']:.4f} "
            f"(auxiliary {metrics['auxiliary']:.3f}, stage 1 {metrics['stage1']:.3f}, stage 2 "
            f"{metrics['stage2']:.3f})  lr {metrics['lr']:.2e}{speed}"
        )
        self.write(step, values)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds {name: number} at `step` to all sinks.

        Non-finite numbers, such as undefined scores, are null in metrics.jsonl and left out elsewhere.
        """
        finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        for sink in self._sinks:
            sink.scalars(step, finite)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Adds RGB pixels, uint8 (H, W, 3), to all sinks but metrics.jsonl."""
        for sink in self._sinks:
            sink.picture(step, name, pixels)


def has_evaluation(workdir: Path, step: int) -> bool:
    """Whether an evaluation at `step` is logged in the workdir."""
    return step in evaluated_steps(workdir)


def evaluated_steps(workdir: Path) -> set[int]:
    """The steps of the evaluations that are logged in the workdir."""
    path = workdir / METRICS_FILE
    rows = read_metrics(path) if path.exists() else []
    return {row["step"] for row in rows if "weights/miou" in row}
