"""Converts official PyTorch checkpoints to checkpoints of this project and back, name by name and bit by bit.

usage: python -m isnet_jax.convert --config=configs/ade20k.py[:BACKBONE] --input=FILE --output=DIR
       python -m isnet_jax.convert --input=DIR [--best] [--ema] --output=FILE [--license=NAME]

  FILE  a .pth or .safetensors file of an official ISNet, or of the ImageNet weights of its backbone: all other weights
        are then initialised, as are the classifiers if the number of classes differs. It is read without PyTorch and
        without executing anything in it. Writing a .pth needs PyTorch. --input also takes a name such as
        isnet-ade20k-resnet50 or hf://OWNER/NAME, which is downloaded once (docs/training.md)
  DIR   a checkpoint directory: of a training run, or written by this command; its config is used unless --config is
        given
  --best  converts the best checkpoint of a run with config.run.best_metric, not the newest
  --ema   converts the moving averages of a run's weights
  --license  of the weights, such as mit, as the model card states it: README.md in DIR, or FILE.md beside FILE
"""

import importlib
from typing import TYPE_CHECKING, Any

from absl import flags

from isnet_jax import cli

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from isnet_jax.checkpoints.torch_names import from_torch, to_torch

__all__ = ["from_torch", "to_torch"]


def __getattr__(name: str) -> Any:
    """Imports the public names on first use, since they need JAX."""
    if name in __all__:
        return getattr(importlib.import_module("isnet_jax.checkpoints.torch_names"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _define_flags() -> None:
    flags.DEFINE_string("input", None, "FILE, DIR or a name", required=True)
    flags.DEFINE_string("output", None, "DIR or FILE", required=True)
    flags.DEFINE_boolean("best", False, "the best checkpoint of a run")
    flags.DEFINE_boolean("ema", False, "the moving averages of a run")
    flags.DEFINE_string("license", None, "of the weights")


def _main(config: "ConfigDict | None", flag_values: flags.FlagValues) -> None:
    from isnet_jax.checkpoints.conversion import convert_checkpoint
    from isnet_jax.evaluation import card
    from isnet_jax.models.isnet import describe

    source, target, ema, best = flag_values.input, flag_values.output, flag_values.ema, flag_values.best
    card.check_license(flag_values.license)
    converted = convert_checkpoint(config, source, target, ema, best)
    model, millions = converted.config.model, converted.num_parameters / 1e6
    print(f"{source} -> {target}: {describe(model)}, {model.num_classes} classes, {millions:.1f} M parameters")
    card.write_converted(converted, source, target, ema, best, flag_values.license)


if __name__ == "__main__":
    cli.run(_main, __doc__, _define_flags, needs_config=False)
