"""Writes what both frameworks train from: the initial weights, and every batch as the train step sees it.

usage: python -m benchmarks.accuracy.export --config=FILE --output=DIR [--stop=N] [--config.FIELD=VALUE ...]

  --stop  writes the batches of the first N steps only

DIR gets init.pth, an official state dict with the weights that a run of this config starts from; image.npy uint8
(steps, B, H, W, 3) after photometric distortion; label.npy uint8 (steps, B, H, W); window.npy int32 (steps, B, 4), the
unpadded region of each image; and config.json. It appears once it is whole.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import tqdm
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict
from numpy.lib.format import open_memmap

from isnet_jax import cli
from isnet_jax.checkpoints.torch_names import to_torch
from isnet_jax.input import pipeline
from isnet_jax.input.data import open_data
from isnet_jax.models.isnet import create_model
from isnet_jax.runtime import sharding
from isnet_jax.training.browsing import distorted
from isnet_jax.training.optimizer import make_optimizer, make_schedule
from isnet_jax.training.start import restore_or_init


def initial_weights(config: ConfigDict, mesh: Mesh) -> dict[str, torch.Tensor]:
    """The state dict that a run of `config` starts from."""
    model, optimizer = create_model(config.model), make_optimizer(config.train, make_schedule(config.train, 1))
    state, _ = restore_or_init(config, model, optimizer, mesh, restore=lambda template: None)
    state_dict = to_torch(jax.device_get(state.variables), model)
    return {name: torch.from_numpy(np.array(array)) for name, array in state_dict.items()}


def export(config: ConfigDict, output: Path, stop: int | None) -> None:
    """Writes the files of the module's docstring."""
    mesh = sharding.training_mesh(config)
    data = open_data(config, mesh, config.data.train_split, config.data.eval_split)
    stop = stop or data.total_steps
    partial = output.with_name(f"{output.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    torch.save(initial_weights(config, mesh), partial / "init.pth")
    (partial / "config.json").write_text(json.dumps({**config.to_dict(), "total_steps": data.total_steps}))
    files: dict[str, np.memmap] = {}
    with pipeline.train_batches(data.training, config, 0, stop) as batches:
        for step, batch in enumerate(tqdm.tqdm(distorted(config, batches), total=stop, disable=None)):
            for name in ("image", "label", "window"):
                array = batch[name]
                if name not in files:
                    files[name] = open_memmap(partial / f"{name}.npy", "w+", array.dtype, (stop, *array.shape))
                files[name][step] = array
    for file in files.values():
        file.flush()
    partial.rename(output)


def _define_flags() -> None:
    flags.DEFINE_string("output", None, "directory to write", required=True)
    flags.DEFINE_integer("stop", None, "number of steps", lower_bound=1)


def _main(config: ConfigDict, flag_values: Any) -> None:
    export(config, Path(flag_values.output), flag_values.stop)


if __name__ == "__main__":
    cli.run(_main, __doc__, _define_flags, resume_hint="from the start")
