"""Trains and evaluates ISNet.

usage: python -m isnet_jax.main --config=configs/ade20k.py[:BACKBONE] [--workdir=DIR] [--config.FIELD=VALUE ...]

  --config    the recipe; BACKBONE is resnet18, 34, 50, 101, 152 or resnest50, 101, 200
  --workdir   checkpoints, logs and results go here (default runs/<config name>); a run there is gone on with
"""
import sys

from absl import flags

from isnet_jax import command


def _define_flags():
    flags.DEFINE_string("workdir", None, "checkpoints, logs and results")


def _main(config, values):
    from isnet_jax import job  # after the command line is known to be right: it takes seconds
    job.run(config, values.workdir or f"runs/{command.config_name(sys.argv)}")


if __name__ == "__main__":
    command.run(_main, __doc__, _define_flags)
