"""The main job: data, state, then train, evaluate, save, until the last step."""
import contextlib
import json
import time

import jax
import numpy as np
import tqdm
from PIL import Image

from isnet_jax import checkpoints, convert, datasets, evaluate, metrics, pictures, sharding, train
from isnet_jax.console import duration, say
from isnet_jax.errors import UserError
from isnet_jax.models import create_model


def run(config, workdir):
    """Trains `config` to its last step in `workdir`, from the latest checkpoint there if there is one.

    Returns the final scores of `metrics.scores`. Raises UserError for anything the user can mend.
    """
    from isnet_jax import input_pipeline  # needs TensorFlow, which the rest of the package does not

    builder = datasets.load(config.data.name, config.data.data_dir, config.data.source)
    names, palette = list(builder.info.metadata["names"]), list(builder.info.metadata["palette"])
    if config.model.num_classes != len(names):
        raise UserError(f"config.model.num_classes is {config.model.num_classes}, but the data set {config.data.name} "
                        f"has {len(names)} classes; set it to {len(names)}.")
    train_source = input_pipeline.open_split(builder, config.data.train_split)
    eval_source = input_pipeline.open_split(builder, config.data.eval_split)
    per_epoch = input_pipeline.steps_per_epoch(len(train_source), config)
    total_steps = per_epoch * config.train.epochs

    mesh = sharding.make_mesh()
    sharding.check_batch_size(config.train.global_batch_size, mesh, "config.train.global_batch_size")
    sharding.check_batch_size(config.test.batch_size, mesh, "config.test.batch_size")
    model = create_model(config.model)
    optimizer = train.make_optimizer(config.train, total_steps)
    saved = checkpoints.Checkpoints(workdir, config, config.run.keep_checkpoints)
    state = initial_state(config, model, optimizer, mesh, saved)
    first = int(state.step)
    say(f"{config.model.backbone} ISNet, {config.model.num_classes} classes, "
        f"{sum(x.size for x in jax.tree.leaves(state.params)) / 1e6:.1f} M parameters, {config.model.dtype}, "
        f"{mesh.size} {mesh.devices.flat[0].device_kind} device{'s' if mesh.size > 1 else ''}")
    say(f"{config.data.name}: {len(train_source)} training and {len(eval_source)} evaluation images, "
        f"{total_steps} steps of {config.train.global_batch_size}" + (f", going on from step {first}" if first else ""))

    train_step = train.make_train_step(model, optimizer, config, mesh)
    eval_step = evaluate.make_eval_step(model, mesh)
    batches = input_pipeline.train_batches(train_source, config, first, total_steps, jax.process_index(),
                                           jax.process_count())
    schedule = train.poly_schedule(config.train.base_lr, config.train.min_lr, total_steps, config.train.power)
    eval_every = per_epoch * config.run.eval_every_epochs

    def evaluate_now(step, on_batch=None):
        num_batches = -(-len(eval_source) // config.test.batch_size)
        weights = {"": state.variables} | ({" (EMA)": state.ema} if state.ema else {})
        results = {}
        for label, variables in weights.items():
            eval_batches = input_pipeline.eval_batches(eval_source, config, jax.process_index(), jax.process_count())
            results[label] = evaluate.evaluate(eval_step, variables, eval_batches, num_batches, mesh,
                                               f"evaluating{label}", on_batch if label == "" else None)
            say(f"step {step:>6}  evaluation{label} on {config.data.eval_split}: "
                f"mIoU {100 * results[label]['miou']:.2f} %, "
                f"pixel accuracy {100 * results[label]['pixel_accuracy']:.2f} %")
            log.write(step, {f"eval{label.replace(' ', '_')}/{name}": results[label][name]
                             for name in ("miou", "pixel_accuracy", "mean_accuracy")})
        return results

    with Log(saved.workdir, config, first, total_steps, schedule) as log, contextlib.closing(saved):
        step = first
        while step < total_steps:
            stop = min(total_steps, *((step // every + 1) * every
                                      for every in (eval_every, config.run.checkpoint_every_steps)))
            log.resume_clock()
            state = train.run_steps(train_step, state, batches, stop, mesh, log.on_metrics)
            step = stop
            if step % config.run.checkpoint_every_steps == 0 or step == total_steps:
                saved.save(step, state)
            if step % eval_every == 0 and step < total_steps:
                evaluate_now(step)
        log.close_bar()
        sheet = Sheet(config.run.num_pictures, len(eval_source))
        results = evaluate_now(step, sheet.add)
        result = results[""]
        say(metrics.format_table(result, names))
        if sheet.rows:
            path = saved.workdir / "predictions.png"
            pictures.comparison(sheet.rows, palette, names).save(path)
            say(f"image, truth and prediction side by side: {path}")
        write_results(saved.workdir / "results.json", results, names, step)
        say(f"checkpoint, results.json and TensorBoard events: {saved.workdir}")
    return result


def initial_state(config, model, optimizer, mesh, saved):
    """State from the latest checkpoint, else from config.train.pretrained, else random; on every device of the mesh."""
    everywhere = sharding.replicated(mesh)
    ema = config.train.ema_decay > 0
    template = jax.eval_shape(lambda: train.init_state(model, optimizer, config.seed, ema))
    if saved.latest_step() is not None:
        return saved.restore(jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), template))
    state = jax.jit(lambda: train.init_state(model, optimizer, config.seed, ema), out_shardings=everywhere)()
    if config.train.pretrained:
        variables = convert.load_pretrained(config.train.pretrained, model, jax.device_get(state.variables))
        start = jax.jit(lambda v: train.state_from_variables(v, optimizer, ema), out_shardings=everywhere)
        return start(variables)
    say("The backbone starts from random weights; the official results start from ImageNet "
        "(--config.train.pretrained=resnet50_v1c.pth).")
    return state


