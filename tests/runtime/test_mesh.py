"""Losses, gradients, batch statistics and evaluation are the same on every mesh; and the meshes themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import random_variables

from isnet_jax import UserError, create_model
from isnet_jax import config as configs
from isnet_jax.evaluation.loop import evaluate, make_eval_step
from isnet_jax.input.pipeline import EvalBatch
from isnet_jax.models.losses import isnet_losses
from isnet_jax.runtime import sharding
from isnet_jax.training.optimizer import make_optimizer, make_schedule
from isnet_jax.training.step import state_from_variables, train_step

pytestmark = pytest.mark.usefixtures("tiny_network")

FIELDS = {"backbone": "resnet18", "num_classes": 5, "dtype": "float64"}
OPTIONS = {"optimizer": "adamw", "clip_norm": 1.0, "head_lr_factor": 10.0, "decay_norms_and_biases": False}
LOSSES = {"class_weights": (1.0, 2.0, 3.0, 0.5, 4.0), "label_smoothing": 0.1, "dice_weight": 1.0}
LOSSES |= {"ohem_threshold": 0.2, "ohem_min_kept": 2000}


def make_batch(size=8, height=136, width=40):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (size, height, width, 3)).astype(np.uint8),
        "label": np.where(
            rng.random((size, height, width)) < 0.1, 255, rng.integers(0, 5, (size, height, width))
        ).astype(np.uint8),
        "window": np.tile(np.array([2, 0, height - 4, width], np.int32), (size, 1)),
    }


@functools.cache
def step_on(shape, shard_parameters=False, frozen_stages=None, **fields):
    """Metrics and state, on the host, after a step in float64; and the number of parameters that a device holds.

    With `frozen_stages`, all options of optimizer and losses are on.
    """
    config = configs.default("resnet18").train
    if frozen_stages is not None:
        config.update(OPTIONS | {"frozen_stages": frozen_stages})
    model = create_model({**FIELDS, **fields, "fixed_statistics": config.frozen_stages})
    schedule = make_schedule(config, total_steps=4)
    optimizer = make_optimizer(config, schedule)
    mesh = sharding.make_mesh(f"data={shape[0]},spatial={shape[1]}", 8, jax.devices()[: shape[0] * shape[1]])
    state = state_from_variables(random_variables(model, dtype=np.float64), optimizer)
    shardings = sharding.state_shardings(mesh, state, shard_parameters)
    more = {} if frozen_stages is None else {"losses_of": functools.partial(isnet_losses, **LOSSES)}
    more |= {"mesh": mesh, "frozen_stages": config.frozen_stages}
    step = jax.jit(
        functools.partial(train_step, model=model, optimizer=optimizer, schedule=schedule, seed=3, **more),
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    state, metrics = step(jax.device_put(state, shardings), sharding.to_devices(make_batch(), mesh))
    num_held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(state.params))
    return jax.device_get(metrics), jax.device_get(state), num_held


def assert_close(found, expected, tolerance=1e-9):
    """Up to a tolerance relative to the largest number of each array."""
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    for (path, b), a in zip(leaves, jax.tree.leaves(found), strict=True):
        scale = max(np.abs(b).max(initial=0), 1e-12)
        assert np.abs(a - b).max(initial=0) <= tolerance * scale, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    "shape, shard_parameters",
    [
        ((8, 1), False),
        ((4, 2), True),
        pytest.param((2, 4), False, marks=pytest.mark.slow),
        pytest.param((1, 4), False, marks=pytest.mark.slow),
    ],
)
def test_train_step_is_the_same_on_every_mesh(shape, shard_parameters, x64):
    """Losses, gradient norm, gradient (as momentum) and batch statistics; the strips differ in height."""
    metrics, state, num_parameters = step_on((1, 1))
    found_metrics, found_state, num_held = step_on(shape, shard_parameters)
    assert_close(found_metrics, metrics)
    assert_close(found_state, state)
    assert num_held < 0.27 * num_parameters if shard_parameters else num_held == num_parameters


def test_train_step_with_every_option_is_the_same_on_every_mesh(x64):
    """Frozen parameters are sharded like the others."""
    metrics, state, num_parameters = step_on((1, 1), frozen_stages=2)
    found_metrics, found_state, num_held = step_on((4, 2), True, frozen_stages=2, remat=True)
    assert_close(found_metrics, metrics)
    assert_close(found_state, state)
    assert num_held < 0.27 * num_parameters


@pytest.mark.slow
def test_train_step_with_pooled_shortcuts_is_the_same_on_a_mesh(x64):
    """Their dilated pooling reads the strip below."""
    metrics, state, _ = step_on((1, 1), backbone="resnet50d")
    found_metrics, found_state, _ = step_on((2, 2), backbone="resnet50d")
    assert_close(found_metrics, metrics)
    assert_close(found_state, state)


@pytest.mark.slow
def test_train_step_is_the_same_with_rematerialisation(x64):
    metrics, state, _ = step_on((1, 1))
    found_metrics, found_state, _ = step_on((2, 2), False, remat=True)
    assert_close(found_metrics, metrics)
    assert_close(found_state, state)


def test_rematerialisation_keeps_less_for_the_backward_pass():
    """Bytes that autodiff keeps between the two passes, without the parameters; XLA may keep less."""

    def kept(remat):
        model = create_model({"backbone": "resnet50", "num_classes": 150, "remat": remat, "dropout": 0.0})
        variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))

        def loss(params, batch_stats, images, labels):
            outputs, _ = model.apply(
                {"params": params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
            )
            return isnet_losses(outputs, labels)["total"]

        images = jax.ShapeDtypeStruct((8, 256, 256, 3), np.float32)
        labels = jax.ShapeDtypeStruct((8, 256, 256), np.uint8)
        pull = jax.eval_shape(
            lambda params, *rest: jax.vjp(lambda p: loss(p, *rest), params)[1],
            variables["params"],
            variables["batch_stats"],
            images,
            labels,
        )
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull)) - sum(
            leaf.size * 4 for leaf in jax.tree.leaves(variables["params"])
        )

    assert kept(True) < 0.2 * kept(False)


def test_evaluation_is_the_same_on_every_mesh(x64):
    """The counts of padded images, boundary bands included."""
    model = create_model(FIELDS)
    variables = random_variables(model, dtype=np.float64)
    data = make_batch(4, 128, 40)
    sizes = np.array([(128, 40), (101, 33), (77, 40), (120, 17)], np.int32)
    data = {
        "image": data["image"],
        "label": data["label"],
        "image_size": sizes,
        "label_size": sizes,
        "index": np.arange(4),
    }
    for label, (h, w) in zip(data["label"], sizes):
        label[h:], label[:, w:] = 255, 255
    plan, results = [EvalBatch((128, 40), (128, 40), True, np.arange(4))], {}
    for shape in ((1, 1), (2, 4)):
        mesh = sharding.make_mesh(f"data={shape[0]},spatial={shape[1]}", devices=jax.devices()[: shape[0] * shape[1]])
        step = make_eval_step(model, mesh, {"average": "logits"}, boundary=True)
        outputs = []
        placed = jax.device_put(variables, sharding.replicated(mesh))
        collect = functools.partial(lambda outputs, *args: outputs.append(args[2]), outputs)
        scores = evaluate(step, placed, iter([data]), plan, mesh, collect)
        results[shape] = [
            scores["confusion"],
            *(np.asarray(outputs[0][name]) for name in ("counts", "boundary")),
            sharding.from_devices(outputs[0]["predictions"])[data["label"] != 255],
        ]
    for one, other in zip(*results.values()):
        np.testing.assert_array_equal(one, other)
    assert results[1, 1][0].sum() == (data["label"] != 255).sum()


MESHES = [
    ("auto", 8, 16, (8, 1)),
    ("auto", 16, 16, (16, 1)),
    ("auto", 32, 16, (16, 2)),
    ("auto", 64, 16, (16, 4)),
    ("auto", 1, 16, (1, 1)),
    ("auto", 8, None, (8, 1)),
    ("data=4,spatial=2", 8, 16, (4, 2)),
    ("data=4", 4, 16, (4, 1)),
    ("data=1,spatial=8", 8, 1, (1, 8)),
    ("data=3,spatial=2", 6, 9, (3, 2)),
]


@pytest.mark.parametrize("setting, devices, batch_size, shape", MESHES)
def test_mesh_shape_fits_devices_and_batch(setting, devices, batch_size, shape):
    assert sharding.mesh_shape(setting, devices, batch_size) == shape


@pytest.mark.parametrize(
    "setting, devices, batch_size, message",
    [
        ("auto", 6, 16, "16, which 6 devices do not share evenly: set it to 18, for example, or use 4 devices,"),
        ("auto", 48, 16, "48 devices do not share"),
        ("auto", 256, 16, "do not share"),
        ("data=4,spatial=2", 4, 16, "a mesh of 8 devices, but there are 4"),
        ("data=8", 8, 12, "global_batch_size is 12, which is not a multiple of 8"),
        ("4x2", 8, 16, "must be auto, or as in data=4,spatial=2"),
        ("data=0,spatial=8", 8, 16, "must be auto"),
        ("spatial=2", 8, 16, "must be auto"),
        ("", 8, 16, "must be auto"),
    ],
)
def test_mesh_shape_says_why_a_mesh_does_not_fit(setting, devices, batch_size, message):
    with pytest.raises(UserError, match=message):
        sharding.mesh_shape(setting, devices, batch_size)


def test_training_mesh_refuses_crops_too_low_for_its_strips():
    config = configs.default("resnet18")
    config.mesh, config.train.global_batch_size = "data=2,spatial=4", 2
    config.augment.crop_size = (127, 256)
    message = (
        r"crop_size is \(127, 256\) \(height, width\), which is too low for the 4 strips of the mesh, each of at least "
        "32 pixels; set config.mesh so that `spatial` is smaller"
    )
    with pytest.raises(UserError, match=message):
        sharding.training_mesh(config, jax.devices()[:8])
    config.augment.crop_size = (128, 256)
    assert sharding.training_mesh(config, jax.devices()[:8]).shape == {"data": 2, "spatial": 4}
    config.train.global_batch_size = 3
    with pytest.raises(UserError, match="global_batch_size is 3, which is not a multiple of 2"):
        sharding.training_mesh(config, jax.devices()[:8])


def test_shard_images_does_not_split_low_images():
    """XLA's gradients are wrong where a strip is lower than the stride; see sharding.MIN_STRIP_HEIGHT."""
    mesh = sharding.make_mesh("data=2,spatial=4", devices=jax.devices()[:8])
    for height, strips in ((96, 1), (127, 1), (128, 4)):
        split = jax.jit(lambda x: sharding.shard_images(x, mesh))(np.zeros((2, height, 8, 3), np.uint8))
        assert split.sharding.shard_shape((2, 128, 8, 3)) == (1, 128 // strips, 8, 3)


def test_to_devices_and_from_devices_round_trip():
    mesh = sharding.make_mesh("data=4,spatial=2", devices=jax.devices()[:8])
    array = np.arange(8 * 3).reshape(8, 3)
    placed = sharding.to_devices({"x": array}, mesh)["x"]
    assert sharding.local_rows(mesh, 8).tolist() == list(range(8))
    np.testing.assert_array_equal(sharding.from_devices(placed), array)
    assert placed.sharding == sharding.batch_sharding(mesh) and sharding.round_up_batch_size(9, mesh) == 12
