"""Weights to evaluate or to start from: a `.pth` file, a run, or a directory written by isnet_jax.convert."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from isnet_jax.checkpoints import pth
from isnet_jax.checkpoints.manager import load_variables, read_config
from isnet_jax.checkpoints.torch_names import backbone_from_torch, from_torch, variable_shapes
from isnet_jax.errors import UserError
from isnet_jax.models.isnet import ISNet
from isnet_jax.runtime import files


def load_network(
    path: str | Path, model: ISNet, ema: bool = False, step: int | None = None, best: bool = False
) -> dict[str, Any]:
    """{"params", "batch_stats"} of a whole ISNet, from an official `.pth` file or a checkpoint directory.

    With `ema`, the moving averages of a run's weights. `step` names a checkpoint of the directory, by default the
    newest; with `best`, it is the run's best one. Raises UserError if the checkpoint cannot be read or is of another
    network.
    """
    template = variable_shapes(model)
    if Path(path).is_dir():
        _check_activation(path, model)
        return load_variables(path, template, ema, step, best)
    if ema or best:
        flag, lacks = ("--ema", "no moving averages") if ema else ("--best", "only one checkpoint")
        raise UserError(f"{path} is a file, which holds {lacks}; leave out {flag}.")
    variables = from_torch(pth.state_dict(path), model)
    return jax.tree.map(lambda array, expected: np.asarray(array, expected.dtype), variables, template)


def _check_activation(directory: str | Path, model: ISNet) -> None:
    """Raises UserError if the network was trained with another activation, which no shape reveals."""
    recorded = read_config(directory).get("model")
    activation = recorded.get("activation") if isinstance(recorded, dict) else None
    if activation not in (None, model.activation):
        raise UserError(
            f"{directory} was trained with config.model.activation={activation}, but the config has "
            f"{model.activation}; add --config.model.activation={activation}."
        )


def load_pretrained(path: str | Path, model: ISNet, variables: Mapping[str, Any]) -> dict[str, Any]:
    """`variables` {"params", "batch_stats"}, with the modules found at `path` replaced, in the same dtypes.

    `path` is a `.pth` file of an official ISNet or of an ImageNet backbone, or a checkpoint directory. Raises UserError
    if it cannot be read or is of another network.
    """
    if Path(path).is_dir():
        return load_variables(path, variables)
    state_dict = pth.state_dict(path)
    is_isnet = any(name.startswith("decoder_stage1.") for name in state_dict)
    loaded = (from_torch if is_isnet else backbone_from_torch)(state_dict, model)
    return {
        collection: {
            **variables[collection],
            **{
                name: jax.tree.map(lambda new, old: np.asarray(new, old.dtype), tree, variables[collection][name])
                for name, tree in loaded[collection].items()
            },
        }
        for collection in loaded
    }


def write_pth(path: str | Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes an official state dict as a `.pth` file.

    Raises UserError if PyTorch is not installed or the file cannot be written.
    """
    try:
        import torch
    except ImportError:
        raise UserError("Writing a .pth file needs PyTorch, which is not installed: pip install torch.") from None
    try:
        with files.atomic_write(Path(path)) as partial:
            torch.save({"model": {name: torch.from_numpy(array.copy()) for name, array in state_dict.items()}}, partial)
    except (OSError, RuntimeError) as error:
        raise UserError(f"--output={path} cannot be written ({error}).") from None
