"""The train step: the state, and one step of the optimizer as a pure function."""

from collections.abc import Callable, Mapping, Sequence
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
from isnet_jax.models.resnet import STAGES
from isnet_jax.runtime import compiler, sharding
from isnet_jax.training.optimizer import join_frozen, split_frozen

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
    frozen_stages: int = 0,
    losses_of: Callable[..., Mapping[str, Any]] = isnet_losses,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """One step on a global batch: the new state, and the losses of `losses_of` with "grad_norm" and "lr".

    batch: image uint8 (B, H, W, 3); label uint8 (B, H, W), 255 ignored; window int32 (B, 4), the unpadded region of
    each image, (top, left, height, width). Photometric distortion and dropout draw from (seed, step).
    frozen_stages, of the backbone, have no gradient.
    """
    photometric_key, dropout_key = step_keys(seed, state.step)
    with jax.named_scope("images"):
        images = batch["image"] if mesh is None else sharding.shard_images(batch["image"], mesh)
        images = photometry.distort(photometric_key, images) if photometric else images
        images = photometry.normalize(images, batch["window"])

    trained, frozen = split_frozen(state.params, frozen_stages)

    def loss_fn(trained):
        params = join_frozen(trained, frozen)
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
        losses = losses_of(outputs, batch["label"])
        return losses["total"], (losses, updated["batch_stats"])

    grads, (losses, batch_stats) = jax.grad(loss_fn, has_aux=True)(trained)
    with jax.named_scope("optimizer"):
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        params = join_frozen(optax.apply_updates(trained, updates), frozen)
    metrics = {**losses, "grad_norm": optax.global_norm(grads), "lr": schedule(state.step)}
    state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    if state.ema is not None:
        averages = {
            name: _moving_averages(old, state.variables[name], ema_decay, frozen_stages)
            for name, old in state.ema.items()
        }
        state = state.replace(ema=averages)
    return state, metrics


def _moving_averages(old: Variables, new: Variables, decay: float, frozen_stages: int) -> Variables:
    """The moving averages of parameters or statistics; those of frozen stages stay, free of rounding."""
    (old, frozen), (new, _) = split_frozen(old, frozen_stages), split_frozen(new, frozen_stages)
    return join_frozen(jax.tree.map(partial(_moving_average, decay=decay), old, new), frozen)


def _moving_average(old: Array, new: Array, decay: float) -> Array:
    """The moving average; counters are copied."""
    return new if jnp.issubdtype(new.dtype, jnp.integer) else decay * old + (1 - decay) * new


def with_fixed_statistics(model: ISNet, config: ConfigDict) -> ISNet:
    """`model` as it trains under `config`, a config.train, which may fix batch statistics of the backbone."""
    return model.clone(fixed_statistics=len(STAGES) if config.freeze_batch_norm else config.frozen_stages)


def configured_losses(config: ConfigDict, class_weights: Sequence[float] = ()) -> Callable[..., dict[str, Any]]:
    """`isnet_losses` with the options of `config`, a config.loss; class_weights: (K), instead of those in it."""
    return partial(
        isnet_losses,
        class_weights=tuple(class_weights or config.class_weights),
        label_smoothing=config.label_smoothing,
        ohem_threshold=config.ohem_threshold,
        ohem_min_kept=config.ohem_min_kept,
        dice_weight=config.dice_weight,
    )


def configured_step(
    model: ISNet,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    mesh: Mesh | None = None,
    class_weights: Sequence[float] = (),
) -> Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, Metrics]]:
    """`train_step(state, batch)` as `config` sets it, not jitted; class_weights as in `configured_losses`."""
    return partial(
        train_step,
        model=with_fixed_statistics(model, config.train),
        optimizer=optimizer,
        schedule=schedule,
        seed=config.seed,
        photometric=config.augment.photometric,
        ema_decay=config.train.ema_decay,
        frozen_stages=config.train.frozen_stages,
        losses_of=configured_losses(config.loss, class_weights),
        mesh=mesh,
    )


def make_train_step(
    model: ISNet,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    mesh: Mesh,
    state_shardings: TrainState,
    class_weights: Sequence[float] = (),
) -> Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Metrics]]:
    """`configured_step`, jitted over the mesh; the state, sharded as `state_shardings`, is donated."""
    return jax.jit(
        configured_step(model, optimizer, schedule, config, mesh, class_weights),
        donate_argnums=0,
        in_shardings=(state_shardings, sharding.batch_sharding(mesh)),
        out_shardings=(state_shardings, sharding.replicated(mesh)),
        compiler_options=compiler.options(mesh),
    )
