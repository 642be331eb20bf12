"""Checkpoints in a workdir: Orbax, written in the background, with the config they belong to."""
import json
import os
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from isnet_jax import config as configs
from isnet_jax.errors import UserError

CONFIG_FILE = "config.json"


class Checkpoints:
    """The checkpoints of one run, in `workdir`/checkpoints/STEP."""

    def __init__(self, workdir, config, keep=None):
        """Opens or starts a workdir; raises UserError if it holds a run of another config."""
        self.workdir = Path(os.path.abspath(workdir))
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"The workdir {workdir} cannot be created ({error.strerror}); choose another --workdir.")
        self._claim(config)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.workdir / "checkpoints", options=options)

    def _claim(self, config):
        ours = json.loads(config.to_json_best_effort())
        path = self.workdir / CONFIG_FILE
        if path.exists():
            theirs = read_config(self.workdir)
            lines = configs.differences(ours, theirs)
            if lines:
                raise UserError(f"{self.workdir} holds a run of another config ({'; '.join(lines)}). Choose another "
                                "--workdir, or delete this one to start anew.")
        elif any(self.workdir.glob("checkpoints/*")):
            raise UserError(f"{self.workdir} holds checkpoints but no {CONFIG_FILE}, so there is no telling whose they "
                            "are. Choose another --workdir.")
        if jax.process_index() == 0:
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(ours, indent=2, sort_keys=True) + "\n")
            partial.replace(path)

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
            raise _damaged(self.workdir / "checkpoints" / str(step), error) from None

    def close(self):
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def read_config(workdir):
    """The config of a workdir or converted checkpoint as nested dicts; raises UserError."""
    path = Path(workdir) / CONFIG_FILE
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {workdir} is no workdir of isnet_jax. Give the directory "
                        "that --workdir or isnet_jax.convert wrote.") from None


def _damaged(path, error):
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    return UserError(f"The checkpoint {path} cannot be read: it is damaged or of another network ({reason}). Delete "
                     "that directory to go on from the checkpoint before it, if there is one.")


def save_variables(directory, config, variables):
    """Writes {"params", "batch_stats"} as checkpoint 0 of `directory`, which must not hold another run."""
    checkpoints = Checkpoints(directory, config)
    if checkpoints.latest_step() is not None:
        raise UserError(f"{directory} already holds checkpoints; choose another --output.")
    checkpoints.save(0, dict(variables))
    checkpoints.close()


def load_variables(directory, model_variables, ema=False):
    """{"params", "batch_stats"} from the latest checkpoint of a workdir or converted directory.

    model_variables: the expected tree of arrays or ShapeDtypeStructs. Returns NumPy-backed arrays on the default
    device. Raises UserError if there is no checkpoint, or it is damaged or of another network.
    """
    directory = Path(os.path.abspath(directory))
    read_config(directory)
    manager = ocp.CheckpointManager(directory / "checkpoints", options=ocp.CheckpointManagerOptions(read_only=True))
    step = manager.latest_step()
    if step is None:
        raise UserError(f"{directory} holds no finished checkpoint.")
    path = directory / "checkpoints" / str(step)
    template = {"ema": model_variables} if ema else model_variables
    try:
        restored = manager.restore(step, args=ocp.args.PyTreeRestore(
            item=template, restore_args=ocp.checkpoint_utils.construct_restore_args(template), partial_restore=True))
    except Exception as error:
        raise _damaged(path, error) from None
    finally:
        manager.close()
    return restored["ema"] if ema else restored
