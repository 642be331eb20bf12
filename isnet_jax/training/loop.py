"""A run: data and state, then train, evaluate and save until the last step."""

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from isnet_jax.checkpoints.manager import Checkpoints
from isnet_jax.checkpoints.pretrained import load_pretrained
from isnet_jax.config import inference_settings, unofficial_options
from isnet_jax.errors import UserError, translating_disk_and_memory_errors
from isnet_jax.evaluation import metrics, pictures
from isnet_jax.evaluation.loop import Evaluator
from isnet_jax.input import pipeline
from isnet_jax.input.data import Data, open_data
from isnet_jax.models.isnet import ISNet, create_model, describe
from isnet_jax.models.resnet import STAGES
from isnet_jax.runtime import compiler, distributed, interrupts, sharding
from isnet_jax.runtime.console import say
from isnet_jax.runtime.files import atomic_write_text
from isnet_jax.training import trackers
from isnet_jax.training.best import BestCheckpoint, make_score
from isnet_jax.training.changes import Origin, Resumption
from isnet_jax.training.fastest_attention import with_fastest_attention
from isnet_jax.training.log import Log, has_evaluation
from isnet_jax.training.optimizer import make_optimizer, make_schedule, split_frozen
from isnet_jax.training.profiler import Profiler
from isnet_jax.training.step import TrainState, init_state, make_train_step, state_from_variables
from isnet_jax.training.trainer import Trainer

LOGGED_SCORES = "miou", "pixel_accuracy", "mean_accuracy", "loss"
LOGGED_SIDE = 480  # pixels of an image in the log
MEMORY_ADVICE = (
    "lower config.train.global_batch_size (or config.test.batch_size), or set config.model.remat=True or "
    "config.model.dtype=bfloat16"
)


def train_and_evaluate(
    config: ConfigDict, workdir: str | Path, resumption: Resumption | None = None
) -> dict[str, dict[str, Any]]:
    """Trains to the last step of `config` in `workdir`, resuming from the newest checkpoint there, and evaluates.

    resumption: allows another config, or another run to resume. Returns `metrics.scores` after the last step, of the
    "weights" and, if there is a moving average, of its "ema". Raises UserError for anything the user can correct, and
    StopRequested after a signal, with the state saved.
    """
    resume_hint = "from the last checkpoint"
    with translating_disk_and_memory_errors(f"The run in {workdir}", "--workdir", resume_hint, MEMORY_ADVICE):
        trackers.require(config)
        mesh = sharding.training_mesh(config)
        data = open_data(config, mesh, config.data.train_split, config.data.eval_split)
        for split in config.data.train_split, config.data.eval_split:
            data.require_labels(split)
        score = make_score(config.run.best_metric, data.class_names) if config.run.best_metric else None
        model, schedule = create_model(config.model), make_schedule(config.train, data.total_steps)
        optimizer = make_optimizer(config.train, schedule)
        with contextlib.ExitStack() as stack:
            run_facts = config.to_dict() | {"train_examples": len(data.training)}
            class_weights = data.balanced_class_weights() if config.loss.balance_classes else ()
            run_facts |= {"class_weights": class_weights} if class_weights else {}
            origin = Origin(workdir, run_facts, resumption or Resumption())
            checkpoints = stack.enter_context(
                Checkpoints(workdir, run_facts, config.run.keep_checkpoints, with_changes=origin.defers_config)
            )
            compiler.enable_cache()
            model = with_fastest_attention(model, config, mesh, checkpoints.workdir / "attention.json")
            restore = functools.partial(origin.restore, checkpoints)
            state, shardings = restore_or_init(config, model, optimizer, mesh, restore)
            origin.adopt(checkpoints, config, len(data.training), state)
            first = int(state.step)
            announce(config, data, mesh, state, class_weights)
            log = stack.enter_context(Log(checkpoints.workdir, config, first, data.total_steps))
            profiler = Profiler(checkpoints.workdir / "profile", first, config.run.profile_steps)
            rows = sharding.local_rows(mesh, config.train.global_batch_size)
            batches = pipeline.train_batches(data.training, config, first, data.total_steps, rows)
            trainer = Trainer(
                make_train_step(model, optimizer, schedule, config, mesh, shardings, class_weights),
                state,
                stack.enter_context(batches),
                mesh,
                data.training.name,
                checkpoints,
                log,
                stack.enter_context(profiler),
            )
            evaluator = Evaluator(model, mesh, data, inference_settings(config), loss=True)
            best = stack.enter_context(BestCheckpoint(checkpoints, config, score)) if score else None
            return train_to_the_end(config, data, trainer, evaluator, checkpoints, log, best)


