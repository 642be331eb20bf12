"""Checkpoints of a run in its workdir, beside its config; and how they are read again."""

import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from isnet_jax import config as configs
from isnet_jax.checkpoints import checksums
from isnet_jax.checkpoints.directory import CHECKSUMS, CheckpointDirectory, LiteralPath, as_dict, reason
from isnet_jax.errors import UserError, mismatches
from isnet_jax.runtime import distributed, files, interrupts
from isnet_jax.runtime.console import warn

CONFIG_FILE = "config.json"
CHECKPOINTS_DIR, BEST_DIR = "checkpoints", "best"
DAMAGED_DIR = "damaged-checkpoints"
RETRY_SECONDS = 1  # before an unreadable checkpoint is read a second time
CONVERTED, UNTRAINED = "converted_from", "untrained_modules"  # keys that isnet_jax.convert adds to config.json
MISREAD = "\\", "gs:/"  # in a path: TensorStore takes the first for a slash, Orbax the second for a URL


class Checkpoints(CheckpointDirectory):
    """The checkpoints of one run, in `workdir`/checkpoints/STEP; a context manager that closes them."""

    def __init__(
        self,
        workdir: str | Path,
        run_facts: Mapping[str, Any],
        keep: int | None = None,
        flag: str = "--workdir",
        with_changes: bool = False,
    ) -> None:
        """Opens a workdir, or creates it.

        `run_facts` is a JSON-like dict of the config and facts about the data, which must be the same at every start
        except for `config.RESUMABLE_CHANGES`; with `with_changes` they may be others. `record_config` writes them, and
        so does the first `save`. The newest `keep` checkpoints are kept, None: all. Raises UserError if the workdir
        cannot be written or holds another run; its messages call the workdir `flag`.
        """
        self.workdir = Path(os.path.abspath(workdir))
        self._run_facts = json.loads(json.dumps(run_facts))
        files.require_literal(self.workdir, flag, *MISREAD)
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            files.require_inside(self.workdir, *files.symbolic_links(self.workdir))
            self._check_ownership(flag, with_changes)
            distributed.barrier("check ownership")
        except OSError as error:
            raise UserError(
                f"The directory {workdir} cannot be written ({error.strerror}); choose another {flag}."
            ) from None
        super().__init__(self.workdir / CHECKPOINTS_DIR, keep)

    def _check_ownership(self, flag: str, with_changes: bool) -> None:
        """Raises UserError if the workdir holds another run."""
        run_facts = self._run_facts
        if (self.workdir / CONFIG_FILE).exists():
            saved_facts = read_config(self.workdir)
            if CONVERTED in saved_facts and CONVERTED not in run_facts:
                raise UserError(
                    f"{self.workdir} holds a converted checkpoint, not a run. To start from its weights, give it as "
                    f"--config.train.pretrained={self.workdir} and choose another {flag}."
                )
            differences = "; ".join(configs.differences(run_facts, saved_facts))
            if differences and not with_changes:
                go_on = "To go on with that run under this config, add --resume_with_changes. Otherwise choose"
                raise UserError(
                    f"{self.workdir} holds a run with another config ({differences}). "
                    f"{go_on if flag == '--workdir' else 'Choose'} another {flag}."
                )
        elif checkpoint_paths(self.workdir):
            raise UserError(
                f"{self.workdir} holds checkpoints but no {CONFIG_FILE}, so it is unknown which run wrote them. "
                f"Choose another {flag}."
            )

    def record_config(self) -> None:
        """Writes the run facts as config.json."""
        path, text = self.workdir / CONFIG_FILE, json.dumps(self._run_facts, indent=2, sort_keys=True) + "\n"
        if distributed.is_first() and not (path.exists() and path.read_text() == text):
            files.atomic_write_text(path, text)

    def save(self, step: int, state: Any) -> None:
        """As in the base class; config.json comes before the first checkpoint, which would be nobody's without it."""
        if not (self.workdir / CONFIG_FILE).exists():
            with self._translating_write_errors():
                self.record_config()
        super().save(step, state)

    def restore(self, template: Any) -> Any:
        """The newest intact state, or None if none was ever saved; damaged newer ones are reported and quarantined.

        `template` is a TrainState of ShapeDtypeStructs with shardings, on any mesh. Every process reads all arrays.
        Raises UserError if no checkpoint is intact, or if they are of another network.
        """
        paths = agreed_paths(self.workdir, "--workdir")
        state, damaged = restore_newest(paths, template)
        if state is not None:
            self.quarantine(damaged)
            return state
        if damaged or any(self.workdir.glob(f"{DAMAGED_DIR}/*")):
            raise UserError(
                f"None of the checkpoints in {self.workdir} is intact. If the storage is at fault, run the same "
                "command again once it is repaired. Otherwise restore a checkpoint from a backup, or choose another "
                "--workdir to start from scratch."
            )
        return None

    def quarantine(self, paths: Sequence[Path]) -> None:
        """Moves damaged checkpoints of the workdir to its DAMAGED_DIR; to be called by all processes."""
        for path in paths:
            if distributed.is_first():
                warn(f"Moving {path} to {self.workdir / DAMAGED_DIR}.")
                (self.workdir / DAMAGED_DIR).mkdir(exist_ok=True)
                is_best = path.parent.name == BEST_DIR
                target = self.workdir / DAMAGED_DIR / (f"best-{path.name}" if is_best else path.name)
                shutil.rmtree(target, ignore_errors=True)
                path.rename(target)
            distributed.barrier(f"quarantine {path.name}")
        if paths:
            self._manager.reload()


