"""The same numbers on every mesh: losses, gradients, statistics of batch norm, evaluation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_variables

from isnet_jax import UserError, create_model, evaluation, sharding, train
from isnet_jax.input_pipeline import EvalBatch
from isnet_jax.losses import isnet_losses

FIELDS = {"backbone": "resnet18", "num_classes": 5, "dtype": "float64"}


class CONFIG:
    base_lr, min_lr, power, weight_decay, momentum = 0.01, 1e-4, 0.9, 5e-4, 0.9


def batch(size=8, height=136, width=40):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (size, height, width, 3)).astype(np.uint8),
        "label": np.where(
            rng.random((size, height, width)) < 0.1, 255, rng.integers(0, 5, (size, height, width))
        ).astype(np.uint8),
        "window": np.tile(np.array([2, 0, height - 4, width], np.int32), (size, 1)),
    }


@functools.cache
def step_on(shape, shard_parameters=False, microbatches=1, **fields):
    """Losses and the state, on the host, after a step in float64; and what a device holds of the parameters."""
    model = create_model({**FIELDS, **fields})
    optimizer = train.make_optimizer(CONFIG, 4)
    mesh = sharding.make_mesh(f"data={shape[0]},spatial={shape[1]}", 8, jax.devices()[: shape[0] * shape[1]])
    state = train.state_from_variables(random_variables(model, dtype=np.float64), optimizer)
    shardings = sharding.split_state(mesh, state, shard_parameters)

    def step(state, batch):
        return train.train_step(
            state, batch, model=model, optimizer=optimizer, seed=3, mesh=mesh, microbatches=microbatches
        )

    step = jax.jit(
        step, in_shardings=(shardings, sharding.split_batch(mesh)), out_shardings=(shardings, sharding.replicated(mesh))
    )
    state, losses = step(jax.device_put(state, shardings), sharding.to_devices(batch(), mesh))
    held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(state.params))
    return jax.device_get(losses), jax.device_get(state), held


def assert_close(found, expected, tolerance=1e-9):
    """Relative to the largest number of each array."""
    paths = jax.tree_util.tree_leaves_with_path(expected)
    for (path, b), a in zip(paths, jax.tree.leaves(found), strict=True):
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
def test_a_step_is_the_same_on_every_mesh(shape, shard_parameters, x64):
    """Losses, the norm of the gradient, the gradient (as momentum) and the statistics; strips are of unequal height."""
    losses, state, whole = step_on((1, 1))
    found_losses, found_state, held = step_on(shape, shard_parameters)
    assert_close(found_losses, losses)
    assert_close(found_state, state)
    assert held < 0.27 * whole if shard_parameters else held == whole


@pytest.mark.parametrize(
    "shape, microbatches, fields", [((1, 1), 4, {}), pytest.param((2, 2), 2, {"remat": True}, marks=pytest.mark.slow)]
)
def test_a_batch_in_parts_has_the_statistics_and_gradients_of_the_whole(shape, microbatches, fields, x64):
    losses, state, _ = step_on((1, 1))
    found_losses, found_state, _ = step_on(shape, False, microbatches, **fields)
    assert_close(found_losses, losses)
    assert_close(found_state, state)


def test_a_batch_in_parts_and_blocks_formed_again_leave_less_for_the_backward_pass():
    """Bytes that autodiff keeps between the two passes, parameters apart; a compiler may keep less."""

    def kept(microbatches, remat):
        model = create_model({"backbone": "resnet50", "num_classes": 150, "remat": remat, "dropout": 0.0})
        variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))

        def loss(params, batch_stats, images, labels):
            outputs, _ = model.apply(
                {"params": params, "batch_stats": batch_stats}, images, train=microbatches, mutable=["batch_stats"]
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

    whole = kept(1, False)
    assert kept(4, False) < 0.4 * whole
    assert kept(1, True) < 0.2 * whole and kept(4, True) <= kept(1, True)


def test_evaluation_is_the_same_on_every_mesh(x64):
    """Padded images, boundaries included: the same counts."""
    model = create_model(FIELDS)
    variables = random_variables(model, dtype=np.float64)
    data = batch(4, 128, 40)
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
        step = evaluation.make_eval_step(model, mesh, {"average": "logits"}, boundary=True)
        seen = []
        placed = jax.device_put(variables, sharding.replicated(mesh))
        collect = functools.partial(lambda seen, *args: seen.append(args[2]), seen)
        scores = evaluation.evaluate(step, placed, iter([data]), plan, mesh, collect)
        results[shape] = [
            scores["confusion"],
            *(np.asarray(seen[0][name]) for name in ("counts", "boundary")),
            sharding.from_devices(seen[0]["predictions"])[data["label"] != 255],
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
def test_the_shape_of_the_mesh(setting, devices, batch_size, shape):
    assert sharding.mesh_shape(setting, devices, batch_size) == shape


@pytest.mark.parametrize(
    "setting, devices, batch_size, message",
    [
        ("auto", 6, 16, "16, which 6 devices do not share evenly: set it to, say, 18, or use 4 devices,"),
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
def test_a_mesh_that_does_not_fit_says_why(setting, devices, batch_size, message):
    with pytest.raises(UserError, match=message):
        sharding.mesh_shape(setting, devices, batch_size)


def test_low_images_are_not_cut():
    """XLA's gradients are wrong where a strip is less than the stride; see sharding.MIN_STRIP."""
    mesh = sharding.make_mesh("data=2,spatial=4", devices=jax.devices()[:8])
    for height, strips in ((96, 1), (127, 1), (128, 4)):
        split = jax.jit(lambda x: sharding.split_images(x, mesh))(np.zeros((2, height, 8, 3), np.uint8))
        assert split.sharding.shard_shape((2, 128, 8, 3)) == (1, 128 // strips, 8, 3)


def test_rows_of_a_batch_reach_their_devices_and_come_back():
    mesh = sharding.make_mesh("data=4,spatial=2", devices=jax.devices()[:8])
    array = np.arange(8 * 3).reshape(8, 3)
    placed = sharding.to_devices({"x": array}, mesh)["x"]
    assert sharding.local_rows(mesh, 8).tolist() == list(range(8))
    np.testing.assert_array_equal(sharding.from_devices(placed), array)
    assert placed.sharding == sharding.split_batch(mesh) and sharding.fill_up(9, mesh) == 12
