"""Going on with a run under another config: what differs, what a saved state cannot follow, and what is kept."""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from isnet_jax import config as configs
from isnet_jax.checkpoints import manager
from isnet_jax.checkpoints.manager import BEST_DIR, CONFIG_FILE, CONVERTED, Checkpoints, recorded_config
from isnet_jax.errors import UserError
from isnet_jax.runtime import distributed
from isnet_jax.runtime.console import aligned, say
from isnet_jax.runtime.files import atomic_write_text
from isnet_jax.training.optimizer import make_schedule
from isnet_jax.training.step import TrainState

SAME_STATE = "model.dropout", "model.dtype", "model.remat"  # the fields of config.model that change no variable
OTHER_STATE = "train.optimizer", "train.frozen_stages"  # the fields of config.train that change the optimizer's state
EVALUATION = "data.", "test.", "train_examples", "model.dtype"  # what changes the scores of the same variables
RESULTS = "results.json", "predictions.png"
MAX_VALUE, MAX_REASON = 40, 300  # characters of a value in the table, of a mismatch


class Resumption(NamedTuple):
    """What a start may resume besides the run in its workdir under the same config."""

    with_changes: bool = False  # the run in the workdir may have another config, which is replaced
    source: str | None = None  # the workdir of a run whose state a new workdir goes on from
    best: bool = False  # its best state, not its newest


class Change(NamedTuple):
    """A field of the config, or a fact about the data, whose value differs."""

    field: str
    before: Any
    now: Any


class Origin:
    """Where the state of a start comes from: the run in its workdir, or another one, and what changes for it."""

    def __init__(self, workdir: str | Path, run_facts: Mapping[str, Any], resumption: Resumption):
        """`run_facts` is as for `Checkpoints`. Raises UserError if the state cannot go on under them."""
        self._source = None if manager.checkpoint_paths(workdir) else resumption.source
        self._best = resumption.best
        self._run = os.path.abspath(self._source or workdir)
        has_run = manager.checkpoint_paths(workdir) or (Path(workdir) / CONFIG_FILE).exists()
        resumes = self._source or resumption.with_changes and has_run
        self._changes = find_changes(self._run, run_facts) if resumes else []

    @property
    def changes_workdir(self) -> bool:
        """Whether the run in the workdir goes on under another config."""
        return bool(self._changes) and not self._source

    def restore(self, checkpoints: Checkpoints, template: TrainState) -> TrainState | None:
        """As `Checkpoints.restore`; raises UserError also if the state does not fit because of a change."""
        try:
            if self._source:
                return manager.restore_from(self._source, template, self._best)
            return checkpoints.restore(template)
        except manager.Mismatch as error:
            if not self._changes:
                raise
            fields = ", ".join(change.field for change in self._changes)
            raise UserError(
                f"The state of the run in {self._run} does not fit this config: one of {fields} needs another state "
                f"({str(error)[:MAX_REASON]}...). Leave that field as it is, or start a new run from the weights, with "
                f"--config.train.pretrained={self._run} and another --workdir."
            ) from None

    def adopt(self, checkpoints: Checkpoints, config: ConfigDict, num_examples: int, state: TrainState) -> None:
        """Records the config in the workdir. Before that, prints what changes, and saves a state that goes on with it.

        `num_examples` are trained on. A config that is replaced goes to `workdir`/before-STEP, with the results of a
        finished run, and with the best checkpoint if its score would no longer compare. Raises UserError if the state's
        step is past the last one of `config`.
        """
        if not (self._source or self._changes):
            checkpoints.record_config()
            return
        step = int(state.step)
        _announce(self._changes, recorded_config(self._run), config, num_examples, step)
        if step:
            checkpoints.save(step, state)
            checkpoints.wait()
        if not self._source and distributed.is_first():
            moves_best = any(change.field.startswith(EVALUATION) for change in self._changes)
            folder = _set_aside(checkpoints.workdir, step, (*RESULTS, BEST_DIR) if moves_best else RESULTS)
            say(f"what this replaces is kept in {folder}")
        distributed.barrier("set aside")
        checkpoints.record_config()