class Log:
    """Console lines, a progress bar, metrics.jsonl and TensorBoard events of one run; only the first process writes."""

    def __init__(self, workdir, config, first, total_steps, schedule):
        from tensorboardX import SummaryWriter
        self.config, self.total_steps, self.schedule = config, total_steps, schedule
        self.active = jax.process_index() == 0
        self.writer = SummaryWriter(str(workdir / "tensorboard")) if self.active else None
        self.file = open(workdir / "metrics.jsonl", "a") if self.active else None
        self.bar = tqdm.tqdm(total=total_steps, initial=first, unit="step", disable=None if self.active else True,
                             leave=False, dynamic_ncols=True)
        self.seconds = self.waited = self.steps = 0
        self.warm = False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close_bar()
        if self.active:
            self.writer.close()
            self.file.close()

    def close_bar(self):
        self.bar.close()

    def resume_clock(self):
        """Leaves evaluation and checkpoints out of the measured speed."""
        self.clock = time.perf_counter()

    def on_metrics(self, step, losses, waited):
        now = time.perf_counter()
        self.bar.update(step - self.bar.n)
        if not self.warm:  # the first step compiles
            self.warm, self.clock = True, now
        else:
            self.seconds, self.waited, self.steps = self.seconds + now - self.clock, self.waited + waited, self.steps + 1
            self.clock = now
        if step % self.config.run.log_every_steps and step != self.total_steps:
            return
        speed = self.steps / max(self.seconds, 1e-9)  # steps per second
        images = speed * self.config.train.global_batch_size
        share = self.waited / max(self.seconds, 1e-9)
        lr = float(self.schedule(step - 1))
        if self.active:
            rate = (f"{images:.1f} img/s  data wait {100 * share:.0f} %  "
                    f"ETA {duration((self.total_steps - step) / speed)}" if self.steps else "compiled")
            say(f"step {step:>{len(str(self.total_steps))}}/{self.total_steps}  loss {losses['total']:.4f} "
                f"(auxiliary {losses['auxiliary']:.3f}, stage 1 {losses['stage1']:.3f}, stage 2 {losses['stage2']:.3f})  "
                f"lr {lr:.2e}  {rate}")
            self.write(step, {**{f"loss/{name}": value for name, value in losses.items()}, "lr": lr}
                       | ({"images_per_second": images, "data_wait_share": share} if self.steps else {}))
        self.seconds = self.waited = self.steps = 0

    def write(self, step, values):
        if self.active:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()


class Sheet:
    """Collects the rows of the final picture: examples spread evenly over the evaluation split."""

    def __init__(self, num_pictures, num_examples):
        self.rows = []
        self.wanted = set(np.linspace(0, num_examples - 1, min(num_pictures, num_examples)).astype(int).tolist())

    def add(self, batch, predictions):
        if not any(index in self.wanted for index in batch["index"].tolist()) or jax.process_count() > 1:
            return
        predictions = np.asarray(predictions)
        for i, index in enumerate(batch["index"].tolist()):
            if index in self.wanted:
                (ih, iw), (h, w) = batch["image_size"][i], batch["label_size"][i]
                image = Image.fromarray(batch["image"][i, :ih, :iw]).resize((w, h))
                self.rows.append((np.asarray(image), batch["label"][i, :h, :w], predictions[i, :h, :w]))


def write_results(path, results, names, step):
    """results.json: step, and for the weights and their EMA the scores in percent, per class too (null: absent)."""
    def percent(x):
        return round(100 * float(x), 4) if np.isfinite(x) else None

    record = {"step": step}
    for label, result in results.items():
        record["ema" if label else "weights"] = {
            **{name: percent(result[name]) for name in ("miou", "pixel_accuracy", "mean_accuracy")},
            "iou": {name: percent(value) for name, value in zip(names, result["iou"])},
            "confusion": result["confusion"].tolist()}
    if jax.process_index() == 0:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(path)
