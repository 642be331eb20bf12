"""Scores a checkpoint on a split, and records everything that a comparison needs."""

import datetime
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from isnet_jax.checkpoints.manager import checkpoint_path, newest_step
from isnet_jax.checkpoints.pretrained import find_checkpoint, load_network, weights_file
from isnet_jax.config import inference_settings
from isnet_jax.errors import translating_disk_and_memory_errors
from isnet_jax.evaluation import metrics, protocols
from isnet_jax.evaluation.loop import Evaluator
from isnet_jax.evaluation.record import EvaluationRecord
from isnet_jax.evaluation.results import BOUNDARY_CAUTION, has_current_boundary
from isnet_jax.input import pipeline
from isnet_jax.input.data import Data, open_data
from isnet_jax.models.isnet import create_model
from isnet_jax.runtime import compiler, distributed, sharding
from isnet_jax.runtime.console import say

MEMORY_ADVICE = "lower config.test.batch_size, or set config.model.dtype=bfloat16"


def evaluate_checkpoint(
    config: ConfigDict | None,
    checkpoint: str | Path,
    setting: str,
    output: Path,
    ema: bool = False,
    best: bool = False,
) -> dict[str, Any]:
    """Evaluates, or resumes an evaluation, into the directory `output`; returns the content of results.json.

    config: by default what a run recorded. checkpoint: a run, a converted checkpoint, an official file or a name that
    `downloads.locate` knows; setting: "single" or "tta"; ema: evaluate a run's moving averages; best: the run's best
    checkpoint instead of the newest. Raises UserError for anything the user can correct.
    """
    checkpoint, config = find_checkpoint(checkpoint, config)
    compiler.enable_cache()
    mesh = sharding.make_mesh(config.mesh)
    data = open_data(config, mesh, config.data.eval_split)
    model, settings = create_model(config.model), inference_settings(config, setting == "tta")
    resume_hint = "where it stopped"
    with translating_disk_and_memory_errors(f"The evaluation in {output}", "--output", resume_hint, MEMORY_ADVICE):
        step = _step_to_evaluate(checkpoint, best)
        variables = load_network(checkpoint, model, ema, step, best)
        facts = evaluation_facts(config, data, settings, setting) | {
            "checkpoint": str(checkpoint.resolve()),
            "step": step,
            "ema": ema,
        }
        stamp = [_stamp(checkpoint, step, best), ema, data_stamp(data)]
        record = EvaluationRecord(output, facts | ({"best": True} if best else {}), stamp, data.image_names)
        if record.results:
            say(f"{output} holds this evaluation already.")
            return record.results
        plan, shape_buckets = data.eval_plan(np.flatnonzero(record.done))
        padding = pipeline.padding(plan, data.eval_sizes) if plan else 0.0
        num_done, num_todo = int(record.done.sum()), int((~record.done).sum())
        count = len(shape_buckets.sizes)
        trained = f", step {step}{' (the best)' * best}," if step else ""
        say(
            f"{model.description}{trained} on {config.data.name} {config.data.eval_split}, {setting}: "
            f"{len(data.evaluation)} images{f', {num_done} of them done' if num_done else ''}; "
            f"{count} padded shape{'s' if count > 1 else ''}, {100 * padding:.1f} % padding; {sharding.describe(mesh)}"
        )
        start = time.perf_counter()
        evaluator = Evaluator(model, mesh, data, settings, boundary=True)
        if plan:
            _evaluate(evaluator, variables, plan, record)
        seconds = time.perf_counter() - start
        return record.finish(
            environment_facts(config, mesh)
            | {
                "seconds": round(seconds, 2),
                "images_per_second": round(num_todo / seconds, 3),
                "programs": evaluator.num_compilations,
                "padding_overhead": round(float(padding), 4),
            }
        )


def _evaluate(
    evaluator: Evaluator, variables: Mapping[str, Any], plan: Sequence[pipeline.EvalBatch], record: EvaluationRecord
) -> None:
    """Adds the images of `plan` to the record, which keeps them if this is stopped."""
    try:
        evaluator(variables, record.add, plan)
    except BaseException:
        if distributed.is_single_process():  # saving needs all processes; without it, seconds of work are lost
            record.save()
        raise


def evaluation_facts(config: ConfigDict, data: Data, settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What results.json says about data, test setting and config, as JSON has it."""
    setting = {"name": name, "mode": "whole", "scales": [1.0], "flip": False, **settings}
    facts = {
        "dataset": config.data.name,
        "split": config.data.eval_split,
        "images": len(data.evaluation),
        "setting": setting | {"resize": config.test.resize, "keep_ratio": config.test.keep_ratio},
        "config": config.to_dict(),
        "names": data.class_names,
        "palette": data.palette,
    }
    return json.loads(json.dumps(facts))


def environment_facts(config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
    """What results.json says about devices and versions."""
    return {
        "devices": mesh.devices.flat[0].device_kind,
        "num_devices": mesh.size,
        "processes": jax.process_count(),
        "dtype": config.model.dtype,
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _step_to_evaluate(checkpoint: Path, best: bool) -> int | None:
    """The newest or best step of a directory, the same on all processes while a run saves into it; None for a file."""
    step = None if checkpoint.is_file() else newest_step(checkpoint, best)
    agreed = int(distributed.broadcast_from_first(-1 if step is None else step))
    return None if agreed < 0 else agreed


def _stamp(checkpoint: Path, step: int | None, best: bool) -> list:
    """A value that changes whenever the content of a checkpoint does."""
    path = weights_file(checkpoint) if step is None else checkpoint_path(checkpoint, step, best)
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def data_stamp(data: Data) -> list:
    """A value that changes whenever the data set is prepared again."""
    path = data.builder.data_path
    stats = [(file.name, file.stat()) for file in sorted(path.iterdir())]
    return [str(path), *([name, stat.length, stat.mtime] for name, stat in stats)]


def print_results(results: Mapping[str, Any], protocol_names: Sequence[str]) -> None:
    """Prints scores per class (official convention), under each protocol, and beside the published result."""
    confusion = np.array(results["confusion"])
    say(metrics.format_table(protocols.scores(confusion), results["names"]))
    boundary_iou = protocols.boundary_scores(np.array(results["boundary"]))["miou"]
    say(f"boundary IoU {metrics.percent(boundary_iou, unit=' %')}")
    if not has_current_boundary(results):
        say(BOUNDARY_CAUTION)
    say()
    say(protocols.format_table(confusion, protocol_names))
    published, miou = results["published"], results["protocols"]["official"]["miou"]
    if published and miou is not None:
        difference = miou - published["miou"]
        say(
            f"published mIoU {published['miou']:.2f} % ({results['setting']['name']}), here {difference:+.2f}: "
            f"{published['source']}"
        )
    say(f"{results['run']['images_per_second']:.2f} images/s")
