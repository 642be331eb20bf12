"""Exports a network to a file that other runtimes run, and compares the file with the network.

usage: python -m isnet_jax.export --checkpoint=DIR --format=stablehlo|onnx|savedmodel --output=FILE [--size=HxW]
                                  [--scores=argmax|softmax|logits] [--dtype=float32|bfloat16] [--best] [--ema]
                                  [--license=NAME]
       python -m isnet_jax.export --checkpoint=FILE.pth --config=FILE[:BACKBONE] ...

  --checkpoint  the directory of a training run or of isnet_jax.convert or hf://OWNER/NAME, whose config is used, or an
                official .pth
  --format      stablehlo: one file for CPUs, CUDA and TPUs, run by jax.export; onnx: run by onnxruntime and others;
                savedmodel: run by TensorFlow
  --output      FILE.stablehlo, FILE.onnx, or a new directory for a SavedModel. FILE.json beside it says how images are
                prepared, what comes out, and the names and colours of the classes; FILE.md, or README.md in a
                directory, is a model card
  --size        height x width of the only image size, as in 512x683, or dynamic (default): any number of images of any
                size
  --scores      of the first output, at the resolution of the input: argmax (classes, uint8; default), softmax
                (probabilities, float32) or logits
  --dtype       of activations (default: that of the config; float32 for ONNX)
  --best        use the best checkpoint of a run with config.run.best_metric, not the newest
  --ema         use the moving averages of a run's weights
  --license     of the weights, such as mit, as the model card states it

The input is RGB uint8 (B, H, W, 3); normalisation is inside. The command ends with an error, and without a file, if the
file and the network do not agree on three images. `isnet_jax.predict --checkpoint=FILE` takes the first two formats.
"""

import re
from typing import TYPE_CHECKING

from absl import flags

from isnet_jax import cli

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def _define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "the weights to export", required=True)
    flags.DEFINE_enum("format", None, ["stablehlo", "onnx", "savedmodel"], "the format", required=True)
    flags.DEFINE_string("output", None, "the file or directory to write", required=True)
    flags.DEFINE_string("size", "dynamic", "HEIGHTxWIDTH, or dynamic")
    flags.DEFINE_enum("scores", "argmax", ["argmax", "softmax", "logits"], "the first output")
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "of activations")
    flags.DEFINE_boolean("best", False, "use the best checkpoint")
    flags.DEFINE_boolean("ema", False, "use the moving averages")
    flags.DEFINE_string("license", None, "of the weights")


def _main(config: "ConfigDict | None", flag_values: flags.FlagValues) -> None:
    size = _parse_size(flag_values.size)
    from isnet_jax.evaluation.exporting import export_checkpoint

    export_checkpoint(
        flag_values.checkpoint,
        flag_values.output,
        flag_values.format,
        size=size,
        scores=flag_values.scores,
        dtype=flag_values.dtype,
        config=config,
        ema=flag_values.ema,
        best=flag_values.best,
        license=flag_values.license,
    )


def _parse_size(text: str) -> tuple[int, int] | None:
    """(height, width), or None for dynamic; raises flags.Error."""
    if text == "dynamic":
        return None
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not found:
        raise flags.Error(f"--size={text} must be dynamic, or height x width, as in 512x683")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    cli.run(_main, __doc__, _define_flags, needs_config=False, resume_hint="from the start")
