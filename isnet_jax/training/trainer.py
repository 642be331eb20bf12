"""Runs train steps, one ahead of the metrics that are checked and logged."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from isnet_jax.checkpoints.manager import Checkpoints
from isnet_jax.errors import UserError
from isnet_jax.runtime import distributed, sharding
from isnet_jax.runtime.interrupts import StopRequested
from isnet_jax.training.log import Log
from isnet_jax.training.profiler import Profiler
from isnet_jax.training.step import TrainState

ON_DEVICE = "image", "label", "window"  # of a batch


class Trainer:
    """Trains from `state` on; `state` is always that of the last step done."""

    def __init__(
        self,
        train_step: Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, Mapping[str, Any]]],
        state: TrainState,
        batches: Iterator[dict[str, np.ndarray]],
        mesh: Mesh,
        example_name: Callable[[int], str],
        checkpoints: Checkpoints,
        log: Log,
        profiler: Profiler,
    ):
        """batches: `pipeline.train_batches` from the state's step on; example_name: of an index in a batch."""
        self.state = state
        self._train_step, self._batches, self._mesh, self._example_name = train_step, batches, mesh, example_name
        self._checkpoints, self._log, self._profiler = checkpoints, log, profiler

    def run_until(self, stop: int) -> TrainState:
        """Trains until step `stop`; returns the state.

        Metrics are fetched a step late, so that the device always has the next step queued; those of all steps are
        processed when this returns. Raises StopRequested between two steps, on all processes, after a signal, and
        UserError if a loss is not finite or a checkpoint could not be written.
        """
        self._log.resume_clock()
        pending, step = None, int(self.state.step)
        with jax.transfer_guard("disallow"):  # a hidden transfer would stall every step
            while step < stop:
                if distributed.stop_requested():
                    break
                self._profiler.before_step(step, self.state)
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    started = time.perf_counter()
                    batch = next(self._batches)
                    waited = time.perf_counter() - started
                    on_device = sharding.to_devices({name: batch[name] for name in ON_DEVICE}, self._mesh)
                    self.state, metrics = self._train_step(self.state, on_device)
                step += 1
                if pending:
                    self._process(*pending)
                pending = step, metrics, batch["index"], waited
            if pending:
                self._process(*pending)
            self._profiler.pause(self.state)
        if step < stop:
            raise StopRequested
        return self.state

    def _process(self, step: int, metrics: Mapping[str, Any], indices: np.ndarray, waited: float) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not np.isfinite([values["total"], values["grad_norm"]]).all():
            raise UserError(self._non_finite(step, values, indices))
        self._log.on_metrics(step, values, waited)
        self._checkpoints.check()

    def _non_finite(self, step: int, values: Mapping[str, float], indices: np.ndarray) -> str:
        """The error message for a non-finite loss or gradient."""
        saved = self._checkpoints.steps()  # the newest first
        before = (
            f"The last checkpoint, of step {saved[0]}, is from before it" if saved else "Nothing was saved before it"
        )
        names = ", ".join(map(self._example_name, indices.tolist()))
        part = "the batch" if distributed.is_single_process() else "this process's part of the batch"
        return (
            f"At step {step} the loss is {values['total']} and the norm of its gradient {values['grad_norm']}; {part} "
            f"held {names}. {before}. Look at those examples, or lower config.train.base_lr and add "
            "--resume_with_changes."
        )
