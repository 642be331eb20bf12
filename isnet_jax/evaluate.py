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

import datetime
import json
import platform
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from isnet_jax import (
    checkpoints,
    command,
    convert,
    datasets,
    distributed,
    evaluation,
    metrics,
    protocols,
    sharding,
    stored,
)
from isnet_jax.config import inference_settings
from isnet_jax.console import say
from isnet_jax.errors import UserError, mended_by_user
from isnet_jax.evaluation_record import EvaluationRecord
from isnet_jax.models import create_model


def _define_flags():
    flags.DEFINE_string("checkpoint", None, "what to evaluate")
    flags.DEFINE_boolean("ema", False, "moving averages")
    flags.DEFINE_boolean("tta", False, "scales and mirror")
    flags.DEFINE_list("protocol", [], "conventions to print")
    flags.DEFINE_string("output", None, "where results go")
    distributed.define_flags()


def _main(config, values):
    if not values.checkpoint:
        raise flags.Error("--checkpoint=DIR_or_FILE.pth is missing")
    unknown = set(values.protocol) - set(protocols.PROTOCOLS)
    if unknown:
        raise flags.Error(f"--protocol={','.join(sorted(unknown))} is none of {', '.join(protocols.PROTOCOLS)}")
    setting = "tta" if values.tta else "single"
    checkpoint = Path(values.checkpoint)
    home = checkpoint if checkpoint.is_dir() else Path("runs") / command.config_name(sys.argv)
    output = Path(values.output) if values.output else home / f"evaluation-{'ema-' * values.ema}{setting}"
    if checkpoint.is_dir() and not values.output:
        stored.require_inside(checkpoint, output)
    with distributed.joined(values, "where it stopped"):
        results = run(config, checkpoint, setting, output, values.ema)
    print_results(results, values.protocol or list(protocols.PROTOCOLS))
    say(f"\nresults.json, images.npz and predictions/: {output}")


def run(config, checkpoint, setting, output, ema=False):
    """Evaluates, or goes on evaluating, into the directory `output`; returns what results.json holds.

    checkpoint: Path of a run, a converted checkpoint or a .pth; setting: single or tta; ema: a run's moving averages.
    Raises UserError for what the user can mend.
    """
    from isnet_jax import input_pipeline  # needs TensorFlow, which the rest of the package does not

    if not checkpoint.exists():
        raise UserError(f"--checkpoint={checkpoint} does not exist; give a run's workdir or a .pth file.")
    settings = inference_settings(config, setting == "tta")
    builder = datasets.load(config.data.name, config.data.data_dir, config.data.source, config.data.folder)
    names = list(builder.info.metadata["names"])
    model = create_model(config.model)
    if model.num_classes != len(names):
        raise UserError(
            f"config.model.num_classes is {model.num_classes}, but the data set {config.data.name} has "
            f"{len(names)} classes; set it to {len(names)}."
        )
    source = input_pipeline.open_split(builder, config.data.eval_split)
    mesh = sharding.make_mesh(config.mesh)
    batch_size = sharding.fill_up(config.test.batch_size, mesh)
    with mended_by_user(
        f"The evaluation in {output}",
        "--output",
        "where it stopped",
        "lower config.test.batch_size, or set config.model.dtype=bfloat16",
    ):
        step, stamp = checkpoint_stamp(checkpoint)
        variables = convert.load_network(checkpoint, model, ema)
        facts = json.loads(
            json.dumps(
                {
                    "dataset": config.data.name,
                    "split": config.data.eval_split,
                    "images": len(source),
                    "setting": {
                        "name": setting,
                        "mode": "whole",
                        "scales": [1.0],
                        "flip": False,
                        **settings,
                        "resize": config.test.resize,
                        "keep_ratio": config.test.keep_ratio,
                    },
                    "checkpoint": str(checkpoint.resolve()),
                    "step": step,
                    "ema": ema,
                    "config": config.to_dict(),
                    "names": names,
                    "palette": [list(map(int, color)) for color in builder.info.metadata["palette"]],
                }
            )
        )
        image_names, *sides = zip(*builder.info.metadata["examples"][config.data.eval_split])
        record = EvaluationRecord(output, facts, [stamp, ema, data_stamp(builder)], image_names)
        if record.results:
            say(f"{output} holds this evaluation already.")
            return record.results
        sizes = input_pipeline.eval_sizes(np.stack(sides, axis=1).tolist(), config)
        plan, found = input_pipeline.eval_plan(sizes, batch_size, config.test.max_programs, np.flatnonzero(record.done))
        padding = input_pipeline.padding(plan, sizes) if plan else 0.0
        done, todo, programs = record.done.sum(), (~record.done).sum(), 0
        say(
            f"{config.model.backbone} ISNet on {config.data.name} {config.data.eval_split}, {setting}: "
            f"{len(source)} images{f', {done} of them done' if done else ''}; "
            f"{len(found.sizes)} canvas{'es' if len(found.sizes) > 1 else ''}, {100 * padding:.1f} % padding; "
            f"{sharding.describe(mesh)}"
        )
        start = time.perf_counter()
        if plan:
            eval_step = evaluation.make_eval_step(model, mesh, settings, boundary=True)
            variables = jax.device_put(variables, sharding.replicated(mesh))
            with input_pipeline.eval_batches(source, config, plan, sharding.local_rows(mesh, batch_size)) as batches:
                try:
                    evaluation.evaluate(eval_step, variables, batches, plan, mesh, record.add)
                except BaseException:
                    if distributed.alone():  # else others may be elsewhere; they all lose a few seconds
                        record.save()
                    raise
            programs = eval_step._cache_size()
        seconds = time.perf_counter() - start
        return record.finish(
            {
                "devices": mesh.devices.flat[0].device_kind,
                "num_devices": mesh.size,
                "processes": jax.process_count(),
                "dtype": config.model.dtype,
                "versions": {"jax": jax.__version__, "python": platform.python_version()},
                "seconds": round(seconds, 2),
                "images_per_second": round(float(todo / seconds), 3),
                "programs": programs,
                "padding_overhead": round(float(padding), 4),
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            }
        )


def checkpoint_stamp(checkpoint):
    """The step of a checkpoint, None of a file, and what changes when its content does."""
    path = checkpoint if checkpoint.is_file() else checkpoints.newest(checkpoint) or checkpoint
    stat = path.stat()
    return int(path.name) if path.name.isdigit() else None, [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def data_stamp(builder):
    """What changes when a data set is prepared anew."""
    stats = [(path.name, path.stat()) for path in sorted(builder.data_path.iterdir())]
    return [str(builder.data_path), *([name, stat.length, stat.mtime] for name, stat in stats)]


def print_results(results, names):
    """Class by class under the official convention, then all of `names`, then what was published."""
    confusion = np.array(results["confusion"])
    official, boundary = protocols.scores(confusion), results["boundary_iou"]
    say(metrics.format_table(official, results["names"]))
    say(f"boundary IoU {boundary['miou']:.2f} %\n")
    say(protocols.format_table(confusion, names))
    if results["published"]:
        miou = results["protocols"]["official"]["miou"]
        say(
            f"published mIoU {results['published']['miou']:.2f} % ({results['setting']['name']}), here "
            f"{miou - results['published']['miou']:+.2f}: {results['published']['source']}"
        )
    say(f"{results['run']['images_per_second']:.2f} images/s")


if __name__ == "__main__":
    command.run(_main, __doc__, _define_flags, goes_on="where it stopped")
