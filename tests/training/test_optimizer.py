"""Optimizers and schedules against PyTorch and formulas; frozen stages."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import assert_close, cast, network, weights

from isnet_jax import config as configs
from isnet_jax.errors import UserError
from isnet_jax.models.isnet import BACKBONES
from isnet_jax.models.resnet import STAGES
from isnet_jax.runtime import roofline
from isnet_jax.training.optimizer import join_frozen, make_optimizer, make_schedule, split_frozen
from isnet_jax.training.step import state_from_variables, train_step

pytestmark = pytest.mark.usefixtures("tiny_network")


def train_config(**fields):
    config = configs.default("resnet18").train
    config.update(fields)
    return config


@pytest.mark.parametrize(
    "fields", [{}, {"schedule": "cosine"}, {"warmup_steps": 3}, {"schedule": "cosine", "warmup_steps": 3}]
)
def test_schedule_is_its_formula(fields, x64):
    config, total = train_config(**fields), 10
    schedule, start = make_schedule(config, total), config.warmup_steps
    for step in range(total + 1):
        t = (step - start) / (total - start)
        decay = (1 + math.cos(math.pi * t)) / 2 if config.schedule == "cosine" else (1 - max(t, 0)) ** 0.9
        expected = 0.01 * step / start if step < start else decay * (0.01 - 1e-4) + 1e-4
        assert float(schedule(jnp.int32(step))) == pytest.approx(expected, rel=1e-13, abs=1e-17)


def test_warm_up_must_leave_steps():
    assert make_schedule(train_config(warmup_steps=9), 10)(9) == pytest.approx(0.01)
    with pytest.raises(UserError, match=r"config.train.warmup_steps is 10, but the run has 10 steps; it must be less"):
        make_schedule(train_config(warmup_steps=10), 10)


PARAMETERS = {
    "backbone": {"layer1_0": {"conv": {"kernel": (3, 3, 2, 4)}, "bn": {"scale": (4,), "bias": (4,)}}},
    "stage1_classifier": {"kernel": (1, 1, 4, 5), "bias": (5,)},
}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"optimizer": "adamw", "weight_decay": 0.02},
        {"clip_norm": 3.0, "head_lr_factor": 10.0, "backbone_lr_factor": 0.5, "decay_norms_and_biases": False},
        {"optimizer": "adamw", "clip_norm": 3.0, "backbone_lr_factor": 0.1, "decay_norms_and_biases": False},
    ],
)
def test_optimizer_is_that_of_pytorch(fields, torch, x64):
    """Five steps with a parameter group for each rate and decay, and gradients of which some are clipped."""
    config, rng = train_config(**fields), np.random.default_rng(0)
    params = jax.tree.map(rng.standard_normal, PARAMETERS, is_leaf=lambda x: isinstance(x, tuple))
    tensors, groups = [], []
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        tensors.append(torch.tensor(value, requires_grad=True))
        factor = config.backbone_lr_factor if path[0].key == "backbone" else config.head_lr_factor
        decays = config.decay_norms_and_biases or path[-1].key == "kernel"
        groups.append({"params": [tensors[-1]], "factor": factor, "weight_decay": config.weight_decay * decays})
    if config.optimizer == "adamw":
        theirs = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999))
    else:
        theirs = torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    schedule = make_schedule(config, 6)
    ours = make_optimizer(config, schedule)
    state = ours.init(params)
    for step in range(5):
        grads = [rng.standard_normal(tensor.shape) * (step % 2 + 0.1) for tensor in tensors]
        norm = math.sqrt(sum((grad**2).sum() for grad in grads))
        clip = min(1, config.clip_norm / norm) if config.clip_norm else 1
        for tensor, grad in zip(tensors, grads):
            tensor.grad = torch.tensor(grad * clip)
        for group in theirs.param_groups:
            group["lr"] = group["factor"] * float(schedule(step))
        theirs.step()
        updates, state = ours.update(jax.tree.unflatten(jax.tree.structure(params), grads), state, params)
        params = optax.apply_updates(params, updates)
    assert_close(jax.tree.leaves(params), [tensor.detach().numpy() for tensor in tensors], 1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    "fields",
    [
        {"clip_norm": 1.0},
        {"decay_norms_and_biases": False},
        {"head_lr_factor": 2.0, "backbone_lr_factor": 0.5},
        {"schedule": "cosine", "warmup_steps": 3},
        {"momentum": 0.0, "weight_decay": 0.0},
    ],
)
def test_options_leave_the_structure_of_the_state(optimizer, fields):
    """A run may go on with them, and as in earlier versions: only the optimizer itself has another state."""

    def structure(**fields):
        config = train_config(optimizer=optimizer, **fields)
        return jax.tree.structure(make_optimizer(config, make_schedule(config, 10)).init({"backbone": {"kernel": 0.0}}))

    assert structure(**fields) == structure()
    if optimizer == "sgd":
        earlier = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(lambda step: 0.1, 0.9))
        assert structure() == jax.tree.structure(earlier.init({"backbone": {"kernel": 0.0}}))


# --- frozen stages -----------------------------------------------------------------------------


def test_split_frozen_takes_stages_from_the_stem_on():
    variables = network("resnet18")[1]["params"]
    assert split_frozen(variables, 0) == (variables, {})
    for count in range(1, len(STAGES) + 1):
        trained, frozen = split_frozen(variables, count)
        assert {"stem" if name in ("stem1", "stem2", "stem3") else name[:-2] for name in frozen} == {*STAGES[:count]}
        assert ("backbone" in trained) == (count < len(STAGES))
        assert jax.tree.structure(join_frozen(trained, frozen)) == jax.tree.structure(variables)


def step_of(frozen_stages, fixed_statistics, **fields):
    """A train step of a small network, and its state and batch, in float64."""
    model, variables = network("resnet18", dtype="float64", fixed_statistics=fixed_statistics)
    config = train_config(frozen_stages=frozen_stages, **fields)
    schedule = make_schedule(config, 10)
    optimizer = make_optimizer(config, schedule)
    state = state_from_variables(cast(variables, np.float64), optimizer, ema=True)
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3)).astype(np.uint8),
        "label": weights.labels(48, 64, 5, batch=2),
        "window": np.tile(np.array([0, 0, 48, 64], np.int32), (2, 1)),
    }
    step = functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        seed=0,
        ema_decay=0.9,
        frozen_stages=frozen_stages,
    )
    return step, state, batch


def test_frozen_stages_stay_and_the_others_train_as_ever(x64):
    """As in the same network whose first stages take their running statistics and train."""
    step, before, batch = step_of(2, 2)
    frozen, frozen_metrics = jax.jit(step)(before, batch)
    step, whole, _ = step_of(0, 2)
    trained, metrics = jax.jit(step)(whole, batch)
    for name in ("params", "batch_stats"):
        start, ours, theirs = (split_frozen(getattr(state, name), 2) for state in (before, frozen, trained))
        jax.tree.map(np.testing.assert_array_equal, ours[1], start[1])
        jax.tree.map(np.testing.assert_array_equal, split_frozen(frozen.ema[name], 2)[1], start[1])
        assert_close(ours[0], theirs[0], 1e-12)
        assert_close(split_frozen(frozen.ema[name], 2)[0], split_frozen(trained.ema[name], 2)[0], 1e-12)
        moved = jax.tree.map(lambda old, new: (old != new).any(), start[0], ours[0])
        assert np.mean(jax.tree.leaves(moved)) > 0.9
    assert frozen_metrics["total"] == pytest.approx(float(metrics["total"]), rel=1e-12)
    assert frozen_metrics["grad_norm"] < metrics["grad_norm"]
    assert jax.tree.structure(before.opt_state) != jax.tree.structure(whole.opt_state)
    num_kept = sum(x.size for x in jax.tree.leaves(split_frozen(before.params, 2)[0]))
    assert sum(x.size for x in jax.tree.leaves(before.opt_state)) == num_kept + 1  # the momentum, and the step


def test_fixed_statistics_are_those_of_evaluation(x64):
    """In training, a stage with them gives what it gives in evaluation, and leaves them; its scale still trains."""
    model, variables = network("resnet18", dtype="float64", fixed_statistics=len(STAGES), remat=True)
    variables, images = cast(variables, np.float64), weights.image(41, 33, batch=2).astype(np.float64)

    def train(params):
        outputs, new = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            mutable=["batch_stats", "intermediates"],
            rngs={"dropout": jax.random.key(0)},
            capture_intermediates=lambda module, _: module.name == "backbone",
        )
        (stages,) = new["intermediates"]["backbone"]["__call__"]
        return outputs["logits"].sum(), (stages, new["batch_stats"])

    grads, (stages, statistics) = jax.jit(jax.grad(train, has_aux=True))(variables["params"])
    _, new = model.apply(variables, images, capture_intermediates=lambda module, _: module.name == "backbone")
    assert_close(stages, new["intermediates"]["backbone"]["__call__"][0], 1e-12)
    jax.tree.map(np.testing.assert_array_equal, statistics["backbone"], variables["batch_stats"]["backbone"])
    assert (statistics["bottleneck"]["bn"]["mean"] != variables["batch_stats"]["bottleneck"]["bn"]["mean"]).any()
    assert np.abs(grads["backbone"]["stem1"]["bn"]["scale"]).min() > 0


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50b", "resnet50d", "resnest50"])
def test_every_backbone_leaves_fixed_statistics(backbone):
    """The program returns those of the stem and layer1 as they came, and updates all others."""
    module, masks = BACKBONES[backbone](fixed_statistics=2), dict.fromkeys((2, 4, 8))
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False, masks), images)

    def train(variables, images):
        return module.apply(variables, images, True, masks, mutable=["batch_stats"])[1]["batch_stats"]

    program = jax.make_jaxpr(train)(variables, images).jaxpr
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables["batch_stats"])]
    unchanged = {path[0].key for path, out in zip(paths, program.outvars, strict=True) if out in program.invars}
    assert unchanged == {name for name in variables["params"] if name.startswith(("stem", "layer1"))}


@pytest.mark.parametrize("remat, passes", [(False, 2), (True, 3)])
def test_frozen_backbone_has_no_backward_pass(remat, passes):
    """It is computed once; a trained one three times, and four times with rematerialisation."""
    variables = network("resnet18")[1]
    batch = {
        "image": np.zeros((2, 48, 64, 3), np.uint8),
        "label": np.zeros((2, 48, 64), np.uint8),
        "window": np.zeros((2, 4), np.int32),
    }

    def flops(function, *arguments):
        return roofline.count_flops(jax.make_jaxpr(function)(*arguments).jaxpr).model

    def step_flops(frozen_stages):
        model, _ = network("resnet18", remat=remat, fixed_statistics=frozen_stages)
        config = train_config(frozen_stages=frozen_stages)
        schedule = make_schedule(config, 10)
        optimizer = make_optimizer(config, schedule)
        fields = {"model": model, "optimizer": optimizer, "schedule": schedule, "frozen_stages": frozen_stages}
        state = jax.eval_shape(lambda: state_from_variables(variables, optimizer))
        return flops(functools.partial(train_step, seed=0, **fields), state, batch)

    masks, images = dict.fromkeys((2, 4, 8)), np.zeros((2, 48, 64, 3), np.float32)
    of_backbone = {name: tree["backbone"] for name, tree in variables.items()}
    forward = flops(lambda v: BACKBONES["resnet18"]().apply(v, images, False, masks), of_backbone)
    saved = step_flops(0) - step_flops(len(STAGES))
    assert saved == pytest.approx(passes * forward, rel=0.02)  # the gradient of the images is not computed
