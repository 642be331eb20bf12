"""Without dropout both frameworks compute the same losses, until rounding makes them diverge: how long they agree."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.accuracy.runs import OURS, THEIRS, Experiment, python, read_losses, shown

STEPS = {"float32": 200, "float64": 20}
EXACT, EXACT_STEPS = (
    "exact",
    20,
)  # PyTorch in float64 on the batches of float32: how far each framework's float32 is off
TOLERANCE = 1e-3  # relative difference of the losses of a step
MODULES = {OURS: "jax_losses", THEIRS: "torch_train"}


class Divergence(NamedTuple):
    """The first steps of both frameworks in float32 and in float64, on the same batches.

    In float64, which is slow on CPUs in JAX, the sides of the crops and the batch are half of the config's.
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
        return steps + self._exact_steps()

    def _exact_steps(self) -> list[tuple[bool, list[str]]]:
        batches = self.folder / f"batches-{EXACT}"
        export = self.experiment.export(self.seed, batches, f"--stop={EXACT_STEPS}", **{"model.dropout": 0.0})
        args = str(batches), str(self.folder / f"{THEIRS}-{EXACT}"), "--dtype=float64"
        is_done = len(self._losses(THEIRS, EXACT)) == EXACT_STEPS
        return [(batches.exists(), export), (is_done, python(f"benchmarks.accuracy.{MODULES[THEIRS]}", *args))]

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
            differences = relative(ours, theirs)
            step = next((i + 1 for i, x in enumerate(differences) if x > TOLERANCE), None)
            result[dtype] = {OURS: ours, THEIRS: theirs, "largest": max(differences), "diverged": step}
        return result | {EXACT: self._losses(THEIRS, EXACT)}

    def summary(self) -> str:
        """For the console."""
        record = self.record()
        return "; ".join(describe(record))


def relative(losses: Sequence[float], reference: Sequence[float]) -> list[float]:
    """The relative difference of the losses of each step that both have."""
    return [abs(a - b) / abs(b) for a, b in zip(losses, reference)]


def describe(record: dict[str, Any]) -> list[str]:
    """How long the losses agree, in words."""
    lines = []
    for dtype in STEPS:
        curves = record[dtype]
        agree = curves["diverged"] - 1 if curves["diverged"] else len(curves[OURS])
        first, second = relative(curves[OURS][:2], curves[THEIRS])
        lines.append(
            f"without dropout, {dtype}: losses agree within {TOLERANCE:.1%} for {agree} of {len(curves[OURS])} steps; "
            f"they differ by {first:.1e} at the first, {second:.1e} at the second, at most {curves['largest']:.1e}"
        )
    ours, theirs = (relative(record["float32"][kind][:2], record[EXACT])[1] for kind in (OURS, THEIRS))
    lines.append(f"at the second step float32 is off the float64 loss by {ours:.1e} in JAX, {theirs:.1e} in PyTorch")
    return lines