def find_changes(directory: str, run_facts: Mapping[str, Any]) -> list[Change]:
    """How `run_facts` differ from those of the run in `directory`.

    Raises UserError if there is no run, or if the new config needs another state.
    """
    saved = manager.read_config(directory)
    if CONVERTED in saved:
        raise UserError(
            f"{directory} holds converted weights, not the state of a run. Start from them with "
            f"--config.train.pretrained={directory} and another --workdir."
        )
    changes = [Change(*change) for change in configs.changes(json.loads(json.dumps(run_facts)), saved)]
    unfit = [change for change in changes if _needs_another_state(change)]
    if unfit and manager.checkpoint_paths(directory):
        fields = "; ".join(f"{field}: {before} there, {now} now" for field, before, now in unfit)
        raise UserError(
            f"The state of the run in {directory} does not fit this config ({fields}). Leave these fields as they are, "
            f"or start a new run from the weights, with --config.train.pretrained={directory} and another --workdir."
        )
    return changes


def _needs_another_state(change: Change) -> bool:
    """Whether the variables or the optimizer's state differ, or moving averages would begin or end."""
    if change.field == "train.ema_decay":
        return bool(change.before) != bool(change.now)
    is_model = change.field.startswith("model.") and change.field not in SAME_STATE
    return is_model or change.field in OTHER_STATE


def _announce(changes: Sequence[Change], before: ConfigDict, now: ConfigDict, num_examples: int, step: int) -> None:
    """Prints what changes, and what follows from it, for a run at `step` that trains on `num_examples` from now on.

    Raises UserError if `step` is past the last one.
    """
    per_epoch = num_examples // now.train.global_batch_size
    total = per_epoch * now.train.epochs
    if step > total:
        raise UserError(
            f"The run is at step {step}, past the last step of this config, {total}: an epoch has {per_epoch}. "
            f"Set config.train.epochs to {-(-step // per_epoch)} or more."
        )
    examples_before = before.get("train_examples")  # the file may hold anything
    old = _consequences(before, examples_before if isinstance(examples_before, int) else num_examples, step)
    new = _consequences(now, num_examples, step)
    rows = [(field, _short(a), _short(b)) for field, a, b in changes]
    rows += [(name, old[name], new[name]) for name in new if old and old[name] != new[name]]
    if rows:
        say(aligned([("changed", "before", "now"), *rows]))
    left = f"{total - step} steps are left" if step < total else "nothing is left to train"
    say(f"The run goes on at step {step} of {total}, in epoch {new['epoch']} of {now.train.epochs}: {left}.")


def _consequences(config: ConfigDict, num_examples: int, step: int) -> dict[str, str]:
    """What follows from a config for a run at `step`; nothing if an epoch would have no step."""
    per_epoch = num_examples // config.train.global_batch_size
    if per_epoch < 1:
        return {}
    total = per_epoch * config.train.epochs
    return {
        "steps": str(total),
        "steps per epoch": str(per_epoch),
        "epoch": str(min(step // per_epoch + 1, config.train.epochs)),
        "learning rate": f"{float(make_schedule(config.train, total)(step)):.3e}",
    }


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."


def _set_aside(workdir: Path, step: int, names: Sequence[str]) -> Path:
    """Copies config.json, and moves what is there of `names`, into a folder of the workdir, which it returns."""
    text = (workdir / CONFIG_FILE).read_text()
    candidates = itertools.chain([f"before-{step}"], (f"before-{step}-{i}" for i in itertools.count(2)))
    folder = next(path for name in candidates if _is_free(path := workdir / name, workdir, names))
    folder.mkdir(exist_ok=True)
    atomic_write_text(folder / CONFIG_FILE, text)
    for name in names:
        if (workdir / name).exists():
            (workdir / name).rename(folder / name)
    return folder


def _is_free(folder: Path, workdir: Path, names: Sequence[str]) -> bool:
    """Whether nothing is there, or only what a start set aside that was killed before it recorded the new config."""
    config = folder / CONFIG_FILE
    begun = config.is_file() and config.read_text() == (workdir / CONFIG_FILE).read_text()
    return not folder.exists() or begun and not any((folder / n).exists() and (workdir / n).exists() for n in names)
