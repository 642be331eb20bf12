"""Scores a checkpoint as the official code does, and writes down all that a comparison needs.

usage: python -m isnet_jax.evaluate --config=FILE[:BACKBONE] --checkpoint=DIR_or_FILE.pth [--ema] [--tta]
                                    [--protocol=NAME,...] [--output=DIR] [--config.FIELD=VALUE ...] [PROCESSES]

  --checkpoint  a run's workdir, a directory that isnet_jax.convert wrote, or an official .pth
  --ema         the moving averages of a run's weights, if it kept any
  --tta         the official multi-scale test (config.test.tta), mirrored; otherwise the single-scale one
  --protocol    which conventions to print (all): official, mmseg, cityscapes, ground_truth, absent_zero, absent_one
  --output      results.json, images.npz and predictions/ (default: evaluation-single or evaluation-tta in the workdir,
                for a .pth in runs/<config name>)

Killed, the same command goes on; images that are finished are not repeated. PROCESSES are the flags --coordinator,
--num_processes and --process_id of isnet_jax.main.
"""

import sys
from pathlib import Path

from absl import flags

from isnet_jax import cli


def _define_flags():
    flags.DEFINE_string("checkpoint", None, "what to evaluate")
    flags.DEFINE_boolean("ema", False, "moving averages")
    flags.DEFINE_boolean("tta", False, "scales and mirror")
    flags.DEFINE_list("protocol", [], "conventions to print")
    flags.DEFINE_string("output", None, "where results go")
    cli.define_process_flags()


def _main(config, flag_values):
    from isnet_jax.evaluation import protocols
    from isnet_jax.evaluation.checkpoint import evaluate_checkpoint, print_results
    from isnet_jax.runtime import distributed, files
    from isnet_jax.runtime.console import say

    if not flag_values.checkpoint:
        raise flags.Error("--checkpoint=DIR_or_FILE.pth is missing")
    unknown = set(flag_values.protocol) - set(protocols.PROTOCOLS)
    if unknown:
        raise flags.Error(f"--protocol={','.join(sorted(unknown))} is none of {', '.join(protocols.PROTOCOLS)}")
    setting = "tta" if flag_values.tta else "single"
    checkpoint = Path(flag_values.checkpoint)
    home = checkpoint if checkpoint.is_dir() else Path("runs") / cli.config_name(sys.argv)
    output = (
        Path(flag_values.output) if flag_values.output else home / f"evaluation-{'ema-' * flag_values.ema}{setting}"
    )
    if checkpoint.is_dir() and not flag_values.output:
        files.require_inside(checkpoint, output)
    with distributed.process_group(flag_values, "where it stopped"):
        results = evaluate_checkpoint(config, checkpoint, setting, output, flag_values.ema)
    print_results(results, flag_values.protocol or list(protocols.PROTOCOLS))
    say(f"\nresults.json, images.npz and predictions/: {output}")


if __name__ == "__main__":
    cli.run(_main, __doc__, _define_flags, resume_hint="where it stopped")
