"""Conversion of a checkpoint between an official file (.pth, .safetensors) and a checkpoint directory."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from isnet_jax.checkpoints.manager import save_variables
from isnet_jax.checkpoints.pretrained import find_checkpoint, load_network, load_pretrained, write_state_dict
from isnet_jax.checkpoints.torch_names import to_torch
from isnet_jax.errors import UserError
from isnet_jax.models.isnet import count_parameters, create_model


class Converted(NamedTuple):
    """What a conversion wrote."""

    source: Path  # the checkpoint that it read
    config: ConfigDict  # of the network
    variables: dict[str, Any]  # {"params", "batch_stats"}
    untrained: tuple[str, ...]  # modules that the checkpoint did not hold

    @property
    def num_parameters(self) -> int:
        return count_parameters(self.variables["params"])


def convert_checkpoint(
    config: ConfigDict | None, source: str, target: str, ema: bool = False, best: bool = False
) -> Converted:
    """Converts the checkpoint `source` to `target`.

    A `target` named *.pth, *.pt or *.safetensors becomes an official file, any other a checkpoint directory. `config`
    is by default what the directory `source` records. If the file `source` is only a backbone, or has another number of
    classes, all other variables are initialised from config.seed. With `ema`, a run's moving averages become an
    official file; with `best`, its best checkpoint does. Raises UserError if `source` cannot be read or is of another
    network, or if `target` cannot be written.
    """
    path, config = find_checkpoint(source, config, "--input")
    model, to_file = create_model(config.model), target.endswith((".pth", ".pt", ".safetensors"))
    if (best or ema) and not (path.is_dir() and to_file):
        flag, weights = ("--best", "the best checkpoint") if best else ("--ema", "the moving averages")
        raise UserError(
            f"{flag} converts {weights} of a run: give --input=DIR and --output=FILE.pth or FILE.safetensors."
        )
    untrained: tuple[str, ...] = ()
    if path.is_dir() and to_file:
        variables = load_network(path, model, ema, best=best)
    else:
        images = np.zeros((1, 32, 32, 3), np.float32)
        initial = jax.device_get(jax.jit(lambda: model.init(jax.random.key(config.seed), images))())
        variables = load_pretrained(path, model, initial)
        untrained = tuple(name for name, tree in variables["params"].items() if tree is initial["params"][name])
    if to_file:
        write_state_dict(target, to_torch(variables, model))
    else:
        save_variables(target, config, variables, path.resolve(), untrained)
    return Converted(path, config, variables, untrained)
