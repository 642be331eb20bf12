"""A run: data and state, then train, evaluate and save until the last step."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from isnet_jax.checkpoints.manager import Checkpoints
from isnet_jax.config import inference_settings
from isnet_jax.errors import translating_disk_and_memory_errors
from isnet_jax.evaluation.loop import Evaluator
from isnet_jax.input import pipeline
from isnet_jax.input.data import Data, open_data
from isnet_jax.models.isnet import create_model
from isnet_jax.runtime import compiler, distributed, interrupts, sharding
from isnet_jax.runtime.console import say
from isnet_jax.training import trackers
from isnet_jax.training.best import BestCheckpoint, make_score
from isnet_jax.training.changes import Origin, Resumption
from isnet_jax.training.fastest_attention import with_fastest_attention
from isnet_jax.training.log import Log, has_evaluation
from isnet_jax.training.optimizer import make_optimizer, make_schedule
from isnet_jax.training.profiler import Profiler
from isnet_jax.training.results import evaluate, write_results
from isnet_jax.training.start import announce, restore_or_init, run_facts
from isnet_jax.training.step import TrainState, make_train_step
from isnet_jax.training.trainer import Trainer

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
            facts = run_facts(config, data)
            class_weights = facts.get("class_weights", ())
            origin = Origin(workdir, facts, resumption or Resumption())
            checkpoints = stack.enter_context(
                Checkpoints(workdir, facts, config.run.keep_checkpoints, with_changes=origin.changes_workdir)
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
    evaluation = None  # of the state, if it was evaluated since the last step
    with interrupts.deferred():
        try:
            for milestone in milestones(config, data.steps_per_epoch, first, evaluated):
                if stops_early(best, int(state.step), data.total_steps):
                    checkpoints.save(int(state.step), state)
                    break
                state = trainer.run_until(milestone.step)
                if milestone.save:
                    checkpoints.save(milestone.step, state)
                evaluation = evaluate(evaluator, state, data, log, best) if milestone.evaluate else None
            last = int(state.step)
            if evaluation is None:
                unlogged = not distributed.broadcast_from_first(has_evaluation(workdir, last))
                evaluation = evaluate(evaluator, state, data, log if unlogged else None, best)
        except interrupts.StopRequested:
            save_now(checkpoints, trainer.state)
            raise
        checkpoints.wait()
        results, rows = evaluation
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
    if best is None or not best.is_over(step):
        return False
    say(
        f"stopped at step {step} of {total_steps}, because {best.metric} has not improved since step {best.step}. "
        f"To train on, set config.run.stop_after_evaluations above {best.limit}, or to 0."
    )
    return True


def save_now(checkpoints: Checkpoints, state: TrainState) -> None:
    """Saves a run that stops between two steps, before its next milestone."""
    step = int(state.step)
    if step:
        checkpoints.save(step, state)
        checkpoints.wait()
        say(f"step {step} is saved in {checkpoints.workdir}")
