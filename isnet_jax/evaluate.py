"""Scores a checkpoint as the official code does, and records everything that a comparison needs.

usage: python -m isnet_jax.evaluate --checkpoint=DIR_or_FILE [--config=FILE[:BACKBONE] [--config.FIELD=VALUE ...]]
                                    [--best] [--ema] [--tta] [--protocol=NAME,...] [--output=DIR] [PROCESSES]

  --checkpoint  a run's workdir, a directory that isnet_jax.convert wrote, an official .pth or .safetensors file, or a
                name such as isnet-ade20k-resnet50 or hf://OWNER/NAME, which is downloaded once
  --config      what to test, and how; by default the config that the run recorded
  --best        evaluates the best checkpoint of a run with config.run.best_metric, not the newest
  --ema         evaluates the moving averages of a run's weights, if it kept any
  --tta         the official multi-scale test with flips (config.test.tta) instead of the single-scale one
  --protocol    conventions to print (default all): official, mmseg, cityscapes, ground_truth, absent_zero, absent_one
  --output      directory of results.json, images.npz and predictions/ (default: evaluation[-best][-ema]-single or
                evaluation[-best][-ema]-tta in the workdir; otherwise, in runs/<name of the config or checkpoint>)

After an interrupt the same command resumes; images that are done are not repeated. PROCESSES are the flags
--coordinator, --num_processes and --process_id of isnet_jax.main.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from isnet_jax import cli

if TYPE_CHECKING:
    from ml_collections import ConfigDict

RESUME_HINT = "where it stopped"


def _define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "what to evaluate")
    flags.DEFINE_boolean("best", False, "evaluate the best checkpoint")
    flags.DEFINE_boolean("ema", False, "evaluate moving averages")
    flags.DEFINE_boolean("tta", False, "several scales and flips")
    flags.DEFINE_list("protocol", [], "conventions to print")
    flags.DEFINE_string("output", None, "directory of the results")
    cli.define_process_flags()


def _main(config: "ConfigDict | None", flag_values: Any) -> None:
    from isnet_jax.evaluation import protocols
    from isnet_jax.evaluation.checkpoint import evaluate_checkpoint, print_results
    from isnet_jax.runtime import distributed, files
    from isnet_jax.runtime.console import say

    if not flag_values.checkpoint:
        raise flags.Error("--checkpoint=DIR_or_FILE is missing")
    unknown = set(flag_values.protocol) - set(protocols.PROTOCOLS)
    if unknown:
        raise flags.Error(f"--protocol={','.join(sorted(unknown))} is none of {', '.join(protocols.PROTOCOLS)}")
    setting = "tta" if flag_values.tta else "single"
    checkpoint = Path(flag_values.checkpoint)
    name = cli.config_name(sys.argv) if config else checkpoint.name
    home = checkpoint if checkpoint.is_dir() else Path("runs") / name
    default_output = home / f"evaluation-{'best-' * flag_values.best}{'ema-' * flag_values.ema}{setting}"
    output = Path(flag_values.output or default_output)
    if checkpoint.is_dir() and not flag_values.output:
        files.require_inside(checkpoint, output)
    with distributed.process_group(flag_values, RESUME_HINT):
        results = evaluate_checkpoint(
            config, flag_values.checkpoint, setting, output, flag_values.ema, flag_values.best
        )
    print_results(results, flag_values.protocol or list(protocols.PROTOCOLS))
    say(f"\nresults.json, images.npz and predictions/: {output}")


if __name__ == "__main__":
    cli.run(_main, __doc__, _define_flags, needs_config=False, resume_hint=RESUME_HINT)
