"""Writes the backbone of a run's network as an official file, from which other runs start as from ImageNet weights.

usage: python -m benchmarks.accuracy.backbone WORKDIR OUTPUT.safetensors
"""

import sys
from pathlib import Path

from isnet_jax.checkpoints import safetensors_file
from isnet_jax.checkpoints.manager import recorded_config
from isnet_jax.checkpoints.pretrained import load_network
from isnet_jax.checkpoints.torch_names import to_torch
from isnet_jax.models.isnet import create_model


def write_backbone(workdir: Path, output: Path) -> None:
    """Writes the file of the module's docstring."""
    model = create_model(recorded_config(workdir).model)
    state_dict = to_torch(load_network(workdir, model), model)
    safetensors_file.write(
        output, {name: array for name, array in state_dict.items() if name.startswith("backbone_net.")}
    )


if __name__ == "__main__":
    write_backbone(*map(Path, sys.argv[1:]))
