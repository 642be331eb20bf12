"""Checkpoints in a workdir: Orbax, written in the background, with their checksums and the config they belong to."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from isnet_jax import config as configs
from isnet_jax import digest, distributed, interrupts, stored
from isnet_jax.console import warn
from isnet_jax.errors import UserError, mismatches

CONFIG_FILE = "config.json"
DIGEST = "digest"  # the entry of a checkpoint with the checksums of the others
DAMAGED = "damaged-checkpoints"
RETRY_SECONDS = 1
CONVERTED = "converted_from"  # in the config.json of what isnet_jax.convert wrote


class Checkpoints:
    """The checkpoints of one run, in `workdir`/checkpoints/STEP."""

    def __init__(self, workdir, record, keep=None, flag="--workdir"):
        """Opens or starts a workdir.

        record: JSON-like dict, the config and facts of the data, that must be the same on every start but for
        `config.RESUMABLE_CHANGES`. Raises UserError if the workdir cannot be written or holds another run;
        `flag` is what its messages call the workdir.
        """
        self.workdir = Path(os.path.abspath(workdir))
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            stored.require_inside(self.workdir, *stored.links(self.workdir))
            self._claim(json.loads(json.dumps(record)), flag)
        except OSError as error:
            raise UserError(
                f"The directory {workdir} cannot be written ({error.strerror}); choose another {flag}."
            ) from None
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.workdir / "checkpoints", options=options)
        # Orbax would ask with another count than `distributed.stop_asked`, which is then never answered.
        self._manager.reached_preemption = lambda step: False

    def _claim(self, record, flag):
        path = self.workdir / CONFIG_FILE
        if path.exists():
            there = read_config(self.workdir)
            if CONVERTED in there and CONVERTED not in record:
                raise UserError(
                    f"{self.workdir} holds a converted checkpoint, not a run: give it as "
                    f"--config.train.pretrained={self.workdir}, and another {flag}."
                )
            lines = configs.differences(record, there)
            if lines:
                raise UserError(
                    f"{self.workdir} holds a run of another config ({'; '.join(lines)}). Choose another "
                    f"{flag}, or delete this one to start anew."
                )
        elif any(self.workdir.glob("checkpoints/*")):
            raise UserError(
                f"{self.workdir} holds checkpoints but no {CONFIG_FILE}, so there is no telling whose they "
                f"are. Choose another {flag}."
            )
        distributed.wait_for_all("claim")
        text = json.dumps(record, indent=2, sort_keys=True) + "\n"
        if distributed.is_first() and not (path.exists() and path.read_text() == text):
            write_whole(path, text)

    def steps(self):
        """Steps of the finished checkpoints, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, step, state):
        """Writes the pytree `state` under `step` in the background; a step already there is left alone.

        Raises UserError if this checkpoint, or the one before it, cannot be written.
        """
        if step not in self.steps():
            tree = as_dict(state)
            with self._writing():
                self._manager.save(step, args=ocp.args.StandardSave({**tree, DIGEST: digest.of_tree(tree)}))

    def restore(self, template):
        """The newest state that is whole, None where none was ever saved; damaged newer ones are told of and put aside.

        template: a TrainState of ShapeDtypeStructs with shardings, on any mesh. Every process reads all by itself.
        Raises UserError if no checkpoint is whole, or if they are of another network.
        """
        wanted, steps, damaged = as_dict(template), self.steps(), []
        if not distributed.all_of(distributed.agree(steps[:1] or [-1])[0] == (steps[:1] or [-1])[0]):
            raise UserError(
                f"The processes of this run see different checkpoints in {self.workdir}: give all of them "
                "the same --workdir, on a file system that they share."
            )
        for step in steps:
            path, found = self.workdir / "checkpoints" / str(step), None
            try:
                found = _read_again(path, wanted)
            except _Damaged as error:
                warn(str(error))
            if distributed.all_of(found is not None):
                self._put_aside(damaged)
                return template.replace(**jax.tree.map(_place, found, wanted))
            damaged.append(path)
        if damaged or any(self.workdir.glob(f"{DAMAGED}/*")):
            raise UserError(
                f"None of the checkpoints of {self.workdir} is whole. If its storage is at fault, give the "
                "same command again when it is mended; otherwise restore one from a backup, or choose "
                "another --workdir to start anew."
            )
        return None

    def _put_aside(self, paths):
        for path in paths:
            if distributed.is_first():
                warn(f"{path} is put aside in {self.workdir / DAMAGED}.")
                (self.workdir / DAMAGED).mkdir(exist_ok=True)
                target = self.workdir / DAMAGED / path.name
                shutil.rmtree(target, ignore_errors=True)
                path.rename(target)
            distributed.wait_for_all(f"put aside {path.name}")
        if paths:
            self._manager.reload()

    def check(self):
        """Raises UserError if a checkpoint could not be written in the background."""
        with self._writing():
            self._manager.check_for_errors()

    def wait(self):
        """Returns when everything saved is on disk; raises UserError as `save`."""
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds
            if distributed.is_loss(error):
                raise
            good = self.steps()
            raise UserError(
                f"A checkpoint cannot be written to {self.workdir / 'checkpoints'}: {_reason(error)}. Make "
                "room, or mend what else it says; the same command then goes on from "
                f"{f'the checkpoint of step {good[0]}' if good else 'the start'}."
            ) from error

    def close(self):
        """Waits for what is being written, if that can be; errors were told by `check`, `save` or `wait`."""
        with contextlib.suppress(Exception):
            self._manager.close()