def train_to_the_end(
    config: ConfigDict,
    data: Data,
    trainer: Trainer,
    evaluator: Evaluator,
    checkpoints: Checkpoints,
    log: Log,
    best: BestCheckpoint | None = None,
) -> dict[str, dict[str, Any]]:
    """Passes the milestones of a run, evaluates after the last step, and writes the results, which it returns.

    The last step may come early: `BestCheckpoint.is_over`. Raises StopRequested after a signal, with the state saved.
    """
    workdir, state, first = checkpoints.workdir, trainer.state, int(trainer.state.step)
    evaluated = distributed.broadcast_from_first(has_evaluation(workdir, first))
    with interrupts.deferred():
        try:
            for milestone in milestones(config, data.steps_per_epoch, first, evaluated):
                if stops_early(best, int(state.step), data.total_steps):
                    checkpoints.save(int(state.step), state)
                    break
                state = trainer.run_until(milestone.step)
                if milestone.save:
                    checkpoints.save(milestone.step, state)
                if milestone.evaluate:
                    evaluate(evaluator, state, data, log, best)
            last = int(state.step)
            unlogged = not distributed.broadcast_from_first(has_evaluation(workdir, last))
            results, rows = evaluate(evaluator, state, data, log if unlogged else None, best)
        except interrupts.StopRequested:
            save_now(checkpoints, trainer.state)
            raise
        checkpoints.wait()
        if distributed.is_first():
            facts = {"step": last} | ({"best": best.record()} if best else {})
            write_results(workdir, results, data, rows, facts)
        if best:
            best.announce()
        say(f"checkpoint, results.json and TensorBoard events: {workdir}")
    return results


class Milestone(NamedTuple):
    """A step after which training pauses, and what happens then."""

    step: int
    save: bool
    evaluate: bool


