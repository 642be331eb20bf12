"""Weights to evaluate or to start from: an official file, a run, or a directory of convert or push_to_hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from isnet_jax.checkpoints import safetensors_file, state_dicts
from isnet_jax.checkpoints.downloads import locate
from isnet_jax.checkpoints.hub import WEIGHTS_FILE
from isnet_jax.checkpoints.manager import checkpoint_paths, load_variables, read_config, recorded_config
from isnet_jax.checkpoints.torch_names import backbone_from_torch, from_torch, variable_shapes
from isnet_jax.errors import UserError
from isnet_jax.models.isnet import ISNet
from isnet_jax.runtime import files
from isnet_jax.runtime.console import say

CLASSIFIERS = "stage1_classifier", "stage2_classifier", "auxiliary_classifier"
OFFICIAL_CLASSIFIER = "decoder_stage1.4.weight"  # (classes, channels, 1, 1)


def find_checkpoint(
    checkpoint: str | Path, config: ConfigDict | None, flag: str = "--checkpoint"
) -> tuple[Path, ConfigDict]:
    """The directory or file of a checkpoint, see `downloads.locate`, and its config.

    `config` is that of the command line; without one, it is what a directory records. Raises UserError, which says that
    `flag` gives the checkpoint, if it does not exist, or is a file and `config` is None.
    """
    path = locate(checkpoint, flag)
    if not path.exists():
        raise UserError(
            f"{flag}={checkpoint} does not exist; give the directory of a run or of isnet_jax.convert, an official "
            ".pth or .safetensors file, or hf://OWNER/NAME."
        )
    if config is None:
        if not path.is_dir():
            raise UserError(
                f"{flag}={checkpoint} is a file, which does not record how the network is built and tested: add "
                "--config=FILE[:BACKBONE], as in --config=configs/ade20k.py:resnet101."
            )
        config = recorded_config(path)
    return path, config


def load_network(
    path: str | Path, model: ISNet, ema: bool = False, step: int | None = None, best: bool = False
) -> dict[str, Any]:
    """{"params", "batch_stats"} of a whole ISNet, from an official file or a checkpoint directory.

    With `ema`, the moving averages of a run's weights. `step` names a checkpoint of the directory, by default the
    newest; with `best`, it is the run's best one. Raises UserError if the checkpoint cannot be read or is of another
    network.
    """
    template = variable_shapes(model)
    if Path(path).is_dir():
        _check_activation(path, model)
    path = weights_file(path)
    if path.is_dir():
        return load_variables(path, template, ema, step, best)
    if ema or best:
        flag, lacks = ("--ema", "no moving averages") if ema else ("--best", "only one checkpoint")
        raise UserError(f"{path} is a file, which holds {lacks}; leave out {flag}.")
    variables = from_torch(state_dicts.read(path), model)
    return jax.tree.map(lambda array, expected: np.asarray(array, expected.dtype), variables, template)


def weights_file(path: str | Path) -> Path:
    """The file of the weights in a directory that isnet_jax.push_to_hub made; any other `path` itself."""
    shared = Path(path) / WEIGHTS_FILE
    return shared if shared.is_file() and not checkpoint_paths(path) else Path(path)


def _check_activation(directory: str | Path, model: ISNet) -> None:
    """Raises UserError if the network was trained with another activation, which no shape reveals."""
    activation = _recorded_model(directory).get("activation")
    if activation not in (None, model.activation):
        raise UserError(
            f"{directory} was trained with config.model.activation={activation}, but the config has "
            f"{model.activation}; add --config.model.activation={activation}."
        )


def _recorded_model(directory: str | Path) -> dict[str, Any]:
    """The section `model` of the config in a directory, {} without one; raises UserError if there is no config."""
    recorded = read_config(directory).get("model")
    return recorded if isinstance(recorded, dict) else {}


def load_pretrained(path: str | Path, model: ISNet, variables: Mapping[str, Any]) -> dict[str, Any]:
    """`variables` {"params", "batch_stats"}, with the modules found at `path` replaced, in the same dtypes.

    `path` is a file with an ISNet or an ImageNet backbone, or a checkpoint directory. The classifiers of an ISNet with
    another number of classes are left as in `variables`; a line says what was loaded and what is new. Raises UserError
    if the checkpoint cannot be read or is of another network otherwise.
    """
    path = weights_file(path)
    loaded, num_classes = _load_directory(path, model) if path.is_dir() else _load_file(path, model)
    if num_classes != model.num_classes:
        loaded["params"] = {name: tree for name, tree in loaded["params"].items() if name not in CLASSIFIERS}
    new = sorted(set(variables["params"]) - set(loaded["params"]))
    classes = f" ({num_classes} classes there, {model.num_classes} here)" if num_classes != model.num_classes else ""
    say(
        f"{path}: loaded {len(jax.tree.leaves(loaded))} of {len(jax.tree.leaves(variables))} arrays"
        + (f"; new: {', '.join(new)}{classes}" if new else "")
    )
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


def _load_directory(directory: str | Path, model: ISNet) -> tuple[dict[str, Any], int]:
    """The variables of an ISNet that is `model` up to the number of its classes, and that number."""
    source = _with_classes(model, _recorded_model(directory).get("num_classes"))
    return dict(load_variables(directory, variable_shapes(source))), source.num_classes


def _load_file(path: str | Path, model: ISNet) -> tuple[dict[str, Any], int]:
    """The same from a file; the number of classes of a backbone is `model`'s."""
    state_dict = state_dicts.read(path)
    if not any(name.startswith("decoder_stage1.") for name in state_dict):
        parts = {name.partition(".")[0] for name in state_dict}
        if others := sorted(parts - {"backbone"} if "backbone" in parts else ()):
            state_dict = {name: array for name, array in state_dict.items() if name.startswith("backbone.")}
            say(f"{path}: only the backbone is taken, not {', '.join(others)}")
        return backbone_from_torch(state_dict, model), model.num_classes
    source = _with_classes(model, next(iter(getattr(state_dict.get(OFFICIAL_CLASSIFIER), "shape", ())), None))
    return from_torch(state_dict, source), source.num_classes


def _with_classes(model: ISNet, num_classes: Any) -> ISNet:
    """`model` with another number of classes, if that is a valid one; files may say anything."""
    is_valid = type(num_classes) is int and 1 <= num_classes <= 255
    return model.clone(num_classes=num_classes) if is_valid else model


def write_state_dict(path: str | Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes an official state dict as a .safetensors file if `path` ends so, else as a .pth file.

    Raises UserError if the file cannot be written, or is a .pth and PyTorch is not installed.
    """
    try:
        if Path(path).suffix == ".safetensors":
            safetensors_file.write(path, state_dict)
        else:
            _write_pth(Path(path), state_dict)
    except (OSError, RuntimeError) as error:
        raise UserError(f"--output={path} cannot be written ({error}).") from None


def _write_pth(path: Path, state_dict: Mapping[str, np.ndarray]) -> None:
    try:
        import torch
    except ImportError:
        raise UserError(
            "Writing a .pth file needs PyTorch, which is not installed: pip install torch, or write a .safetensors "
            "file."
        ) from None
    with files.atomic_write(path) as partial:
        torch.save({"model": {name: torch.from_numpy(array.copy()) for name, array in state_dict.items()}}, partial)
