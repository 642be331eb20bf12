"""The train step, the trainer around it, and the milestones of a run."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isnet_jax import config as configs
from isnet_jax import create_model
from isnet_jax.errors import UserError
from isnet_jax.runtime import distributed, sharding
from isnet_jax.runtime.interrupts import StopRequested
from isnet_jax.training.loop import milestones
from isnet_jax.training.optimizer import make_optimizer, make_schedule
from isnet_jax.training.profiler import Profiler
from isnet_jax.training.step import TrainState, init_state, train_step
from isnet_jax.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("tiny_network")


def batch(size=2):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (size, 32, 48, 3)).astype(np.uint8),
        "label": np.where(rng.random((size, 32, 48)) < 0.1, 255, rng.integers(0, 5, (size, 32, 48))).astype(np.uint8),
        "window": np.tile(np.array([2, 0, 28, 48], np.int32), (size, 1)),
    }


@functools.cache
def two_steps(ema_decay=0.0, **fields):
    """States after 0, 1 and 2 steps of a small run, and the metrics of the two."""
    model = create_model({"backbone": "resnet18", "num_classes": 5, **fields})
    schedule = make_schedule(configs.default("resnet18").train, 4)
    optimizer = make_optimizer(configs.default("resnet18").train, schedule)
    step = jax.jit(
        functools.partial(train_step, model=model, optimizer=optimizer, schedule=schedule, seed=3, ema_decay=ema_decay)
    )
    states, metrics = [jax.jit(lambda: init_state(model, optimizer, 0, ema_decay > 0))()], []
    for _ in range(2):
        state, step_metrics = step(states[-1], batch())
        states.append(state)
        metrics.append(step_metrics)
    return states, metrics


def test_train_step_averages_weights_and_reports_weighted_losses():
    states, metrics = two_steps(ema_decay=0.75)
    for name in ("params", "batch_stats"):
        average = jax.tree.map(
            lambda a, b, c: c if a.dtype == jnp.int32 else 0.75**2 * a + 0.75 * 0.25 * b + 0.25 * c,
            *(getattr(state, name) for state in states),
        )
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), states[2].ema[name], average)
    assert int(states[2].step) == 2
    counts = {int(x) for x in jax.tree.leaves(states[2].batch_stats) if x.dtype == jnp.int32}
    assert counts == {2}  # batches tracked
    for values in metrics:
        parts = [float(values[name]) for name in ("auxiliary", "stage1", "stage2")]
        assert sum(parts) == pytest.approx(float(values["total"]), rel=1e-6)
        assert parts[0] < 0.4 * 3 and parts[2] < 3 and float(values["grad_norm"]) > 0
    assert [float(values["lr"]) for values in metrics] == pytest.approx([0.01, 0.75**0.9 * 0.0099 + 1e-4], rel=1e-6)


def test_train_step_in_bfloat16_with_remat_keeps_float32_parameters():
    """Rounding apart, the same steps; parameters, statistics and momentum stay float32."""
    states, metrics = two_steps(dtype="bfloat16", remat=True)
    float32_states, float32_metrics = two_steps(ema_decay=0.75)
    assert {str(x.dtype) for x in jax.tree.leaves(states[2])} == {"float32", "int32"}
    assert jax.tree.structure(states[2].variables) == jax.tree.structure(float32_states[2].variables)
    for values, float32_values in zip(metrics, float32_metrics):
        assert float(values["total"]) == pytest.approx(float(float32_values["total"]), rel=0.05)
        assert values["total"].dtype == jnp.float32


@pytest.mark.parametrize("power", [0.9, 1.0])
def test_schedule_is_polynomial_in_double_precision(power, x64):
    """Of Python numbers and of the optimizer's int32 counter alike."""
    config = configs.default("resnet18").train
    config.power = power
    schedule = make_schedule(config, 7)
    for step in range(8):
        expected = (1 - step / 7) ** power * (0.01 - 1e-4) + 1e-4
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-14)
        assert float(jax.jit(schedule)(jnp.int32(step))) == pytest.approx(expected, rel=1e-14)


# --- the trainer -------------------------------------------------------------------------------


class RecordingLog:
    """Stands for the run's log: the steps it was given, checked against those that are already dispatched."""

    def __init__(self, dispatched):
        self.dispatched, self.steps, self.last = dispatched, [], None

    def resume_clock(self):
        pass

    def on_metrics(self, step, metrics, waited):
        assert waited >= 0 and metrics["total"] == step
        assert self.dispatched[-1] == min(step + 1, self.last)  # the next step is already under way
        self.steps.append(step)


