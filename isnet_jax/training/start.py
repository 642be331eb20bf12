"""How a run starts: its facts and state, and what it announces."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from isnet_jax.checkpoints.downloads import locate
from isnet_jax.checkpoints.pretrained import load_pretrained
from isnet_jax.config import unofficial_options
from isnet_jax.errors import UserError
from isnet_jax.input.data import Data
from isnet_jax.models.isnet import ISNet, count_parameters, describe
from isnet_jax.models.resnet import STAGES
from isnet_jax.runtime import sharding
from isnet_jax.runtime.console import say
from isnet_jax.training.optimizer import split_frozen
from isnet_jax.training.step import TrainState, init_state, state_from_variables


def run_facts(config: ConfigDict, data: Data) -> dict[str, Any]:
    """What config.json records: the config, the number of examples, and the class weights if they are balanced."""
    facts = config.to_dict() | {"train_examples": len(data.training)}
    return facts | ({"class_weights": data.balanced_class_weights()} if config.loss.balance_classes else {})


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
        variables = load_pretrained(locate(config.train.pretrained, "--config.train.pretrained"), model, on_host)
        state = jax.jit(lambda v: state_from_variables(v, optimizer, ema), out_shardings=shardings)(variables)
    elif config.train.frozen_stages or config.train.freeze_batch_norm:
        raise UserError(
            "config.train.frozen_stages and config.train.freeze_batch_norm keep the backbone as loaded, but this run "
            "starts from random weights. Give --config.train.pretrained=FILE.pth, or set them to 0 and False."
        )
    else:
        say(
            f"The {config.model.backbone} backbone starts from random weights; the official results start from "
            "ImageNet weights (--config.train.pretrained=FILE, or a name such as resnet50c)."
        )
    return state, shardings


def announce(
    config: ConfigDict, data: Data, mesh: Mesh, state: TrainState, class_weights: Sequence[float] = ()
) -> None:
    """Prints what is trained, on which data and devices, and how that differs from the official recipes.

    class_weights: those that balance the classes.
    """
    num_params, step = count_parameters(state.params), int(state.step)
    num_frozen = count_parameters(split_frozen(state.params, config.train.frozen_stages)[1])
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