def checkpoint_paths(workdir: str | Path) -> list[Path]:
    """The finished checkpoints of a workdir, the newest first: the best one is a checkpoint like the others."""
    paths = [path for folder in (CHECKPOINTS_DIR, BEST_DIR) for path in Path(workdir, folder).glob("*")]
    return sorted((path for path in paths if path.name.isdecimal()), key=lambda path: -int(path.name))


def agreed_paths(directory: str | Path, flag: str, best: bool = False) -> list[Path]:
    """`checkpoint_paths`, or of these only the run's best one, the same on all processes.

    Raises UserError if they see different checkpoints in the directory, which `flag` gives.
    """
    paths = [path for path in checkpoint_paths(directory) if path.parent.name == BEST_DIR or not best]
    newest = int(paths[0].name) if paths else -1
    if not distributed.all_processes(distributed.broadcast_from_first(newest) == newest):
        raise UserError(
            f"The processes of this run see different checkpoints in {directory}. Give all of them the same {flag}, on "
            "a shared file system."
        )
    return paths


def restore_newest(paths: Sequence[Path], template: Any) -> tuple[Any, list[Path]]:
    """The state of the first intact checkpoint of `paths`, None without any, and the damaged ones before it.

    `template` is as for `Checkpoints.restore`. Damage is reported. Raises UserError if a checkpoint is of another
    network or optimizer.
    """
    expected = as_dict(template)
    damaged: list[Path] = []
    for path in paths:
        fields = None
        try:
            fields = read_with_retry(path, expected)
        except Damaged as error:
            warn(str(error))
        if distributed.all_processes(fields is not None):
            return template.replace(**jax.tree.map(_place, fields, expected)), damaged
        damaged.append(path)
    return None, damaged


def restore_from(directory: str | Path, template: Any, best: bool = False) -> Any:
    """The newest intact state of another run's workdir, or its best one, where nothing changes.

    `template` is as for `Checkpoints.restore`. Raises UserError if there is none, or if it is of another network.
    """
    directory = Path(os.path.abspath(directory))
    files.require_literal(directory, "--resume_from", *MISREAD)
    if best:
        newest_step(directory, best=True)  # raises if there is none
    state, _ = restore_newest(agreed_paths(directory, "--resume_from", best), template)
    if state is None:
        raise UserError(f"{directory} holds no intact checkpoint to resume from; give another --resume_from.")
    return state


def read_config(directory: str | Path) -> dict[str, Any]:
    """The config of a workdir or converted checkpoint as nested dicts; raises UserError."""
    path = Path(directory) / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"{directory} holds no {CONFIG_FILE}, so neither a run of isnet_jax nor isnet_jax.convert wrote it. Give a "
            "directory that one of them wrote."
        )
    try:
        config = files.read_json(path)
        if not isinstance(config, dict):
            raise ValueError("it is not a JSON object")
        return config
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or use another directory.") from None


def recorded_config(directory: str | Path) -> ConfigDict:
    """The config of a run or converted checkpoint; fields that it does not record have their defaults.

    Fields that earlier versions recorded under other names are renamed, and those that are gone are dropped. Raises
    UserError if there is no valid config.
    """
    return configs.from_record(read_config(directory), f"{directory}/{CONFIG_FILE}")


class Damaged(UserError):
    """A checkpoint cannot be read; the message says which one and why."""


class Mismatch(UserError):
    """A checkpoint is of another network or optimizer; the message lists the names and shapes that differ."""