def milestones(config: ConfigDict, steps_per_epoch: int, first: int, evaluated: bool) -> Iterator[Milestone]:
    """The milestones of a run that starts at step `first`, up to its last step.

    evaluated: whether the evaluation at `first` is complete; if one was due and is not, it is the first milestone. The
    evaluation after the last step is not among them.
    """
    total_steps = steps_per_epoch * config.train.epochs
    save_every, evaluate_every = config.run.checkpoint_every_steps, steps_per_epoch * config.run.eval_every_epochs
    if 0 < first < total_steps and first % evaluate_every == 0 and not evaluated:
        yield Milestone(first, save=False, evaluate=True)
    step = first
    while step < total_steps:
        step = min(total_steps, *((step // every + 1) * every for every in (save_every, evaluate_every)))
        last = step == total_steps
        yield Milestone(step, save=last or step % save_every == 0, evaluate=not last and step % evaluate_every == 0)


def stops_early(best: BestCheckpoint | None, step: int, total_steps: int) -> bool:
    """Whether config.run.stop_after_evaluations ends the run at `step`; says so."""
    stops = best is not None and best.is_over(step)
    if stops and best:
        say(
            f"stopped at step {step} of {total_steps}, because {best.metric} has not improved since step {best.step}. "
            f"To train on, set config.run.stop_after_evaluations above {best.limit}, or to 0."
        )
    return stops


def restore_or_init(
    config: ConfigDict,
    model: ISNet,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    restore: Callable[[Any], TrainState | None],
) -> tuple[TrainState, TrainState]:
    """The state and its shardings: what `restore` returns, else of config.train.pretrained, else random.

    restore: a function of a template, as `Checkpoints.restore`.
    """
    ema = config.train.ema_decay > 0

    def init() -> TrainState:
        return init_state(model, optimizer, config.seed, ema)

    shapes = jax.eval_shape(init)
    shardings = sharding.state_shardings(mesh, shapes, config.shard_parameters)
    template = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    state = restore(template)
    if state is not None:
        return state, shardings
    state = jax.jit(init, out_shardings=shardings)()
    if config.train.pretrained:
        on_host = jax.device_get(jax.device_put(state.variables, sharding.replicated(mesh)))
        variables = load_pretrained(config.train.pretrained, model, on_host)
        state = jax.jit(lambda v: state_from_variables(v, optimizer, ema), out_shardings=shardings)(variables)
    elif config.train.frozen_stages or config.train.freeze_batch_norm:
        raise UserError(
            "config.train.frozen_stages and config.train.freeze_batch_norm keep the backbone as loaded, but this run "
            "starts from random weights. Give --config.train.pretrained=FILE.pth, or set them to 0 and False."
        )
    else:
        say(
            f"The {config.model.backbone} backbone starts from random weights; the official results start from "
            "ImageNet weights (--config.train.pretrained=FILE.pth)."
        )
    return state, shardings


def announce(
    config: ConfigDict, data: Data, mesh: Mesh, state: TrainState, class_weights: Sequence[float] = ()
) -> None:
    """Prints what is trained, on which data and devices, and how that differs from the official recipes.

    class_weights: those that balance the classes.
    """
    num_params, step = sum(x.size for x in jax.tree.leaves(state.params)), int(state.step)
    num_frozen = sum(x.size for x in jax.tree.leaves(split_frozen(state.params, config.train.frozen_stages)[1]))
    frozen = f" ({num_frozen / 1e6:.1f} M frozen: {', '.join(STAGES[: config.train.frozen_stages])})"
    say(
        f"{describe(config.model.to_dict())}, {config.model.num_classes} classes, "
        f"{num_params / 1e6:.1f} M parameters{frozen if num_frozen else ''}, {config.model.dtype}, "
        f"{sharding.describe(mesh)}"
    )
    say(
        f"{config.data.name}: {len(data.training)} training and {len(data.evaluation)} evaluation images, "
        f"{data.total_steps} steps of {config.train.global_batch_size}"
        + (f", resuming from step {step}" if step else "")
    )
    if options := unofficial_options(config):
        say(f"options that the official recipes leave off: {', '.join(options)}")
    if class_weights:
        say("class weights: " + ", ".join(f"{name} {w:.2f}" for name, w in zip(data.class_names, class_weights)))


def evaluate(
    evaluator: Evaluator, state: TrainState, data: Data, log: Log | None, best: BestCheckpoint | None = None
) -> tuple[dict[str, dict[str, Any]], list[pictures.Row]]:
    """Scores and loss of the weights and of their moving average, if there is one; prints and logs them.

    best: is offered the state. Also returns rows of pictures, (image, ground truth, prediction by the weights), whose
    sheet is logged, too.
    """
    variables = {"weights": state.variables} | ({"ema": state.ema} if state.ema else {})
    sheet = pictures.ComparisonSheet(data.config.run.num_pictures, len(data.evaluation))
    step, results = int(state.step), {}
    for kind in variables:
        results[kind] = evaluator(variables[kind], sheet.add if kind == "weights" else None)
        loss = results[kind]["loss"]
        say(
            f"step {step}  {kind} on {data.config.data.eval_split}: {_in_words(results[kind])}, "
            f"loss {f'{loss:.4f}' if math.isfinite(loss) else 'n/a'}"
        )
    if best:
        best.offer(step, state, results)
    if log:
        log.write(step, _logged(results, data.class_names))
        if sheet.rows and distributed.is_first():
            rows = [pictures.shrunk(row, LOGGED_SIDE) for row in sheet.rows]
            log.picture(step, "predictions", np.asarray(pictures.comparison(rows, data.palette, data.class_names)))
    return results, sheet.rows


def _logged(results: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """What the log says about an evaluation; IoU by class is iou/NAME, or ema/iou/NAME."""
    logged = {f"{kind}/{name}": result[name] for kind, result in results.items() for name in LOGGED_SCORES}
    for kind, result in results.items():
        prefix = "iou" if kind == "weights" else f"{kind}/iou"
        logged |= {f"{prefix}/{name}": value for name, value in zip(names, result["iou"])}
    return logged


def save_now(checkpoints: Checkpoints, state: TrainState) -> None:
    """Saves a run that stops between two steps, before its next milestone."""
    step = int(state.step)
    if step:
        checkpoints.save(step, state)
        checkpoints.wait()
        say(f"step {step} is saved in {checkpoints.workdir}")


def write_results(
    workdir: Path, results: dict[str, dict[str, Any]], data: Data, rows: list, facts: Mapping[str, Any]
) -> None:
    """Prints the final scores as a table, and writes results.json and predictions.png.

    rows: (image, ground truth, prediction) for the picture; facts: what results.json holds before the scores.
    """
    names = data.class_names
    for kind, result in results.items():
        say((f"\n{kind}\n" if len(results) > 1 else "") + metrics.format_table(result, names))
    baseline = metrics.majority_class_scores(next(iter(results.values()))["confusion"])
    say(f"majority-class baseline: {_in_words(baseline)}")
    if rows:
        path = workdir / "predictions.png"
        pictures.comparison(rows, data.palette, names).save(path)
        say(f"image, ground truth and prediction side by side: {path}")
    content: dict[str, Any] = dict(facts)
    for kind, result in results.items():
        scores, loss = {name: value for name, value in result.items() if name != "loss"}, result["loss"]
        content[kind] = metrics.in_percent(scores, names) | {"loss": loss if math.isfinite(loss) else None}
    atomic_write_text(workdir / "results.json", json.dumps(content, indent=1) + "\n")


def _in_words(scores: Mapping[str, Any]) -> str:
    miou, accuracy = (metrics.percent(scores[name], unit=" %") for name in ("miou", "pixel_accuracy"))
    return f"mIoU {miou}, pixel accuracy {accuracy}"
