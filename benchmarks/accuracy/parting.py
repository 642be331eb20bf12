"""Without dropout both frameworks compute the same losses, until rounding parts them: how far the curves agree."""

from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.accuracy.runs import OURS, THEIRS, Place, python, read_losses, shown

STEPS = {"float32": 200, "float64": 20}
PARTED = 1e-3  # relative difference of the losses of a step


class Parting(NamedTuple):
    """The first steps of both frameworks in float32 and in float64, on the same batches."""

    place: Place
    seed: int

    name = "parting"

    @property
    def folder(self) -> Path:
        """Of everything that the runs write."""
        return self.place.folder / self.name

    @property
    def is_done(self) -> bool:
        """Whether `curves` can be called."""
        return all(len(self._losses(kind, dtype)) == steps for dtype, steps in STEPS.items() for kind in (OURS, THEIRS))

    def commands(self) -> list[list[str]]:
        """Export the batches, then run each framework in each precision."""
        commands = []
        for dtype, steps in STEPS.items():
            batches = self.folder / f"batches-{steps}"
            commands += self.place.export(self.seed, batches, steps, **{"model.dropout": 0.0})
            for kind, module in ((OURS, "jax_losses"), (THEIRS, "torch_train")):
                words = str(batches), str(self.folder / f"{kind}-{dtype}"), f"--dtype={dtype}"
                commands.append(python(f"benchmarks.accuracy.{module}", *words))
        return commands

    def _losses(self, kind: str, dtype: str) -> list[float]:
        folder = self.folder / f"{kind}-{dtype}"
        return read_losses(folder) if (folder / "losses.jsonl").exists() else []

    def curves(self) -> dict[str, Any]:
        """For each dtype both curves, the largest relative difference, and the step where they part (None: never)."""
        result: dict[str, Any] = {"commands": [shown(command, self.place) for command in self.commands()]}
        for dtype in STEPS:
            ours, theirs = (self._losses(kind, dtype) for kind in (OURS, THEIRS))
            differences = [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]
            parted = next((i + 1 for i, x in enumerate(differences) if x > PARTED), None)
            result[dtype] = {OURS: ours, THEIRS: theirs, "largest": max(differences), "parted": parted}
        return result

    def summary(self) -> str:
        """For the console."""
        curves = self.curves()
        parted = {dtype: curves[dtype]["parted"] for dtype in STEPS}
        return ", ".join(
            f"{dtype} losses " + (f"part at step {step}" if step else f"agree for {STEPS[dtype]} steps")
            for dtype, step in parted.items()
        )