def write_whole(path, text):
    """Writes a file that is never seen half-written."""
    with stored.replacing(path) as partial, open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or it may be empty after a power cut


def read_config(directory):
    """The config of a workdir or converted checkpoint as nested dicts; raises UserError."""
    path = Path(directory) / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"{directory} holds no {CONFIG_FILE}, so it was written neither by a run of isnet_jax nor by "
            "isnet_jax.convert; give a directory that was."
        )
    try:
        config = stored.read_json(path)
        if not isinstance(config, dict):
            raise ValueError("no JSON object")
        return config
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or use another directory.") from None


class _Damaged(UserError):
    """The message says which checkpoint, and why."""


def as_dict(state):
    """The fields of a TrainState, those that are not None, or a dict as it is."""
    fields = vars(state) if dataclasses.is_dataclass(state) else state
    return {name: value for name, value in fields.items() if value is not None}


def _reason(error):
    text = str(error).strip()
    if "No space left" in text:
        return "No space left on device"
    return text.splitlines()[0][:300] if text else type(error).__name__


def _read_again(path, wanted):
    """As `_read`, which is tried twice: storage over a network fails at times."""
    try:
        return _read(path, wanted)
    except _Damaged:
        time.sleep(RETRY_SECONDS)
        return _read(path, wanted)


def _read(path, wanted):
    """Some of the fields of the checkpoint .../STEP as NumPy arrays.

    wanted: {field: tree of arrays or ShapeDtypeStructs}. Raises UserError if they are damaged or of another network.
    """
    handler, directory = ocp.PyTreeCheckpointHandler(), epath.Path(path / "default")
    try:
        warnings.filterwarnings("ignore", "Sharding info not provided")  # none is needed for NumPy arrays
        there = handler.metadata(directory).tree
        if "ema" in wanted and not there.get("ema"):
            raise UserError(
                f"The checkpoint {path} holds no moving average of the weights: it was trained with "
                "config.train.ema_decay=0. Leave out --ema."
            )
        _check_network(path, _shapes({name: there.get(name, {}) for name in wanted}), _shapes(wanted))
        template = {**wanted, DIGEST: {name: there[DIGEST][name] for name in wanted if jax.tree.leaves(wanted[name])}}
        _check_sizes({name: there.get(name, {}) for name in wanted} | {DIGEST: template[DIGEST]}, wanted)
        found = handler.restore(
            directory,
            args=ocp.args.PyTreeRestore(
                item=template,
                restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), template),
                partial_restore=True,
            ),
        )
        expected = found.pop(DIGEST)
        wrong = [name for name, sums in digest.of_tree(found).items() if not np.array_equal(sums, expected[name])]
        if wrong:
            raise ValueError(f"the checksum of {', '.join(wrong)} differs")
        return found
    except UserError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds
        if interrupts.asked():
            raise KeyboardInterrupt from None
        raise _Damaged(f"The checkpoint {path} is damaged: {_reason(error)}.") from None


def _check_sizes(there, wanted):
    """Raises ValueError where an array would take more memory than it should: chunks inflate as far as they say."""
    for leaf in jax.tree.leaves(there):
        chunk = leaf.storage.chunk_shape if leaf.storage else ()
        if math.prod(chunk or ()) > max(1, math.prod(leaf.shape)) or np.dtype(leaf.dtype).itemsize > 8:
            raise ValueError("a chunk is larger than its array")
    for name, sums in there[DIGEST].items():
        if sums.shape != (len(jax.tree.leaves(wanted[name])),):
            raise ValueError("it has other checksums than arrays")


def _place(array, like):
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])


def save_variables(directory, config, variables, source):
    """Writes {"params", "batch_stats"} as checkpoint 0 of `directory`, which must not hold another run.

    source: the file they come from, kept as a fact.
    """
    checkpoints = Checkpoints(directory, {**config.to_dict(), CONVERTED: str(source)}, flag="--output")
    if checkpoints.steps():
        raise UserError(f"{directory} already holds checkpoints; choose another --output.")
    checkpoints.save(0, dict(variables))
    checkpoints.wait()
    checkpoints.close()


def load_variables(directory, template, ema=False):
    """{"params", "batch_stats"} from the latest checkpoint of a run or of isnet_jax.convert.

    template: the expected tree, of arrays or ShapeDtypeStructs; ema: take the run's moving averages. Raises UserError
    if there is no checkpoint or average, if it is damaged, or if it is of another network (every name and shape that
    differs is listed).
    """
    directory = Path(os.path.abspath(directory))
    read_config(directory)
    path = newest(directory)
    if path is None:
        raise UserError(f"{directory} holds no finished checkpoint.")
    found = _read(path, {"ema": template} if ema else template)
    return found["ema"] if ema else found


def newest(directory):
    """The newest checkpoint that is finished in a run or converted directory: Path .../STEP, None without any."""
    return max(
        (path for path in Path(directory).glob("checkpoints/*") if path.name.isdecimal()),
        key=lambda path: int(path.name),
        default=None,
    )


def _shapes(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _check_network(path, found, wanted):
    faults = mismatches(found, wanted)
    if faults:
        raise UserError(
            f"The checkpoint {path} is of another network. Variables {faults}. Check that "
            "config.model (backbone, num_classes, shortcut) is that of the checkpoint."
        )
