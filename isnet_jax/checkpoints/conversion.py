"""Conversion of a checkpoint between an official `.pth` file and a checkpoint directory."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from isnet_jax.checkpoints.manager import load_variables, save_variables
from isnet_jax.checkpoints.pretrained import load_pretrained, write_pth
from isnet_jax.checkpoints.torch_names import to_torch, variable_shapes
from isnet_jax.errors import UserError
from isnet_jax.models.isnet import create_model


def convert_checkpoint(config: ConfigDict, source: str, target: str, best: bool = False) -> int:
    """Converts the checkpoint `source` to `target` and returns the number of parameters.

    A `target` named *.pth or *.pt becomes an official file, any other a checkpoint directory. If `source` is only a
    backbone, all other variables are initialised from config.seed. With `best`, a run's best checkpoint becomes an
    official file. Raises UserError if `source` cannot be read or is of another network, or if `target` cannot be
    written.
    """
    model = create_model(config.model)
    if not Path(source).exists():
        raise UserError(f"--input={source} does not exist; give a .pth file or a checkpoint directory.")
    to_file = target.endswith((".pth", ".pt"))
    if best and not (Path(source).is_dir() and to_file):
        raise UserError("--best converts the best checkpoint of a run: give --input=DIR and --output=FILE.pth.")
    if to_file:
        variables = load_variables(source, variable_shapes(model), best=best)
        write_pth(target, to_torch(variables, model))
    else:
        images = np.zeros((1, 32, 32, 3), np.float32)
        initial = jax.jit(lambda: model.init(jax.random.key(config.seed), images))()
        variables = load_pretrained(source, model, jax.device_get(initial))
        save_variables(target, config, variables, Path(source).resolve())
    return sum(x.size for x in jax.tree.leaves(variables["params"]))
