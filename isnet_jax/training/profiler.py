"""A trace of a few train steps, for XProf (TensorBoard's profiler) and Perfetto."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

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

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Surrounds the train step after `step` steps."""
        if self._begin <= step < self._end and not self._tracing and distributed.is_first():
            jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if self._tracing and step + 1 == self._end:
            self.stop()

    def stop(self) -> None:
        """Ends a trace, if one is under way, and says where it is."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            say(f"trace of the train steps, for XProf and Perfetto: {self._directory}")

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
