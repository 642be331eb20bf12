"""A directory of checkpoints, which Orbax writes in the background, with checksums of their arrays."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import orbax.checkpoint as ocp
from etils.epath.gpath import PosixGPath

from isnet_jax.checkpoints import checksums
from isnet_jax.errors import UserError, first_line
from isnet_jax.runtime import distributed

CHECKSUMS = "digest"  # the entry of a checkpoint that holds the checksums of the others


class CheckpointDirectory:
    """Checkpoints in `path`/STEP; a context manager that closes them."""

    def __init__(self, path: Path, keep: int | None = None) -> None:
        """Opens the directory, or creates it. The newest `keep` checkpoints are kept, None: all.

        An older checkpoint is deleted only once the newer one is complete.
        """
        self.path = path
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(LiteralPath(path), options=options)
        # Orbax would reach preemption sync points with a counter of its own, and `distributed.stop_requested` would
        # then never be answered.
        self._manager.reached_preemption = lambda step: False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, step: int, state: Any) -> None:
        """Writes the pytree `state` as checkpoint `step` in the background, unless that checkpoint exists.

        Raises UserError if this checkpoint or the previous one cannot be written.
        """
        if step not in self.steps():
            fields = as_dict(state)
            with self._translating_write_errors():
                entries = {**fields, CHECKSUMS: checksums.checksum_tree(fields)}
                self._manager.save(step, args=ocp.args.StandardSave(entries))

    def check(self) -> None:
        """Raises UserError if a checkpoint could not be written in the background."""
        with self._translating_write_errors():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns once everything saved is on disk; raises UserError as `save` does."""
        with self._translating_write_errors():
            self._manager.wait_until_finished()

    def resume_hint(self) -> str:
        """Where the same command resumes if the next checkpoint cannot be written."""
        steps = self.steps()
        return f"the checkpoint of step {steps[0]}" if steps else "the start"

    @contextlib.contextmanager
    def _translating_write_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds
            if distributed.is_peer_failure(error):
                raise
            raise UserError(
                f"A checkpoint cannot be written to {self.path}: {reason(error)}. Make room, or fix the cause named "
                f"here. The same command then resumes from {self.resume_hint()}."
            ) from error

    def close(self) -> None:
        """Waits for pending writes if possible; their errors are left to `check`, `save` and `wait`."""
        with contextlib.suppress(Exception):
            self._manager.close()


class LiteralPath(PosixGPath):
    """A path for Orbax whose `glob` takes `[`, `*` and `?` for wildcards in the pattern alone, not in the path too."""

    def glob(self, pattern: str) -> "Iterator[LiteralPath]":
        return map(LiteralPath, sorted(Path(self).glob(pattern)))


def as_dict(state: Any) -> dict[str, Any]:
    """The fields of a dataclass or mapping, without those that are None."""
    fields: Mapping[str, Any] = vars(state) if dataclasses.is_dataclass(state) else state
    return {name: value for name, value in fields.items() if value is not None}


def reason(error: Exception) -> str:
    """Why Orbax or TensorStore could not read or write, in one line."""
    return "No space left on device" if "No space left" in str(error) else first_line(error)[:300]
