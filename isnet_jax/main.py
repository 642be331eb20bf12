"""Trains and evaluates ISNet.

usage: python -m isnet_jax.main --config=configs/ade20k.py[:BACKBONE] [--workdir=DIR] [--config.FIELD=VALUE ...]
                                [--coordinator=HOST:PORT --num_processes=N --process_id=I]

  --config    the recipe; BACKBONE is resnet18, 34, 50, 101, 152 or resnest50, 101, 200
  --workdir   checkpoints, logs and results go here (default runs/<config name>); a run there is gone on with. Several
              processes share it

On Cloud TPU, under Slurm and in Kubernetes the processes find each other; elsewhere each is told with the last three
flags where process 0 listens, how many there are, and which it is.

Exit code 75: stopped by SIGTERM after a checkpoint, or because another process died; the same command goes on.
"""

import sys

from absl import flags

from isnet_jax import command


def _define_flags():
    from isnet_jax import distributed  # with JAX

    flags.DEFINE_string("workdir", None, "checkpoints, logs and results")
    distributed.define_flags()


def _main(config, values):
    from isnet_jax import distributed, job  # after the command line is known to be right: it takes seconds

    with distributed.joined(values, "from the last checkpoint"):
        job.run(config, values.workdir or f"runs/{command.config_name(sys.argv)}")


if __name__ == "__main__":
    command.run(_main, __doc__, _define_flags)
