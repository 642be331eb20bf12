"""The train step: state, schedule, optimizer, and one SGD step as a pure function."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray
from ml_collections import ConfigDict

from isnet_jax.input import photometry
from isnet_jax.models.isnet import ISNet
from isnet_jax.models.losses import isnet_losses
from isnet_jax.runtime import compiler, sharding

Variables = Mapping[str, Any]  # {"params", "batch_stats"}
Metrics = dict[str, Float[Array, ""]]


class TrainState(flax.struct.PyTreeNode):
    """Everything that a train step updates."""

    step: Any  # steps done, int32
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any  # moving averages {"params", "batch_stats"}, or None

    @property
    def variables(self) -> dict[str, Any]:
        """What `ISNet.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def make_schedule(config: ConfigDict, total_steps: int) -> optax.Schedule:
    """lr(t) = (1 - t / T)^power (base - min) + min, with t counted before the step.

    config: `config.train`.
    """
    poly = optax.polynomial_schedule(config.base_lr, config.min_lr, config.power, total_steps)
    # In the widest float: an int32 step divided by T is float32, also where the run is in float64.
    return lambda step: poly(jnp.asarray(step, float))


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """SGD as PyTorch's: weight decay on every parameter, then momentum, then the learning rate.

    config: `config.train`.
    """
    return optax.chain(optax.add_decayed_weights(config.weight_decay), optax.sgd(schedule, config.momentum))


def init_state(model: ISNet, optimizer: optax.GradientTransformation, seed: int, ema: bool = False) -> TrainState:
    """State at step 0 with PyTorch's default initialisation; to be called under `jit` or `eval_shape`."""
    variables = model.init(jax.random.key(seed), jnp.zeros((1, 32, 32, 3)))
    return state_from_variables(variables, optimizer, ema)


def state_from_variables(
    variables: Variables, optimizer: optax.GradientTransformation, ema: bool = False
) -> TrainState:
    """State at step 0 that starts from `variables`."""
    params, batch_stats = variables["params"], variables["batch_stats"]
    averages = {"params": params, "batch_stats": batch_stats} if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), averages)


def step_keys(seed: int, step: Int[Array, ""] | int) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """Keys of the photometric distortion and of dropout in a step."""
    photometric_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return photometric_key, dropout_key


def train_step(
    state: TrainState,
    batch: Mapping[str, Integer[Array, "b ..."]],
    *,
    model: ISNet,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    seed: int,
    photometric: bool = True,
    ema_decay: float = 0.0,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """One SGD step on a global batch: the new state, and the losses of `isnet_losses` with "grad_norm" and "lr".

    batch: image uint8 (B, H, W, 3); label uint8 (B, H, W), 255 ignored; window int32 (B, 4), the unpadded region of
    each image, (top, left, height, width). Photometric distortion and dropout draw from (seed, step).
    """
    photometric_key, dropout_key = step_keys(seed, state.step)
    with jax.named_scope("images"):
        images = batch["image"] if mesh is None else sharding.shard_images(batch["image"], mesh)
        images = photometry.distort(photometric_key, images) if photometric else images
        images = photometry.normalize(images, batch["window"])

    def loss_fn(params):
        if mesh:  # gathers sharded parameters layer by layer; their gradients are scattered again
            params = jax.lax.with_sharding_constraint(params, sharding.replicated(mesh))
        outputs, updated = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        if mesh:  # whole images: the losses' loop over rows would exchange data between strips in each iteration
            outputs = jax.lax.with_sharding_constraint(outputs, sharding.batch_sharding(mesh))
        losses = isnet_losses(outputs, batch["label"])
        return losses["total"], (losses, updated["batch_stats"])

    grads, (losses, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
    with jax.named_scope("optimizer"):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
    metrics = {**losses, "grad_norm": optax.global_norm(grads), "lr": schedule(state.step)}
    state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    if state.ema is not None:
        average = partial(_moving_average, decay=ema_decay)
        state = state.replace(ema=jax.tree.map(average, state.ema, state.variables))
    return state, metrics


def _moving_average(old: Array, new: Array, decay: float) -> Array:
    """The moving average; counters are copied."""
    return new if jnp.issubdtype(new.dtype, jnp.integer) else decay * old + (1 - decay) * new


def make_train_step(
    model: ISNet,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    mesh: Mesh,
    state_shardings: TrainState,
) -> Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Metrics]]:
    """`train_step(state, batch)`, jitted over the mesh; the state, sharded as `state_shardings`, is donated."""
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        seed=config.seed,
        photometric=config.augment.photometric,
        ema_decay=config.train.ema_decay,
        mesh=mesh,
    )
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(state_shardings, sharding.batch_sharding(mesh)),
        out_shardings=(state_shardings, sharding.replicated(mesh)),
        compiler_options=compiler.options(mesh),
    )
