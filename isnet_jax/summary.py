"""Prints what a recipe consists of: blocks, shapes, parameters and FLOPs, the memory of a step, the length of a run.

usage: python -m isnet_jax.summary --config=FILE[:BACKBONE] [--workdir=DIR] [--config.FIELD=VALUE ...]

  --workdir  a run of this config, whose logged speed gives the time of the whole run (default runs/<config name>)

Nothing is compiled, and no data are needed: without prepared data, the number of steps is not known. The memory is
estimated; isnet_jax.compile_check asks the compiler.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from isnet_jax import cli

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "a run of this config")


def _main(config: "ConfigDict", flag_values: Any) -> None:
    from isnet_jax.training.summary import summarise  # imports JAX

    name = cli.config_name(sys.argv)
    summarise(config, name, Path(flag_values.workdir or f"runs/{name}"))


if __name__ == "__main__":
    cli.run(_main, __doc__, _define_flags, resume_hint="")
