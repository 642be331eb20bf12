"""A recipe at a glance: its blocks, their shapes, parameters and FLOPs, the memory of a step, the length of a run.

Nothing is compiled: shapes and FLOPs come from traces, and the memory is an estimate.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from isnet_jax import config as configs
from isnet_jax.checkpoints.manager import read_config
from isnet_jax.errors import UserError
from isnet_jax.evaluation.results import read_metrics
from isnet_jax.models.isnet import ISNet, count_parameters, create_model
from isnet_jax.runtime import roofline
from isnet_jax.runtime.console import aligned, duration, say
from isnet_jax.training.optimizer import join_frozen, make_optimizer, make_schedule, split_frozen
from isnet_jax.training.sinks import METRICS_FILE
from isnet_jax.training.step import (
    TrainState,
    configured_losses,
    configured_step,
    init_state,
    with_fixed_statistics,
)

GIB = 2**30
COMPILED, COMPILED_WITH_REMAT = "XLA fuses some of it away", "the block that is being recomputed comes on top"


class Block(NamedTuple):
    """A part of the network."""

    name: str  # backbone/layer1_0, image_level_context, ...
    shape: tuple[int, ...]  # (height, width, channels) of its output
    parameters: int
    flops: float  # of a forward pass in training over one image


def summarise(config: ConfigDict, name: str, workdir: Path) -> None:
    """Prints the table, totals, memory and steps of a recipe; hours if a run in `workdir` has logged its speed."""
    model = create_model(config.model)
    height, width = config.augment.crop_size
    say(f"{name}: {model.description}, {model.num_classes} classes, {model.dtype}, images of {height} x {width}\n")
    rows = blocks(model, (height, width))
    say(f"{table(rows)}\n")
    state, batch = abstract_state(config, model), abstract_batch(config)
    num_images = config.train.global_batch_size
    say(f"{training_flops(config, model, state, batch) / 1e12:.3g} TFLOP per training step of {num_images} images\n")
    memory = memory_of_step(config, model, state, batch)
    lines = [[f"GiB of {purpose}", f"{size / GIB:.2f}"] for purpose, size in memory.items()]
    say(aligned([*lines, ["GiB in total on one device", f"{sum(memory.values()) / GIB:.2f}"]]))
    note = COMPILED_WITH_REMAT if config.model.remat else COMPILED
    say(f"estimated from what automatic differentiation keeps: {note};")
    say("isnet_jax.compile_check asks XLA. Several devices share images and activations.\n")
    say(length_of_run(config, workdir))


def blocks(model: ISNet, size: tuple[int, int]) -> list[Block]:
    """The parts of the network in the order in which they compute, for images of `size` (height, width)."""
    model = model.clone(remat=False)  # its passes would count twice
    variables = _variables(model)
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(partial(_forward, model))(variables["params"], variables["batch_stats"], image)
    shapes: dict[str, tuple[int, ...]] = {}
    flops: dict[str, float] = {}
    for eqn in jaxpr.jaxpr.eqns:
        part = _block_of(str(eqn.source_info.name_stack).split("/")[1:])
        flops[part] = flops.get(part, 0) + roofline.count_flops(SimpleNamespace(eqns=[eqn])).model
        if len(shape := eqn.outvars[0].aval.shape) == 4:
            shapes[part] = shape[1:]
    parameters = {name: count_parameters(tree) for name, tree in variables["params"].items() if name != "backbone"}
    parameters |= {f"backbone/{name}": count_parameters(tree) for name, tree in variables["params"]["backbone"].items()}
    return [Block(name, shapes[name], parameters[name], count) for name, count in flops.items() if name in parameters]


def _block_of(path: Sequence[str]) -> str:
    """The block that computes an operation of the path backbone/layer1_0/conv1/conv."""
    return "/".join(path[: 2 if path[:1] == ["backbone"] else 1])


def _variables(model: ISNet) -> Any:
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def _forward(model: ISNet, params: Any, batch_stats: Any, images: Any) -> Any:
    """The outputs of a training forward pass."""
    variables = {"params": params, "batch_stats": batch_stats}
    return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})[0]


def table(rows: Sequence[Block]) -> str:
    """Aligned text: the blocks and their sums."""
    total = Block("total", (), sum(row.parameters for row in rows), sum(row.flops for row in rows))
    cells = [["block", "output", "parameters", "share", "GFLOP/image", "share"]]
    for row in (*rows, total):
        cells.append(
            [
                row.name,
                " x ".join(map(str, row.shape)),
                f"{row.parameters:,}",
                f"{100 * row.parameters / total.parameters:.1f} %",
                f"{row.flops / 1e9:.2f}",
                f"{100 * row.flops / total.flops:.1f} %",
            ]
        )
    return aligned(cells)


def abstract_state(config: ConfigDict, model: ISNet) -> TrainState:
    """The shapes of the train state."""
    optimizer = make_optimizer(config.train, _some_schedule(config))
    return jax.eval_shape(lambda: init_state(model, optimizer, config.seed, config.train.ema_decay > 0))


def abstract_batch(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a global batch."""
    batch_size, size = config.train.global_batch_size, config.augment.crop_size
    return {
        "image": jax.ShapeDtypeStruct((batch_size, *size, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((batch_size, *size), np.uint8),
        "window": jax.ShapeDtypeStruct((batch_size, 4), np.int32),
    }


def training_flops(config: ConfigDict, model: ISNet, state: TrainState, batch: Mapping[str, Any]) -> float:
    """FLOPs of a train step on the global batch."""
    schedule = _some_schedule(config)
    step = configured_step(model, make_optimizer(config.train, schedule), schedule, config)
    return roofline.count_flops(jax.make_jaxpr(step)(state, batch).jaxpr).model


def _some_schedule(config: ConfigDict) -> optax.Schedule:
    """The schedule of a run that is just long enough for the warm-up: nothing here depends on its length."""
    return make_schedule(config.train, config.train.warmup_steps + 1)


def memory_of_step(
    config: ConfigDict, model: ISNet, state: TrainState, batch: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, int]:
    """{purpose: bytes} of a train step on one device.

    Activations are what `jax.vjp` keeps for the backward pass: an upper bound, since XLA fuses operations.
    """
    images = jax.ShapeDtypeStruct(batch["image"].shape, jnp.float32)
    network, losses_of = with_fixed_statistics(model, config.train), configured_losses(config.loss)
    trained, frozen = split_frozen(state.params, config.train.frozen_stages)
    num_images = config.train.global_batch_size

    def kept(trained, frozen, batch_stats, images, labels):
        def loss(trained):
            outputs = _forward(network, join_frozen(trained, frozen), batch_stats, images)
            return losses_of(outputs, labels)["total"]

        return jax.vjp(loss, trained)[1]

    residuals = jax.tree.leaves(jax.eval_shape(kept, trained, frozen, state.batch_stats, images, batch["label"]))
    activations = [x for x in residuals if x.ndim > 2 and x.shape[0] == num_images]  # the others are parameters
    memory = {
        "parameters and statistics": _bytes(state.variables),
        "gradients": _bytes(trained),
        "optimizer state": _bytes(state.opt_state),
        "moving averages": _bytes(state.ema),
        "images and labels": _bytes(batch) + _bytes(images),
        f"activations of {num_images} images": _bytes(activations),
    }
    return {purpose: size for purpose, size in memory.items() if size}


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def length_of_run(config: ConfigDict, workdir: Path) -> str:
    """Steps of the run, and hours at the speed that a run of the same config has logged in `workdir`.

    The number of examples is that of the prepared data; nothing is prepared.
    """
    from isnet_jax import datasets
    from isnet_jax.input import pipeline  # imports TensorFlow

    data = config.data
    try:
        builder = datasets.open_prepared(data.name, data.data_dir, data.folder)
        num_examples = len(pipeline.split_examples(builder, data.train_split))
    except UserError:
        return f"steps: not known, since {data.name} is not prepared here (python -m isnet_jax.prepare --config=...)"
    except KeyError:
        raise UserError(f"The data set {data.name} has no split {data.train_split!r}.") from None
    per_epoch = pipeline.steps_per_epoch(num_examples, config)
    steps = per_epoch * config.train.epochs
    text = f"{steps:,} steps: {config.train.epochs} epochs of {per_epoch:,}, from {num_examples:,} examples"
    rates = logged_speed(config, workdir, num_examples)
    if not rates:
        return f"{text}\ntime: not known, since no run of this config has logged its speed in {workdir} (--workdir=DIR)"
    speed = statistics.median(rates)
    seconds = steps * config.train.global_batch_size / speed
    return (
        f"{text}\ntime: {duration(seconds)} (h:mm:ss) at {speed:.1f} images/s, the median of {len(rates)} rows of "
        f"{workdir / METRICS_FILE}; evaluations and checkpoints come on top"
    )


def logged_speed(config: ConfigDict, workdir: Path, num_examples: int) -> list[float]:
    """Images per second that a run of the same config has logged in its workdir; empty without one."""
    path = workdir / METRICS_FILE
    if not path.is_file():
        return []
    ours = json.loads(json.dumps(config.to_dict() | {"train_examples": num_examples}))  # tuples become lists
    recorded = read_config(workdir)
    recorded.pop("class_weights", None)  # follow from the data
    if configs.differences(ours, recorded):
        return []
    rates = [row.get("images_per_second") for row in read_metrics(path)]
    return [float(rate) for rate in rates if isinstance(rate, int | float) and 0 < rate < np.inf]
