"""The networks of the comparison: commands that train and evaluate each, its files, and what of it is recorded."""

import importlib.metadata
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.paths import ROOT
from isnet_jax import cli
from isnet_jax.runtime.files import atomic_write_text
from isnet_jax.training.log import METRICS_FILE, read_metrics

OURS, THEIRS = "ours", "torch"
ABLATIONS = {  # what our network does without
    "image-level only": {"model.semantic_level_context": False},
    "semantic-level only": {"model.image_level_context": False},
    "neither": {"model.image_level_context": False, "model.semantic_level_context": False},
}
MODERN, FINE_TUNED = "modern recipe", "fine-tuned"
VARIANTS: dict[str, dict[str, Any]] = {  # other ways to train the same network
    MODERN: {  # like configs/modern.py, for a short run from random weights
        "train.optimizer": "adamw",
        "train.schedule": "cosine",
        "train.base_lr": 1e-3,
        "train.min_lr": 1e-6,
        "train.weight_decay": 0.05,
        "train.decay_norms_and_biases": False,
        "train.warmup_steps": 50,
        "train.ema_decay": 0.99,
    },
    FINE_TUNED: {},  # from the whole network that was trained on drawn scenes, whose classes are others
}
SCENES = "configs/quickstart.py"  # of the network whose backbone all runs start from
CURVE_STEPS = 10  # averaged into a point of a loss curve
CHECKPOINT_STEPS = 50


class Experiment(NamedTuple):
    """A data set and the config of its runs."""

    data: str  # a config file beside this one
    folder: Path  # of everything that is written
    source: Path  # of the data set
    changes: Mapping[str, Any]  # of the config, {field: value}
    pretrained_on: str = SCENES  # a config file; without one, runs start from random weights

    @property
    def config_file(self) -> str:
        """Relative to the repository's root."""
        return f"benchmarks/accuracy/{self.data}.py"

    @property
    def config(self) -> dict[str, Any]:
        """What all runs share, as JSON has it."""
        config = cli.load_config(str(ROOT / self.config_file)).to_dict()
        return json.loads(json.dumps({**config, "changes": self.changes, "pretrained_on": self.pretrained_on}))

    def claim(self) -> None:
        """Makes the folder and records the config in it; raises RuntimeError if it holds runs of another config."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = self.folder / "config.json"
        if not record.exists():
            atomic_write_text(record, json.dumps(self.config))
        if json.loads(record.read_text()) != self.config:
            raise RuntimeError(f"{self.folder} holds runs of another config: choose another --runs, or delete it")

    def pretrained(self, seed: int) -> Path:
        """The workdir of the network whose backbone the runs of a seed start from."""
        return self.folder / f"{Path(self.pretrained_on).stem}-{seed}"

    def backbone(self, seed: int) -> Path:
        """The file of the weights that the runs of a seed start from."""
        return self.folder / f"backbone-{seed}.safetensors"

    def pretraining(self, seed: int) -> list[list[str]]:
        """The commands that make `backbone`."""
        if not self.pretrained_on:
            return []
        workdir = self.pretrained(seed)
        train = python("isnet_jax.main", f"--config={self.pretrained_on}", f"--config.seed={seed}")
        extract = python("benchmarks.accuracy.backbone", str(workdir), str(self.backbone(seed)))
        return [[*train, f"--workdir={workdir}"], extract]

    def flags(self, seed: int, changes: Mapping[str, Any]) -> list[str]:
        """Flags that give a command of isnet_jax the config of a run."""
        files = {"data.source": self.source, "data.data_dir": self.folder / "tfds"}
        if self.pretrained_on:
            files["train.pretrained"] = self.backbone(seed)
        fields = {"seed": seed, **files, **self.changes, **changes}
        return [f"--config={self.config_file}", *(f"--config.{field}={value}" for field, value in fields.items())]

    def export(self, seed: int, output: Path, *args: str, **changes: Any) -> list[str]:
        """The command that exports the batches of a run to `output`."""
        return python("benchmarks.accuracy.export", *self.flags(seed, changes), f"--output={output}", *args)


class Run(NamedTuple):
    """A network to train and evaluate."""

    experiment: Experiment
    kind: str  # OURS, THEIRS, or one of ABLATIONS or VARIANTS
    seed: int

    @property
    def name(self) -> str:
        """Unique in an experiment."""
        return f"{self.kind.replace(' ', '-')}-{self.seed}"

    @property
    def folder(self) -> Path:
        """Of everything that the run writes."""
        return self.experiment.folder / self.name

    @property
    def batches(self) -> Path:
        """What PyTorch trains on."""
        return self.experiment.folder / f"batches-{self.seed}"

    @property
    def is_done(self) -> bool:
        """Whether `record` can be called."""
        return (self.folder / "evaluation/results.json").exists()

    def commands(self) -> list[list[str]]:
        """Commands that train the network and evaluate it; each resumes after an interrupt."""
        changes = {**ABLATIONS, **VARIANTS}.get(self.kind, {})
        if self.kind == FINE_TUNED:
            changes = {"train.pretrained": self.experiment.pretrained(self.seed)}
        flags = self.experiment.flags(self.seed, changes)
        evaluate = python("isnet_jax.evaluate", *flags, f"--output={self.folder / 'evaluation'}")
        evaluate += ["--ema"] if "train.ema_decay" in changes else []
        if self.kind == THEIRS:
            train = python("benchmarks.accuracy.torch_train", str(self.batches), str(self.folder))
            export = self.experiment.export(self.seed, self.batches)
            return [export, train, [*evaluate, f"--checkpoint={self.folder}/isnet.pth"]]
        every = "--config.run.log_every_steps=1", f"--config.run.checkpoint_every_steps={CHECKPOINT_STEPS}"
        train = python("isnet_jax.main", *flags, f"--workdir={self.folder}", *every)
        return [train, [*evaluate, f"--checkpoint={self.folder}"]]

    def remaining(self) -> list[list[str]]:
        """The commands that are not known to be done."""
        if self.is_done:
            return []
        commands = self.commands()
        return commands[1:] if self.kind == THEIRS and self.batches.exists() else commands

    def record(self) -> dict[str, Any]:
        """What results.json keeps of the run."""
        results = json.loads((self.folder / "evaluation/results.json").read_text())
        scores, losses = results["protocols"]["official"], read_losses(self.folder)
        points = range(0, len(losses) - CURVE_STEPS + 1, CURVE_STEPS)
        versions = results["run"]["versions"]
        return {
            "kind": self.kind,
            "seed": self.seed,
            **{name: scores[name] for name in ("miou", "pixel_accuracy", "iou")},
            "steps": len(losses),
            "first_loss": losses[0],
            "losses": [round(sum(losses[i : i + CURVE_STEPS]) / CURVE_STEPS, 5) for i in points],
            "commands": [
                shown(command, self.experiment)
                for command in (*self.experiment.pretraining(self.seed), *self.commands())
            ],
            "versions": versions | ({"torch": importlib.metadata.version("torch")} if self.kind == THEIRS else {}),
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


def python(module: str, *args: str) -> list[str]:
    """The command that runs a module."""
    return [sys.executable, "-m", module, *args]


def shown(command: Sequence[str], experiment: Experiment) -> str:
    """A command as a reader would type it."""
    text = " ".join(["python", *command[1:]])
    return text.replace(str(experiment.source), "DIR").replace(str(experiment.folder), f"RUNS/{experiment.data}")
