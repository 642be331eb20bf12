"""Checkpoints in a workdir: Orbax, written in the background, with the config they belong to."""
import json
import os
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from isnet_jax import config as configs
from isnet_jax.errors import UserError, mismatches

CONFIG_FILE = "config.json"
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
            self._claim(json.loads(json.dumps(record)), flag)
        except OSError as error:
            raise UserError(f"The directory {workdir} cannot be written ({error.strerror}); choose another "
                            f"{flag}.") from None
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.workdir / "checkpoints", options=options)

    def _claim(self, record, flag):
        path = self.workdir / CONFIG_FILE
        if path.exists():
            there = read_config(self.workdir)
            if CONVERTED in there and CONVERTED not in record:
                raise UserError(f"{self.workdir} holds a converted checkpoint, not a run: give it as "
                                f"--config.train.pretrained={self.workdir}, and another {flag}.")
            lines = configs.differences(record, there)
            if lines:
                raise UserError(f"{self.workdir} holds a run of another config ({'; '.join(lines)}). Choose another "
                                f"{flag}, or delete this one to start anew.")
        elif any(self.workdir.glob("checkpoints/*")):
            raise UserError(f"{self.workdir} holds checkpoints but no {CONFIG_FILE}, so there is no telling whose they "
                            f"are. Choose another {flag}.")
        if jax.process_index() == 0:
            write_whole(path, json.dumps(record, indent=2, sort_keys=True) + "\n")

    def latest_step(self):
        return self._manager.latest_step()

    def save(self, step, state):
        """Writes the pytree `state` under `step` in the background; a step already there is left alone."""
        if step != self._manager.latest_step():
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, template):
        """The latest state, with the shapes, dtypes and shardings of `template` (arrays or ShapeDtypeStructs)."""
        step = self.latest_step()
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(template))
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise _damaged(self.workdir / "checkpoints" / str(step), error, "Delete that directory to go on from the "
                           "checkpoint before it, if there is one.") from None

    def wait(self):
        """Returns when everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self):
        self.wait()
        self._manager.close()


def write_whole(path, text):
    """Writes a file that is never seen half-written."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_config(directory):
    """The config of a workdir or converted checkpoint as nested dicts; raises UserError."""
    path = Path(directory) / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{directory} holds no {CONFIG_FILE}, so it was written neither by a run of isnet_jax nor by "
                        "isnet_jax.convert; give a directory that was.")
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError("no JSON object")
        return config
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or use another directory.") from None


def _damaged(path, error, advice):
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    return UserError(f"The checkpoint {path} cannot be read: it is damaged ({reason}). {advice}")


def save_variables(directory, config, variables, source):
    """Writes {"params", "batch_stats"} as checkpoint 0 of `directory`, which must not hold another run.

    source: the file they come from, kept as a fact.
    """
    checkpoints = Checkpoints(directory, {**config.to_dict(), CONVERTED: str(source)}, flag="--output")
    if checkpoints.latest_step() is not None:
        raise UserError(f"{directory} already holds checkpoints; choose another --output.")
    checkpoints.save(0, dict(variables))
    checkpoints.close()


def load_variables(directory, template, ema=False):
    """{"params", "batch_stats"} from the latest checkpoint of a run or of isnet_jax.convert.

    template: the expected tree, of arrays or ShapeDtypeStructs; ema: take the run's moving averages. Raises UserError
    if there is no checkpoint or average, if it is damaged, or if it is of another network (every name and shape that
    differs is listed).
    """
    directory = Path(os.path.abspath(directory))
    read_config(directory)
    manager = ocp.CheckpointManager(directory / "checkpoints", item_handlers=ocp.PyTreeCheckpointHandler(),
                                    options=ocp.CheckpointManagerOptions(read_only=True))
    step = manager.latest_step()
    if step is None:
        raise UserError(f"{directory} holds no finished checkpoint.")
    path = directory / "checkpoints" / str(step)
    try:
        metadata, wanted = manager.item_metadata(step).tree, template
        if ema:
            if not metadata.get("ema"):
                raise UserError(f"The checkpoint {path} holds no moving average of the weights: it was trained with "
                                "config.train.ema_decay=0. Leave out --ema.")
            metadata, template = metadata["ema"], {"ema": template}
        _check_network(path, _shapes({kind: metadata.get(kind, {}) for kind in wanted}), _shapes(wanted))
        found = manager.restore(step, args=ocp.args.PyTreeRestore(
            item=template, restore_args=ocp.checkpoint_utils.construct_restore_args(template), partial_restore=True))
        return found["ema"] if ema else found
    except UserError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds
        raise _damaged(path, error, "Give another one.") from None
    finally:
        manager.close()


def newest(directory):
    """The newest checkpoint that is finished in a run or converted directory: Path .../STEP, None without any."""
    return max((path for path in Path(directory).glob("checkpoints/*") if path.name.isdigit()),
               key=lambda path: int(path.name), default=None)


def _shapes(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _check_network(path, found, wanted):
    faults = mismatches(found, wanted)
    if faults:
        raise UserError(f"The checkpoint {path} is of another network. Variables {faults}. Check that "
                        "config.model (backbone, num_classes, shortcut) is that of the checkpoint.")
