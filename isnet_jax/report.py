"""Writes the report on an evaluation as one self-contained HTML page: scores, classes, confusions, images, curves.

Images open at full size, with a slider between ground truth and prediction.

usage: python -m isnet_jax.report DIR [--other=DIR2 ...] [--output=FILE.html]

  DIR       a directory that isnet_jax.evaluate wrote, or one above it, such as a run's workdir
  --other   another evaluation of the same images to compare with; up to seven times
  --output  the page (default report.html, beside the evaluation's results.json)

After an official test of an official recipe, it prints the row for README's table, too; with the test at a single scale
as DIR and the one with scales and flip as DIR2, or the other way round, the row has both.
"""

from typing import TYPE_CHECKING

from absl import flags

from isnet_jax import cli

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def _define_flags() -> None:
    flags.DEFINE_multi_string("other", [], "DIR2")
    flags.DEFINE_string("output", None, "FILE.html")


def _main(config: "ConfigDict | None", flag_values: flags.FlagValues, directory: str | None = None) -> None:
    if config is not None:
        raise flags.Error("--config does not apply to a report: the evaluation holds its own config")
    if directory is None:
        raise flags.Error("DIR is missing")
    from isnet_jax.evaluation.report.render import write_report

    write_report(directory, flag_values.other, flag_values.output)


if __name__ == "__main__":
    cli.run(_main, __doc__, _define_flags, needs_config=False, max_positional=1, resume_hint="from the start")
