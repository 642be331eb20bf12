"""The optimizer of a run, its learning rate, and the parameters that it trains."""

from collections.abc import Mapping
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
    rates of PyTorch's parameter groups. `init` takes all parameters, `update` those of `split_frozen` that train. The
    structure of the state depends on `optimizer` and `frozen_stages` alone, so that a run can go on with other options.
    """
    decay = optax.add_decayed_weights(config.weight_decay, None if config.decay_norms_and_biases else _is_kernel)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    if config.optimizer == "adamw":
        adam, rate = optax.scale_by_adam(config.momentum), optax.scale_by_learning_rate(schedule)
        optimizer = optax.chain(_stateless(clip), optax.chain(adam, _stateless(decay), rate))
    else:
        optimizer = optax.chain(_stateless(clip, decay), optax.sgd(schedule, config.momentum))

    def update(grads: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        updates, state = optimizer.update(grads, state, params)
        return _with_rate_factors(updates, config), state

    return optax.GradientTransformation(
        lambda params: optimizer.init(split_frozen(params, config.frozen_stages)[0]), update
    )


def _stateless(*transforms: optax.GradientTransformation) -> optax.GradientTransformation:
    """Their chain, without the empty states of each."""
    chain = optax.chain(*transforms)

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        return chain.update(updates, chain.init(params), params)[0], state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _with_rate_factors(updates: Params, config: ConfigDict) -> Params:
    """Updates times `head_lr_factor` or `backbone_lr_factor`."""

    def scaled(name: str, tree: Params) -> Params:
        factor = config.backbone_lr_factor if name == "backbone" else config.head_lr_factor
        return tree if factor == 1 else jax.tree.map(lambda x: factor * x, tree)

    return {name: scaled(name, tree) for name, tree in updates.items()}


def _is_kernel(params: Params) -> Params:
    """True for kernels; False for biases, and for the scales of batch norm."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


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
