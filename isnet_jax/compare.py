"""Compares two evaluations of the same images, or one evaluation with the published result.

usage: python -m isnet_jax.compare DIR_A DIR_B [--output=FILE.json]
       python -m isnet_jax.compare DIR [--output=FILE.json]

  DIR       a directory that isnet_jax.evaluate wrote, or one above it, such as a run's workdir
  --output  the same numbers as JSON; FILE.png beside it shows the images that differ most

Scores follow the official protocol; "n/a" is a score that is not defined, such as that of a class that never occurs.
The 95 % intervals are bootstrapped over the images, with the same samples for both evaluations. A line warns of
intervals from fewer than 20 images, and of classes that occur in fewer than 5.
"""

from typing import TYPE_CHECKING

from absl import flags

from isnet_jax import cli

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def _define_flags() -> None:
    flags.DEFINE_string("output", None, "the numbers as JSON")


def _main(config: "ConfigDict | None", flag_values: flags.FlagValues, *directories: str) -> None:
    if config is not None:
        raise flags.Error("--config cannot be given: every evaluation records its own config")
    if not directories:
        raise flags.Error("DIR is missing")
    from isnet_jax.evaluation.comparison import compare_directories

    compare_directories(directories, flag_values.output)


if __name__ == "__main__":
    cli.run(_main, __doc__, _define_flags, needs_config=False, resume_hint="from the start", max_positional=2)
