"""The whole network: devices, precision and rematerialisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_close, cast, network, weights
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from isnet_jax.models import losses

pytestmark = pytest.mark.usefixtures("tiny_network")


@functools.cache
def training_step(devices, remat, shortcut):
    """Losses, gradients and batch statistics in float64 of a batch of 8 split over the devices."""
    model, variables = network("resnet18", shortcut=shortcut, remat=remat)
    variables = cast(variables, np.float64)
    images, labels = weights.image(25, 33, batch=8).astype(np.float64), weights.labels(25, 33, 5, batch=8)

    def loss(params, stats, images, labels):
        outputs, new = model.apply(
            {"params": params, "batch_stats": stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        values = losses.isnet_losses(outputs, labels)
        return values["total"], (values, new["batch_stats"])

    mesh = Mesh(jax.devices()[:devices], "data")
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    step = jax.jit(jax.grad(loss, has_aux=True), in_shardings=(whole, whole, split, split), out_shardings=whole)
    return jax.device_get(step(variables["params"], variables["batch_stats"], images, labels))


@pytest.mark.parametrize("shortcut", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_train_step_on_eight_devices_equals_one(shortcut, x64):
    assert len(jax.devices()) >= 8
    assert_close(training_step(8, False, shortcut), training_step(1, False, shortcut), 1e-10)


def test_remat_changes_no_gradient(x64):
    assert_close(training_step(1, True, True), training_step(1, False, True), 1e-10)


def test_isnet_in_bfloat16_stays_close_to_float32():
    images, outputs = weights.image(41, 33), {}
    for dtype in ("float32", "bfloat16"):
        model, variables = network("resnet18", dtype=dtype)
        outputs[dtype] = jax.jit(model.apply)(variables, images)["stage1_logits"]
    assert outputs["bfloat16"].dtype == jnp.float32
    assert 0 < np.abs(outputs["bfloat16"] - outputs["float32"]).mean() < 0.05 * outputs["float32"].std()
    fresh = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh["params"])} == {jnp.dtype("float32")}
