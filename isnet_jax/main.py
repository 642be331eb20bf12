"""Trains and evaluates ISNet.

usage: python -m isnet_jax.main --config=configs/ade20k.py[:BACKBONE] [--workdir=DIR] [--config.FIELD=VALUE ...]
                                [--resume_with_changes | --resume_from=DIR [--best]]
                                [--coordinator=HOST:PORT --num_processes=N --process_id=I]

  --config        the recipe; BACKBONE is resnet18, 34, 50, 101, 152, resnest50, 101, 200, or of another kind than
                  the official ones: resnet50b, 101b (torchvision's), resnet50d, 101d (timm's)
  --workdir       directory of checkpoints, logs and results (default runs/<config name>); a run in it is resumed. All
                  processes share it
  --resume_with_changes  go on with the run in --workdir under another config: more epochs, another rate or other data.
                  The changes are printed, and the old config is kept
  --resume_from   the workdir of a run: a new --workdir goes on from its newest state, or from its best one (--best)
  --print_config  prints every field of the config and exits, as with every command that takes --config

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
    flags.DEFINE_boolean("resume_with_changes", False, "the run in --workdir may have another config")
    flags.DEFINE_string("resume_from", None, "the workdir of a run that a new one goes on from")
    flags.DEFINE_boolean("best", False, "resume from the best state")
    cli.define_process_flags()


def _main(config: "ConfigDict", flag_values: Any) -> None:
    from isnet_jax.runtime import distributed  # once the command line is known to be right: it takes seconds
    from isnet_jax.training.changes import Resumption
    from isnet_jax.training.loop import train_and_evaluate

    if flag_values.resume_from and flag_values.resume_with_changes:
        raise flags.Error("--resume_from goes on in a new --workdir; leave out --resume_with_changes")
    if flag_values.best and not flag_values.resume_from:
        raise flags.Error("--best goes with --resume_from=DIR")
    workdir = flag_values.workdir or f"runs/{cli.config_name(sys.argv)}"
    resumption = Resumption(flag_values.resume_with_changes, flag_values.resume_from, flag_values.best)
    with distributed.process_group(flag_values, "from the last checkpoint"):
        train_and_evaluate(config, workdir, resumption)


if __name__ == "__main__":
    cli.run(_main, __doc__, _define_flags)
