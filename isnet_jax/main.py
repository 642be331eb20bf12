"""Trains and evaluates ISNet.

usage: python -m isnet_jax.main --config=configs/ade20k.py[:BACKBONE] [--workdir=DIR] [--config.FIELD=VALUE ...]
                                [--coordinator=HOST:PORT --num_processes=N --process_id=I]

  --config    the recipe; BACKBONE is resnet18, 34, 50, 101, 152 or resnest50, 101, 200
  --workdir   directory of checkpoints, logs and results (default runs/<config name>); a run in it is resumed. All
              processes share it

On Cloud TPU, under Slurm and in Kubernetes the processes find each other. Elsewhere the last three flags give each
process the address of process 0, the number of processes, and its index.

Exit code 75: stopped by SIGTERM after a checkpoint, or because another process died; the same command resumes the run.
"""

import sys
from typing import TYPE_CHECKING, Any

from absl import flags

from isnet_jax import cli

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "directory of checkpoints, logs and results")
    cli.define_process_flags()


def _main(config: "ConfigDict", flag_values: Any) -> None:
    from isnet_jax.runtime import distributed  # once the command line is known to be right: it takes seconds
    from isnet_jax.training.loop import train_and_evaluate

    with distributed.process_group(flag_values, "from the last checkpoint"):
        train_and_evaluate(config, flag_values.workdir or f"runs/{cli.config_name(sys.argv)}")


if __name__ == "__main__":
    cli.run(_main, __doc__, _define_flags)