def read_with_retry(path: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """The fields `expected` of the checkpoint .../STEP, {field: tree of ShapeDtypeStructs}, as NumPy arrays.

    A second try follows a first that fails: network storage does occasionally. Raises Damaged and Mismatch.
    """
    try:
        return _read(path, expected)
    except Damaged:
        time.sleep(RETRY_SECONDS)
        return _read(path, expected)


def _read(path: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """The fields `expected` of the checkpoint .../STEP, as NumPy arrays.

    `expected` is {field: tree of arrays or ShapeDtypeStructs}. Raises Damaged if they cannot be read or their
    checksums differ, and UserError if they are of another network.
    """
    try:
        return _restore_fields(path, expected)
    except UserError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds
        if interrupts.stop_requested():  # the library turned the interrupt into its own error
            raise  # `interrupts.interruptible` turns it back
        raise Damaged(f"The checkpoint {path} is damaged: {reason(error)}.") from None


def _restore_fields(path: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """As `_read`; if the checkpoint is damaged, raises whatever Orbax or TensorStore does, or ValueError."""
    handler, directory = ocp.PyTreeCheckpointHandler(), LiteralPath(path / "default")
    warnings.filterwarnings("ignore", "Sharding info not provided")  # NumPy arrays need none
    metadata = handler.metadata(directory).tree
    if "ema" in expected and not metadata.get("ema"):
        raise UserError(
            f"The checkpoint {path} holds no moving averages of the weights, because it was trained with "
            "config.train.ema_decay=0. Leave out --ema."
        )
    saved = {name: metadata.get(name, {}) for name in expected}
    _check_network(path, _shapes(saved), _shapes(expected))
    saved_checksums = {name: metadata[CHECKSUMS][name] for name in expected if jax.tree.leaves(expected[name])}
    _check_sizes(saved, saved_checksums, expected)
    template = {**expected, CHECKSUMS: saved_checksums}
    arrays = handler.restore(
        directory,
        args=ocp.args.PyTreeRestore(
            item=template,
            restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), template),
            partial_restore=True,
        ),
    )
    expected_sums = arrays.pop(CHECKSUMS)
    actual_sums = checksums.checksum_tree(arrays)
    corrupted = [name for name, sums in actual_sums.items() if not np.array_equal(sums, expected_sums[name])]
    if corrupted:
        raise ValueError(f"the checksum of {', '.join(corrupted)} differs")
    return arrays


def _check_sizes(saved: Mapping[str, Any], saved_checksums: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises ValueError if reading would take more memory than the expected arrays, judging by the metadata alone.

    A chunk inflates to whatever size its metadata states, and checksums are read as they are.
    """
    for leaf in jax.tree.leaves([saved, saved_checksums]):
        chunk = leaf.storage.chunk_shape if leaf.storage else ()
        if math.prod(chunk or ()) > max(1, math.prod(leaf.shape)) or np.dtype(leaf.dtype).itemsize > 8:
            raise ValueError("a chunk is larger than its array")
    for name, sums in saved_checksums.items():
        if sums.shape != (len(jax.tree.leaves(expected[name])),):
            raise ValueError("the number of checksums differs from the number of arrays")


def _place(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])


def save_variables(
    directory: str | Path,
    config: ConfigDict,
    variables: Mapping[str, Any],
    source: str | Path,
    untrained: Sequence[str] = (),
) -> None:
    """Writes {"params", "batch_stats"} as checkpoint 0 of `directory`, which must not hold another run.

    `source` is the file they come from, and `untrained` are the modules that it does not hold; config.json records
    both. Raises UserError.
    """
    facts = {**config.to_dict(), CONVERTED: str(source)} | ({UNTRAINED: list(untrained)} if untrained else {})
    with Checkpoints(directory, facts, flag="--output") as checkpoints:
        if checkpoints.steps():
            raise UserError(f"{directory} already holds checkpoints; choose another --output.")
        checkpoints.save(0, dict(variables))
        checkpoints.wait()


def load_variables(
    directory: str | Path,
    template: Mapping[str, Any],
    ema: bool = False,
    step: int | None = None,
    best: bool = False,
) -> dict[str, Any]:
    """{"params", "batch_stats"} as NumPy arrays, from a checkpoint of a run or of isnet_jax.convert.

    `template` is the expected tree, of arrays or ShapeDtypeStructs. With `ema`, the moving averages of a run's weights.
    `step` names the checkpoint, by default the newest; with `best`, it is the run's best one. Raises UserError if there
    is no checkpoint or moving average, or if the checkpoint is damaged or of another network; it then lists every name
    and shape that differs.
    """
    directory = Path(os.path.abspath(directory))
    read_config(directory)
    files.require_literal(directory, "checkpoint", *MISREAD)
    step = newest_step(directory, best) if step is None else step
    if step is None:
        raise UserError(f"{directory} holds no finished checkpoint.")
    fields = _read(checkpoint_path(directory, step, best), {"ema": template} if ema else template)
    return fields["ema"] if ema else fields


def newest_step(directory: str | Path, best: bool = False) -> int | None:
    """The step of the newest finished checkpoint of a run or converted directory, None without any.

    With `best`, that of the run's best checkpoint; raises UserError if it kept none.
    """
    steps = [int(path.name) for path in checkpoint_path(directory, 0, best).parent.glob("*") if path.name.isdecimal()]
    if best and not steps:
        raise UserError(
            f"{directory} holds no best checkpoint: a run keeps one if config.run.best_metric names a score, from the "
            "next evaluation on. Leave out --best to use the newest checkpoint."
        )
    return max(steps, default=None)


def checkpoint_path(directory: str | Path, step: int, best: bool = False) -> Path:
    """Where a run or converted directory keeps the checkpoint of a step, or a run its best one."""
    return Path(directory) / (BEST_DIR if best else CHECKPOINTS_DIR) / str(step)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """{path of a leaf: its shape}."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _check_network(path: Path, shapes: Mapping[str, tuple], expected_shapes: Mapping[str, tuple]) -> None:
    faults = mismatches(shapes, expected_shapes)
    if faults:
        raise Mismatch(
            f"The checkpoint {path} holds the variables of another network ({faults}). Check that config.model "
            "(backbone, num_classes, shortcut, context modules) matches the checkpoint."
        )
