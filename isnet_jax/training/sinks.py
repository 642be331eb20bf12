"""Where the numbers and pictures of a run are kept: metrics.jsonl and TensorBoard events in its workdir."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from isnet_jax.evaluation.results import read_metrics
from isnet_jax.runtime.files import atomic_write_text

METRICS_FILE = "metrics.jsonl"


class Sink(Protocol):
    """What `Log` writes to. Steps never decrease within a start of a run."""

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Takes {name: number}; None stands for a number that is not finite."""

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Takes RGB pixels, uint8 (H, W, 3)."""

    def close(self, failed: bool) -> None:
        """Ends this start of the run. failed: whether it ends with an error or was stopped."""


class MetricsFile:
    """metrics.jsonl, a line for each call of `scalars`; it holds no pictures.

    Rows that an earlier start logged after step `first` are dropped: those steps are about to be repeated.
    """

    def __init__(self, workdir: Path, first: int):
        path = workdir / METRICS_FILE
        if path.exists():
            rows = [row for row in read_metrics(path) if row["step"] <= first]
            atomic_write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))
        self._file = path.open("a")

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Numbers that are not finite are null."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Does nothing."""

    def close(self, failed: bool) -> None:
        """Closes the file; raises OSError on a full disk."""
        self._file.close()


class TensorBoard:
    """TensorBoard events, without those that an earlier start logged after step `first`."""

    def __init__(self, workdir: Path, first: int):
        from tensorboardX import SummaryWriter  # takes seconds: it imports PyTorch where that is installed

        self._writer = SummaryWriter(
            str(workdir / "tensorboard"),
            purge_step=first + 1,
            max_queue=0,  # with a queue, its thread hangs forever on a full disk
        )

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Numbers that are not finite are left out."""
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Shown under "Images"."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self, failed: bool) -> None:
        """Closes the file; raises OSError on a full disk."""
        self._writer.close()
