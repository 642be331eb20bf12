"""Without dropout both frameworks compute the same losses, until rounding makes them diverge: how long they agree."""

from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.accuracy.runs import OURS, THEIRS, Experiment, python, read_losses, shown

STEPS = {"float32": 200, "float64": 20}
TOLERANCE = 1e-3  # relative difference of the losses of a step
MODULES = {OURS: "jax_losses", THEIRS: "torch_train"}


class Divergence(NamedTuple):
    """The first steps of both frameworks in float32 and in float64, on the same batches.

    In float64, which is slow on CPUs, the sides of the crops and the batch are half of the config's.
    """

    experiment: Experiment
    seed: int

    @property
    def name(self) -> str:
        """Unique in an experiment."""
        return f"divergence-{self.seed}"

    @property
    def folder(self) -> Path:
        """Of everything that the runs write."""
        return self.experiment.folder / self.name

    def commands(self) -> list[list[str]]:
        """Commands that export the batches, and run each framework in each precision."""
        return [command for _, command in self._steps()]

    def remaining(self) -> list[list[str]]:
        """The commands that are not done."""
        return [command for is_done, command in self._steps() if not is_done]

    def _steps(self) -> list[tuple[bool, list[str]]]:
        steps = []
        for dtype, count in STEPS.items():
            batches = self.folder / f"batches-{dtype}"
            changes = {"model.dropout": 0.0} | (self._half() if dtype == "float64" else {})
            export = self.experiment.export(self.seed, batches, f"--stop={count}", **changes)
            steps.append((batches.exists(), export))
            for kind, module in MODULES.items():
                args = str(batches), str(self.folder / f"{kind}-{dtype}"), f"--dtype={dtype}"
                is_done = len(self._losses(kind, dtype)) == count
                steps.append((is_done, python(f"benchmarks.accuracy.{module}", *args)))
        return steps

    def _half(self) -> dict[str, Any]:
        config = self.experiment.config
        height, width = config["augment"]["crop_size"]
        batch_size = config["train"]["global_batch_size"] // 2
        return {"augment.crop_size": (height // 2, width // 2), "train.global_batch_size": batch_size}

    def _losses(self, kind: str, dtype: str) -> list[float]:
        folder = self.folder / f"{kind}-{dtype}"
        return read_losses(folder) if (folder / "losses.jsonl").exists() else []

    def record(self) -> dict[str, Any]:
        """For each dtype both curves, their largest relative difference, and the step where it exceeds TOLERANCE."""
        result: dict[str, Any] = {"commands": [shown(command, self.experiment) for command in self.commands()]}
        for dtype in STEPS:
            ours, theirs = (self._losses(kind, dtype) for kind in (OURS, THEIRS))
            differences = [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]
            step = next((i + 1 for i, x in enumerate(differences) if x > TOLERANCE), None)
            result[dtype] = {OURS: ours, THEIRS: theirs, "largest": max(differences), "diverged": step}
        return result

    def summary(self) -> str:
        """For the console."""
        record = self.record()
        return "; ".join(describe(record, dtype) for dtype in STEPS)


def describe(record: dict[str, Any], dtype: str) -> str:
    """How long the losses agree, in words."""
    curves = record[dtype]
    agree = curves["diverged"] - 1 if curves["diverged"] else len(curves[OURS])
    first, second = (abs(a - b) / abs(b) for a, b in zip(curves[OURS][:2], curves[THEIRS][:2]))
    return (
        f"without dropout, {dtype}: losses agree within {TOLERANCE:.1%} for {agree} of {len(curves[OURS])} steps; they "
        f"differ by {first:.1e} at the first, {second:.1e} at the second, at most {curves['largest']:.1e}"
    )
