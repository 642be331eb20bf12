"""The networks of the comparison: commands that train and evaluate each, its files, and what of it is recorded."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from isnet_jax.training.log import METRICS_FILE, read_metrics

OURS, THEIRS = "ours", "torch"
ABLATIONS = {  # what our network does without
    "image-level only": {"model.semantic_level_context": False},
    "semantic-level only": {"model.image_level_context": False},
    "neither": {"model.image_level_context": False, "model.semantic_level_context": False},
}
CURVE_STEPS = 10  # averaged into a point of a loss curve


class Place(NamedTuple):
    """Where the runs of a data set live."""

    data: str  # a config file beside this one
    folder: Path
    source: Path  # of the data set
    changes: Mapping[str, Any]  # of the config, {field: value}

    def flags(self, seed: int, changes: Mapping[str, Any]) -> list[str]:
        """Of a command of isnet_jax: the config of a run."""
        files = {"data.source": self.source, "data.data_dir": self.folder / "tfds"}
        fields = {"seed": seed, **files, **self.changes, **changes}
        return [
            f"--config=benchmarks/accuracy/{self.data}.py",
            *(f"--config.{field}={value}" for field, value in fields.items()),
        ]

    def export(self, seed: int, output: Path, stop: int | None = None, **changes: Any) -> list[list[str]]:
        """The command that exports the batches of a run to `output`, unless they are there."""
        if output.exists():
            return []
        words = [f"--output={output}"] + [f"--stop={stop}"] * (stop is not None)
        return [python("benchmarks.accuracy.export", *self.flags(seed, changes), *words)]


class Run(NamedTuple):
    """A network to train and evaluate."""

    place: Place
    kind: str  # OURS, THEIRS, or one of ABLATIONS
    seed: int

    @property
    def name(self) -> str:
        """Unique among the runs of a data set."""
        return f"{self.kind.replace(' ', '-')}-{self.seed}"

    @property
    def folder(self) -> Path:
        """Of everything that the run writes."""
        return self.place.folder / self.name

    @property
    def is_done(self) -> bool:
        """Whether `record` can be called."""
        return (self.folder / "evaluation/results.json").exists()

    def commands(self) -> list[list[str]]:
        """Train the network and evaluate it; each resumes after an interrupt."""
        flags = self.place.flags(self.seed, ABLATIONS.get(self.kind, {}))
        evaluate = python("isnet_jax.evaluate", *flags, f"--output={self.folder / 'evaluation'}")
        if self.kind != THEIRS:
            train = python("isnet_jax.main", *flags, f"--workdir={self.folder}", "--config.run.log_every_steps=1")
            return [train, [*evaluate, f"--checkpoint={self.folder}"]]
        batches = self.place.folder / f"batches-{self.seed}"
        train = python("benchmarks.accuracy.torch_train", str(batches), str(self.folder))
        return [*self.place.export(self.seed, batches), train, [*evaluate, f"--checkpoint={self.folder}/isnet.pth"]]

    def record(self) -> dict[str, Any]:
        """What results.json keeps of the run."""
        results = json.loads((self.folder / "evaluation/results.json").read_text())
        scores = results["protocols"]["official"]
        losses = read_losses(self.folder)
        points = range(0, len(losses) - CURVE_STEPS + 1, CURVE_STEPS)
        return {
            "seed": self.seed,
            **{name: scores[name] for name in ("miou", "pixel_accuracy", "iou")},
            "steps": len(losses),
            "losses": [round(sum(losses[i : i + CURVE_STEPS]) / CURVE_STEPS, 5) for i in points],
            "commands": [shown(command, self.place) for command in self.commands()],
            "versions": results["run"]["versions"],
        }

    def summary(self) -> str:
        """For the console."""
        record = self.record()
        return f"mIoU {record['miou']:.2f} % after {record['steps']} steps"


def read_losses(folder: Path) -> list[float]:
    """The total loss of each step of a run, whichever framework wrote it."""
    if (folder / METRICS_FILE).exists():
        rows = read_metrics(folder / METRICS_FILE)
        losses = {row["step"]: row["loss/total"] for row in rows if "loss/total" in row}
    else:
        rows = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
        losses = {row["step"]: row["total"] for row in rows}
    return [losses[step] for step in sorted(losses)]


def python(module: str, *arguments: str) -> list[str]:
    """A command."""
    return [sys.executable, "-m", module, *arguments]


def shown(command: Sequence[str], place: Place) -> str:
    """A command as a reader would type it."""
    text = " ".join(["python", *command[1:]])
    return text.replace(str(place.source), "DIR").replace(str(place.folder), f"RUNS/{place.data}")
