"""The train step and the loop around it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isnet_jax import create_model, sharding, train
from isnet_jax.errors import UserError


def batch(size=2):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (size, 32, 48, 3)).astype(np.uint8),
        "label": np.where(rng.random((size, 32, 48)) < 0.1, 255, rng.integers(0, 5, (size, 32, 48))).astype(np.uint8),
        "window": np.tile(np.array([2, 0, 28, 48], np.int32), (size, 1)),
    }


@functools.cache
def two_steps(ema_decay=0.0, **fields):
    """States after 0, 1 and 2 steps of a small run, and the losses of the two."""
    model = create_model({"backbone": "resnet18", "num_classes": 5, **fields})
    optimizer = train.make_optimizer(CONFIG, 4)
    step = jax.jit(functools.partial(train.train_step, model=model, optimizer=optimizer, seed=3, ema_decay=ema_decay))
    states, losses = [jax.jit(lambda: train.init_state(model, optimizer, 0, ema_decay > 0))()], []
    for _ in range(2):
        state, loss = step(states[-1], batch())
        states.append(state)
        losses.append(loss)
    return states, losses


class CONFIG:
    base_lr, min_lr, power, weight_decay, momentum = 0.01, 1e-4, 0.9, 5e-4, 0.9


def test_moving_average_and_losses():
    states, losses = two_steps(ema_decay=0.75)
    for name in ("params", "batch_stats"):
        average = jax.tree.map(
            lambda a, b, c: c if a.dtype == jnp.int32 else 0.75**2 * a + 0.75 * 0.25 * b + 0.25 * c,
            *(getattr(state, name) for state in states),
        )
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), states[2].ema[name], average)
    assert int(states[2].step) == 2
    counts = {int(x) for x in jax.tree.leaves(states[2].batch_stats) if x.dtype == jnp.int32}
    assert counts == {2}  # batches tracked
    for loss in losses:
        parts = [float(loss[name]) for name in ("auxiliary", "stage1", "stage2")]
        assert sum(parts) == pytest.approx(float(loss["total"]), rel=1e-6)
        assert parts[0] < 0.4 * 3 and parts[2] < 3 and float(loss["grad_norm"]) > 0


def test_bfloat16_with_remat_trains_float32_parameters():
    """Rounding apart, the same steps; parameters, statistics and momentum stay float32."""
    states, losses = two_steps(dtype="bfloat16", remat=True)
    wide_states, wide_losses = two_steps(ema_decay=0.75)
    assert {str(x.dtype) for x in jax.tree.leaves(states[2])} == {"float32", "int32"}
    assert jax.tree.structure(states[2].variables) == jax.tree.structure(wide_states[2].variables)
    for loss, wide in zip(losses, wide_losses):
        assert float(loss["total"]) == pytest.approx(float(wide["total"]), rel=0.05)
        assert loss["total"].dtype == jnp.float32


def test_metrics_come_a_step_late_and_all_of_them():
    """In order; each when the next step is already under way; a stop that is asked for comes before a step."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    seen, dispatched = [], []

    def step(state, batch):
        dispatched.append(int(state.step) + 1)
        return state.replace(step=state.step + 1), {"total": np.float32(dispatched[-1])}

    def on_metrics(step, losses, waited):
        assert waited >= 0 and dispatched[-1] == min(step + 1, last) and losses == {"total": step}
        seen.append(step)

    state = train.TrainState(jnp.zeros((), jnp.int32), {}, {}, (), None)
    batches = iter([{"image": np.zeros((1, 1)), "index": np.array([100 + i])} for i in range(20)])
    last = 9
    state, done = train.run_steps(step, state, batches, 9, mesh, on_metrics)
    assert seen == [*range(1, 10)] and done == int(state.step) == 9
    last, answers = 12, iter([False, False, False, True])
    state, done = train.run_steps(step, state, batches, 18, mesh, on_metrics, lambda: next(answers))
    assert seen == [*range(1, 13)] and done == int(state.step) == 12


@pytest.mark.parametrize("total, norm", [(np.nan, 1.0), (1.0, np.inf)])
def test_what_is_not_finite_ends_the_run(total, norm):
    losses = {"total": 1.0, "grad_norm": 1.0}
    train.check_finite(3, losses, None, None)
    with pytest.raises(
        UserError,
        match=r"step 4 the loss is .*; the batch held a, b. The last checkpoint, of step 2, is "
        r"from before it. .*base_lr",
    ):
        train.check_finite(4, {"total": total, "grad_norm": norm}, lambda: ["a", "b"], lambda: [2, 1])
    with pytest.raises(UserError, match="Nothing was saved before it. Look"):
        train.check_finite(4, {"total": total, "grad_norm": norm}, lambda: ["a", "b"], list)
