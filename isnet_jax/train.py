"""Training: the state, the step, and the loop over steps."""

import time
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from isnet_jax import photometry, sharding
from isnet_jax.errors import UserError
from isnet_jax.losses import isnet_losses


class TrainState(flax.struct.PyTreeNode):
    """All that a train step reads and writes."""

    step: jax.Array  # int32, steps done
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any  # {"params", "batch_stats"} averaged, or None

    @property
    def variables(self):
        return {"params": self.params, "batch_stats": self.batch_stats}


def poly_schedule(base_lr, min_lr, total_steps, power=0.9):
    """lr(t) = (1 - t / T)^power (base - min) + min, t counted before the step (protocols: training).

    Of a number it is a number, for which no device is waited for.
    """

    def schedule(step):
        left = 1 - (jnp.asarray(step, float) if isinstance(step, jax.Array) else step) / total_steps
        return left**power * (base_lr - min_lr) + min_lr

    return schedule


def make_optimizer(config, total_steps):
    """SGD as PyTorch's: weight decay on every parameter, then momentum, then the learning rate (`config.train`)."""
    schedule = poly_schedule(config.base_lr, config.min_lr, total_steps, config.power)
    return optax.chain(optax.add_decayed_weights(config.weight_decay), optax.sgd(schedule, config.momentum))


def init_state(model, optimizer, seed, ema=False):
    """State at step 0 with PyTorch's default initialisation; jit or eval_shape it."""
    variables = model.init(jax.random.key(seed), jnp.zeros((1, 32, 32, 3)))
    return state_from_variables(variables, optimizer, ema)


def state_from_variables(variables, optimizer, ema=False):
    """State at step 0 with these variables."""
    params, batch_stats = variables["params"], variables["batch_stats"]
    return TrainState(
        jnp.zeros((), jnp.int32),
        params,
        batch_stats,
        optimizer.init(params),
        {"params": params, "batch_stats": batch_stats} if ema else None,
    )


def train_step(state, batch, *, model, optimizer, seed, photometric=True, ema_decay=0.0, mesh=None, microbatches=1):
    """One SGD step on a global batch.

    batch: image uint8 (B, H, W, 3), label uint8 (B, H, W) with 255 ignored, window int32 (B, 4), what of the
    image is not padding. Photometry and dropout draw from (seed, step). Returns the new state and the losses
    of `isnet_losses` with "grad_norm" beside them. With `microbatches` layers go over the batch in so many parts.
    """
    photometric_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
    if mesh:
        batch = {**batch, "image": sharding.split_images(batch["image"], mesh)}
    images = photometry.distort(photometric_key, batch["image"]) if photometric else batch["image"]
    images = photometry.normalize(images, batch["window"])

    def loss_fn(params):
        if mesh:  # of parameters that are split, each layer gets its own whole; their gradients are split again
            params = jax.lax.with_sharding_constraint(params, sharding.replicated(mesh))
        outputs, updated = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=microbatches,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        losses = isnet_losses(outputs, batch["label"])
        return losses["total"], (losses, updated["batch_stats"])

    grads, (losses, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
    losses["grad_norm"] = optax.global_norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    if state.ema is not None:
        state = state.replace(
            ema=jax.tree.map(lambda old, new: _average(old, new, ema_decay), state.ema, state.variables)
        )
    return state, losses


def _average(old, new, decay):
    """Moving average; counters are copied."""
    return new if jnp.issubdtype(new.dtype, jnp.integer) else decay * old + (1 - decay) * new


def make_train_step(model, optimizer, config, mesh, state_sharding):
    """Jitted `train_step(state, batch)` over the mesh; the state, split as `sharding.split_state` says, is donated."""
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        seed=config.seed,
        mesh=mesh,
        photometric=config.augment.photometric,
        ema_decay=config.train.ema_decay,
        microbatches=config.train.microbatches,
    )
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(state_sharding, sharding.split_batch(mesh)),
        out_shardings=(state_sharding, sharding.replicated(mesh)),
    )


def run_steps(step, state, batches, stop, mesh, on_metrics, stop_asked=lambda: False):
    """Steps until `stop`, or until `stop_asked()`, which is called before each; returns the state and the steps done.

    batches: iterator of dicts of NumPy arrays. `on_metrics(step, losses, seconds_waited_for_data)` is called a step
    late, so that the device always has the next step queued; of all steps when this returns.
    """
    pending, done = None, int(state.step)
    while done < stop and not stop_asked():
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        del batch["index"]
        state, losses = step(state, sharding.to_devices(batch, mesh))
        done += 1
        if pending:
            _deliver(on_metrics, *pending)
        pending = done, losses, waited
    if pending:
        _deliver(on_metrics, *pending)
    return state, done


def _deliver(on_metrics, step, losses, waited):
    on_metrics(step, {name: float(np.asarray(value)) for name, value in losses.items()}, waited)


def check_finite(step, losses, examples, saved):
    """Raises UserError if a loss or the gradient of `step` is not finite.

    examples: a function that returns the names of the batch's; saved: one that returns the steps of the checkpoints,
    the newest first.
    """
    if not np.isfinite([losses["total"], losses["grad_norm"]]).all():
        kept = [f"The last checkpoint, of step {step}, is from before it" for step in saved()[:1]]
        raise UserError(
            f"At step {step} the loss is {losses['total']} and the norm of its gradient "
            f"{losses['grad_norm']}; the batch held {', '.join(examples())}. "
            f"{''.join(kept) or 'Nothing was saved before it'}. Look at those examples, or lower "
            "config.train.base_lr and choose another --workdir."
        )
