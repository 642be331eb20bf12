"""The main job: data, state, then train, evaluate, save, until the last step."""

import contextlib
import json
import os
from pathlib import Path

import jax
import numpy as np

from isnet_jax import (
    checkpoints,
    convert,
    datasets,
    distributed,
    evaluation,
    interrupts,
    metrics,
    pictures,
    sharding,
    train,
)
from isnet_jax.config import inference_settings
from isnet_jax.console import say
from isnet_jax.errors import UserError, mended_by_user
from isnet_jax.models import create_model


def run(config, workdir):
    """Trains `config` to its last step in `workdir`, from the latest checkpoint there if there is one.

    Returns {"weights", "ema" if there is a moving average} of `metrics.scores`, of the last step. Raises UserError
    for anything the user can mend.
    """
    with mended_by_user(
        f"The run in {workdir}",
        "--workdir",
        "from the last checkpoint",
        "lower config.train.global_batch_size (or config.test.batch_size), or set "
        "config.model.remat=True or config.model.dtype=bfloat16",
    ):
        return _run(config, workdir)


def _run(config, workdir):
    from isnet_jax import input_pipeline  # needs TensorFlow, which the rest of the package does not
    from isnet_jax.log import Log

    mesh = sharding.make_mesh(config.mesh, config.train.global_batch_size)
    if not sharding.high_enough(config.augment.crop_size[0], mesh):
        raise UserError(
            f"config.augment.crop_size is {tuple(config.augment.crop_size)} (height, width), which is too "
            f"low to be cut in the {mesh.shape['spatial']} strips of the mesh, each of "
            f"{sharding.MIN_STRIP} pixels at least; set config.mesh so that `spatial` is less."
        )
    parts = mesh.shape["data"] * config.train.microbatches
    if config.train.global_batch_size % parts:
        raise UserError(
            f"config.train.global_batch_size is {config.train.global_batch_size}, which does not split "
            f"evenly into config.train.microbatches = {config.train.microbatches} on each of "
            f"{mesh.shape['data']} devices; lower microbatches."
        )
    builder = datasets.load(config.data.name, config.data.data_dir, config.data.source, config.data.folder)
    names, palette = list(builder.info.metadata["names"]), list(builder.info.metadata["palette"])
    if config.model.num_classes != len(names):
        raise UserError(
            f"config.model.num_classes is {config.model.num_classes}, but the data set {config.data.name} "
            f"has {len(names)} classes; set it to {len(names)}."
        )
    train_source = input_pipeline.open_split(builder, config.data.train_split)
    eval_source = input_pipeline.open_split(builder, config.data.eval_split)
    sizes = [size for _, *size in builder.info.metadata["examples"][config.data.eval_split]]
    eval_batch_size = sharding.fill_up(config.test.batch_size, mesh)
    plan, _ = input_pipeline.eval_plan(
        input_pipeline.eval_sizes(sizes, config), eval_batch_size, config.test.max_programs
    )
    per_epoch = input_pipeline.steps_per_epoch(len(train_source), config)
    total_steps = per_epoch * config.train.epochs
    eval_every = per_epoch * config.run.eval_every_epochs
    checkpoint_every = config.run.checkpoint_every_steps

    model = create_model(config.model)
    optimizer = train.make_optimizer(config.train, total_steps)
    schedule = train.poly_schedule(config.train.base_lr, config.train.min_lr, total_steps, config.train.power)
    record = config.to_dict() | {"train_examples": len(train_source)}

    with contextlib.ExitStack() as stack:
        saved = stack.enter_context(
            contextlib.closing(checkpoints.Checkpoints(workdir, record, config.run.keep_checkpoints))
        )
        if jax.default_backend() != "cpu" and not jax.config.jax_compilation_cache_dir:  # programs take minutes there
            home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")  # a workdir may be a stranger's
            jax.config.update("jax_compilation_cache_dir", str(home / "isnet_jax" / "compiled"))
        state, state_sharding = initial_state(config, model, optimizer, mesh, saved)
        first = step = int(state.step)
        say(
            f"{config.model.backbone} ISNet, {config.model.num_classes} classes, "
            f"{sum(x.size for x in jax.tree.leaves(state.params)) / 1e6:.1f} M parameters, {config.model.dtype}, "
            f"{sharding.describe(mesh)}"
        )
        say(
            f"{config.data.name}: {len(train_source)} training and {len(eval_source)} evaluation images, "
            f"{total_steps} steps of {config.train.global_batch_size}"
            + (f", going on from step {step}" if step else "")
        )
        train_step = train.make_train_step(model, optimizer, config, mesh, state_sharding)
        eval_step = evaluation.make_eval_step(model, mesh, inference_settings(config))
        batches = stack.enter_context(
            input_pipeline.train_batches(
                train_source, config, step, total_steps, sharding.local_rows(mesh, config.train.global_batch_size)
            )
        )
        log = stack.enter_context(Log(saved.workdir, config, step, total_steps, schedule))

        def on_metrics(done, losses, waited):
            def examples():
                _, indices = input_pipeline.batch_indices(
                    done - 1, len(train_source), config.train.global_batch_size, config.seed
                )
                return [train_source.name(index) for index in indices.tolist()]

            train.check_finite(done, losses, examples, saved.steps)
            log.on_metrics(done, losses, waited)
            saved.check()

        def evaluate_now(on_batch=None):
            variables = {"weights": state.variables} | ({"ema": state.ema} if state.ema else {})
            rows, results = sharding.local_rows(mesh, eval_batch_size), {}
            for kind in variables:
                with input_pipeline.eval_batches(eval_source, config, plan, rows) as eval_batches:
                    results[kind] = evaluation.evaluate(
                        eval_step,
                        jax.device_put(variables[kind], sharding.replicated(mesh)),
                        eval_batches,
                        plan,
                        mesh,
                        on_batch if kind == "weights" else None,
                    )
                say(
                    f"step {step}  {kind} on {config.data.eval_split}: mIoU {100 * results[kind]['miou']:.2f} %, "
                    f"pixel accuracy {100 * results[kind]['pixel_accuracy']:.2f} %"
                )
            if step > first or not log.evaluated:
                log.write(
                    step,
                    {
                        f"{kind}/{name}": result[name]
                        for kind, result in results.items()
                        for name in ("miou", "pixel_accuracy", "mean_accuracy")
                    },
                )
            return results

        stack.enter_context(interrupts.waiting())
        try:
            if 0 < step < total_steps and step % eval_every == 0 and not distributed.agree(log.evaluated):
                evaluate_now()  # it was cut short
            while step < total_steps:
                stop = min(total_steps, *((step // every + 1) * every for every in (eval_every, checkpoint_every)))
                log.resume_clock()
                state, step = train.run_steps(
                    train_step, state, batches, stop, mesh, on_metrics, distributed.stop_asked
                )
                if step < stop:
                    raise KeyboardInterrupt
                if step % checkpoint_every == 0 or step == total_steps:
                    saved.save(step, state)
                if step % eval_every == 0 and step < total_steps:
                    evaluate_now()
            sheet = pictures.ComparisonSheet(config.run.num_pictures, len(eval_source))
            results = evaluate_now(sheet.add)
        except KeyboardInterrupt:  # between two steps, on all processes
            if step:
                saved.save(step, state)
                saved.wait()
                say(f"step {step} is saved in {saved.workdir}")
            raise
        saved.wait()
        if distributed.is_first():
            _report(saved.workdir, results, names, palette, step, sheet.rows)
        say(f"checkpoint, results.json and TensorBoard events: {saved.workdir}")
    return results


def initial_state(config, model, optimizer, mesh, saved):
    """A TrainState from the newest whole checkpoint, else from config.train.pretrained, else random; its shardings."""
    ema = config.train.ema_decay > 0

    def start():
        return train.init_state(model, optimizer, config.seed, ema)

    shapes = jax.eval_shape(start)
    shardings = sharding.split_state(mesh, shapes, config.shard_parameters)
    state = saved.restore(
        jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings)
    )
    if state is not None:
        return state, shardings
    state = jax.jit(start, out_shardings=shardings)()
    if config.train.pretrained:
        variables = convert.load_pretrained(config.train.pretrained, model, _on_host(state.variables, mesh))
        state = jax.jit(lambda v: train.state_from_variables(v, optimizer, ema), out_shardings=shardings)(variables)
    else:
        say(
            "The backbone starts from random weights; the official results start from ImageNet "
            "(--config.train.pretrained=resnet50_v1c.pth)."
        )
    return state, shardings


def _on_host(variables, mesh):
    """NumPy arrays of all of them, however they are split."""
    return jax.device_get(jax.device_put(variables, sharding.replicated(mesh)))


def _report(workdir, results, names, palette, step, rows):
    """The last scores as a table, results.json and a picture."""
    for kind, result in results.items():
        say((f"\n{kind}\n" if len(results) > 1 else "") + metrics.format_table(result, names))
    baseline = metrics.commonest_class_scores(next(iter(results.values()))["confusion"])
    say(
        f"for comparison, the commonest class everywhere: mIoU {100 * baseline['miou']:.2f} %, pixel accuracy "
        f"{100 * baseline['pixel_accuracy']:.2f} %"
    )
    if rows:
        path = workdir / "predictions.png"
        pictures.comparison(rows, palette, names).save(path)
        say(f"image, truth and prediction side by side: {path}")
    record = {"step": step} | {kind: _in_percent(result, names) for kind, result in results.items()}
    checkpoints.write_whole(workdir / "results.json", json.dumps(record, indent=1) + "\n")


def _in_percent(result, names):
    """Scores for results.json; null where a class does not occur."""

    def percent(x):
        return round(100 * float(x), 4) if np.isfinite(x) else None

    return {
        **{name: percent(result[name]) for name in ("miou", "pixel_accuracy", "mean_accuracy")},
        "iou": {name: percent(value) for name, value in zip(names, result["iou"])},
        "confusion": result["confusion"].tolist(),
    }
