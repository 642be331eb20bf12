"""The optimizer of a run, its learning rate, and the parameters that it trains."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from isnet_jax.errors import UserError
from isnet_jax.models.resnet import stage_of

Params = Mapping[str, Any]


def make_schedule(config: ConfigDict, total_steps: int) -> optax.Schedule:
    """The learning rate of a step, with t counted before it, in a run of T = `total_steps`.

    poly: (1 - t / T)^power (base - min) + min; cosine: (1 + cos(pi t / T)) / 2 (base - min) + min. A warm-up of W
    steps rises first, base t / W, and leaves T - W steps to the schedule, which starts with t = 0 again.

    config: `config.train`. Raises UserError if the warm-up leaves no step.
    """
    warmup, steps = config.warmup_steps, total_steps - config.warmup_steps
    if warmup and steps < 1:
        raise UserError(
            f"config.train.warmup_steps is {warmup}, but the run has {total_steps} steps; it must be less, and is "
            "usually a few percent of them."
        )
    if config.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(config.base_lr, steps, config.min_lr / (config.base_lr or 1))
    else:
        schedule = optax.polynomial_schedule(config.base_lr, config.min_lr, config.power, steps)
    if warmup:
        schedule = optax.join_schedules([optax.linear_schedule(0.0, config.base_lr, warmup), schedule], [warmup])
    # In the widest float: an int32 step divided by T is float32, also where the run is in float64.
    return lambda step: schedule(jnp.asarray(step, float))


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer of `config.train`, with PyTorch's arithmetic.

    sgd: weight decay, then momentum, then the learning rate. adamw: decoupled weight decay, with `momentum` and 0.999
    as its betas. Gradients are clipped before the decay; rate factors multiply the whole update, like the learning
    rates of PyTorch's parameter groups. `init` takes all parameters, `update` those of `split_frozen` that train.
    """
    decayed = None if config.decay_norms_and_biases else _is_kernel
    transforms = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.optimizer == "adamw":
        transforms.append(optax.adamw(schedule, config.momentum, weight_decay=config.weight_decay, mask=decayed))
    else:
        transforms.append(optax.add_decayed_weights(config.weight_decay, decayed))
        transforms.append(optax.sgd(schedule, config.momentum))
    for factor, in_backbone in ((config.head_lr_factor, False), (config.backbone_lr_factor, True)):
        if factor != 1:
            transforms.append(optax.masked(optax.scale(factor), _is_part(in_backbone)))
    optimizer = optax.chain(*transforms)
    if not config.frozen_stages:
        return optimizer
    return optax.GradientTransformation(
        lambda params: optimizer.init(split_frozen(params, config.frozen_stages)[0]), optimizer.update
    )


def _is_kernel(params: Params) -> Params:
    """True for kernels; False for biases, and for the scales of batch norm."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _is_part(in_backbone: bool) -> Callable[[Params], Params]:
    """A mask of the backbone's parameters, or of the others."""
    return lambda params: {
        name: jax.tree.map(lambda _, name=name: (name == "backbone") == in_backbone, tree)
        for name, tree in params.items()
    }


def split_frozen(variables: Params, frozen_stages: int) -> tuple[Params, Params]:
    """The parameters or statistics of the network that train, and those of the frozen stages of the backbone.

    frozen_stages: as in `config.train`. The second is a part of variables["backbone"].
    """
    if not frozen_stages:
        return variables, {}
    frozen = {name: tree for name, tree in variables["backbone"].items() if stage_of(name) < frozen_stages}
    trained = {name: tree for name, tree in variables["backbone"].items() if name not in frozen}
    heads = {name: tree for name, tree in variables.items() if name != "backbone"}
    return heads | ({"backbone": trained} if trained else {}), frozen


def join_frozen(trained: Params, frozen: Params) -> Params:
    """The inverse of `split_frozen`."""
    return {**trained, "backbone": {**trained.get("backbone", {}), **frozen}} if frozen else trained