def trainer_of(tmp_path, dispatched, log, saved=(), **metrics):
    """A Trainer of a state that only counts steps."""

    def step(state, batch):
        assert set(batch) == {"image", "label", "window"}
        dispatched.append(int(jax.device_get(state.step)) + 1)
        number = jax.device_put(np.float32(dispatched[-1]), jax.devices()[0])
        values = {"total": number, "grad_norm": number} | metrics
        return state.replace(step=jax.device_put(np.int32(dispatched[-1]), jax.devices()[0])), values

    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    state = TrainState(jnp.zeros((), jnp.int32), {}, {}, (), None)
    arrays = {name: np.zeros((1, 1)) for name in ("image", "label", "window")}
    batches = iter([{**arrays, "index": np.array([100 + i])} for i in range(20)])
    checkpoints = SimpleNamespace(check=lambda: None, steps=lambda: list(saved))
    profiler = Profiler(tmp_path, 0, 0)
    return Trainer(step, state, batches, mesh, lambda index: f"image {index}", checkpoints, log, profiler)


def test_trainer_delivers_metrics_of_every_step_one_late(tmp_path, monkeypatch):
    """In order, each when the next step is already under way; a requested stop comes before a step."""
    dispatched = []
    log = RecordingLog(dispatched)
    trainer = trainer_of(tmp_path, dispatched, log)
    log.last = 9
    state = trainer.run_until(9)
    assert log.steps == [*range(1, 10)] and int(state.step) == 9
    log.last, answers = 12, iter([False, False, False, True])
    monkeypatch.setattr(distributed, "stop_requested", lambda: next(answers))
    with pytest.raises(StopRequested):
        trainer.run_until(18)
    assert log.steps == [*range(1, 13)] and int(trainer.state.step) == 12


@pytest.mark.parametrize("metrics", [{"total": np.float32("nan")}, {"grad_norm": np.float32("inf")}])
@pytest.mark.parametrize(
    "saved, told",
    [
        ((2, 1), "The last checkpoint, of step 2, is from before it. Look at"),
        ((), "Nothing was saved before it. Look at"),
    ],
)
def test_trainer_stops_on_non_finite_loss_or_gradient(metrics, saved, told, tmp_path):
    log = SimpleNamespace(resume_clock=lambda: None, on_metrics=lambda *args: pytest.fail("it is not logged"))
    trainer = trainer_of(tmp_path, [], log, saved, **metrics)
    with pytest.raises(UserError, match=rf"step 1 the loss is .*; the batch held image 100. {told} .*base_lr"):
        trainer.run_until(3)


def test_trainer_refuses_hidden_transfers(tmp_path):
    """What the step loop moves to a device or back, it moves explicitly."""
    trainer = trainer_of(tmp_path, [], SimpleNamespace(resume_clock=lambda: None, on_metrics=lambda *args: None))
    doubled = jax.jit(lambda x: 2 * x)
    step = trainer._train_step

    def leaking(state, batch):
        doubled(np.ones(3))  # an argument that is moved to the device on the way
        return step(state, batch)

    trainer._train_step = leaking
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        trainer.run_until(1)


def test_profiler_traces_the_steps_after_warm_up(tmp_path):
    with Profiler(tmp_path / "profile", 10, 2) as profiler:
        for step in range(10, 20):
            profiler.before_step(step, jnp.ones(3))
            jnp.ones(3).sum()
    [trace] = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    assert trace.stat().st_size > 0 and list((tmp_path / "profile").rglob("*.xplane.pb"))


# --- milestones --------------------------------------------------------------------------------


def run_of(epochs, save_every, evaluate_every, steps_per_epoch=4, first=0, evaluated=True):
    c = configs.default()
    c.train.epochs, c.run.checkpoint_every_steps, c.run.eval_every_epochs = epochs, save_every, evaluate_every
    return [tuple(m) for m in milestones(c, steps_per_epoch, first, evaluated)]


def test_milestones_save_and_evaluate_when_due():
    """The last step is saved; its evaluation is the run's own."""
    assert run_of(3, 5, 1) == [
        (4, False, True),
        (5, True, False),
        (8, False, True),
        (10, True, False),
        (12, True, False),
    ]
    assert run_of(2, 4, 1) == [(4, True, True), (8, True, False)]
    assert run_of(1, 100, 100) == [(4, True, False)]


def test_milestones_resume_with_an_evaluation_that_was_cut_short():
    whole = run_of(3, 4, 1)
    for first in range(13):
        assert run_of(3, 4, 1, first=first) == [m for m in whole if m[0] > first]
    assert run_of(3, 4, 1, first=4, evaluated=False) == [(4, False, True), *whole[1:]]
    assert run_of(3, 4, 1, first=5, evaluated=False) == whole[1:]  # none was due
    assert run_of(3, 4, 1, first=0, evaluated=False) == whole
    assert run_of(3, 4, 1, first=12, evaluated=False) == []  # the run evaluates after its last step anyway
