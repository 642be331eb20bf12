"""Shows the batches of a run as the network will see them: images after augmentation, with their labels.

usage: python -m isnet_jax.browse --config=FILE[:BACKBONE] [--output=DIR] [--step=N] [--num=16]
                                  [--config.FIELD=VALUE ...]

  --output  directory of index.html and its pictures (default runs/<config name>-batches)
  --step    the first step to show, as a run numbers them (default 1)
  --num     number of examples (default 16)

These are exactly the batches of isnet_jax.main with the same config, its seed included. The network is not built. Data
that are not prepared yet are prepared first.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from isnet_jax import cli

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def _define_flags() -> None:
    flags.DEFINE_string("output", None, "directory of the page")
    flags.DEFINE_integer("step", 1, "first step", lower_bound=1)
    flags.DEFINE_integer("num", 16, "number of examples", lower_bound=1)


def _main(config: "ConfigDict", flag_values: Any) -> None:
    from isnet_jax.training.browsing import browse  # imports JAX and TensorFlow

    name = cli.config_name(sys.argv)
    output = Path(flag_values.output or f"runs/{name}-batches")
    browse(config, name, output, flag_values.step, flag_values.num)


if __name__ == "__main__":
    cli.run(_main, __doc__, _define_flags, resume_hint="from the first step")
