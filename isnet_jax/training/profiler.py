"""A trace of a few train steps, for XProf (TensorBoard's profiler) and Perfetto."""

from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from isnet_jax.runtime import distributed
from isnet_jax.runtime.console import say

WARM_UP_STEPS = 3  # before the trace: compilation, and a filled pipeline


class Profiler:
    """Traces `num_steps` steps of a run that starts at step `first`, after a warm-up; 0 traces nothing.

    The first process writes the trace into `directory`.
    """

    def __init__(self, directory: Path, first: int, num_steps: int):
        self._directory, self._begin, self._end = directory, first + WARM_UP_STEPS, first + WARM_UP_STEPS + num_steps
        self._tracing = False
        self._pending = num_steps > 0 and distributed.is_first()

    def before_step(self, step: int, state: Any) -> None:
        """Begins or ends the trace where it is due; to be called before each step.

        step: the number of steps taken; state: what they return. The devices finish them first, so that the trace holds
        whole steps.
        """
        if self._pending and step >= self._begin:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True)
            self._pending, self._tracing = False, True
        elif self._tracing and step >= self._end:
            jax.block_until_ready(state)
            self._stop()

    def pause(self, state: Any) -> None:
        """Ends a trace where training pauses: evaluations and checkpoints are no train steps."""
        if self._tracing:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        self._tracing = False
        jax.profiler.stop_trace()
        say(f"trace of the train steps, for XProf and Perfetto: {self._directory}")

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tracing:
            self._stop()
        elif self._pending and error is None:
            say(f"no trace was made: the run took no more than {WARM_UP_STEPS} steps, which come before it")
