"""The whole network: devices, precision, rematerialisation, and PyTorch at other depths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_close, cast, load_module, network, slow_if, weights
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from paths import ROOT

from isnet_jax.checkpoints import torch_names
from isnet_jax.models import losses

pytestmark = pytest.mark.usefixtures("tiny_network")

DEEP = ("resnet101", "resnet152", "resnest101", "resnest200")


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


@pytest.mark.parametrize("backbone", slow_if(("resnet34", *DEEP), DEEP))
def test_isnet_of_other_depths_equals_torch(backbone, torch, x64):
    oracle = load_module(ROOT / "benchmarks" / "torch_isnet.py")
    model, variables = network(backbone)
    net = oracle.ISNet(backbone, 5, dropout=0.0)
    net.load_state_dict(
        {key: torch.from_numpy(np.asarray(value)) for key, value in torch_names.to_torch(variables, model).items()}
    )
    net.double().eval()
    variables = cast(variables, np.float64)
    # ResNeSt normalises one vector an image: with few images that multiplies rounding errors, block after block
    batch = 8 if backbone.startswith("resnest") else 2
    images, labels = weights.image(33, 41, batch=batch).astype(np.float64), weights.labels(33, 41, 5, batch=batch)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        wanted = [y.numpy().transpose(0, 2, 3, 1) for y in net(x)]
        wanted_losses = oracle.losses(net.train()(x), torch.from_numpy(labels))
    outputs = jax.jit(model.apply)(variables, images)
    assert_close([outputs["logits"], outputs["stage1_logits"]], wanted, 1e-9)
    train = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    found = losses.isnet_losses(train(variables, images, rngs={"dropout": jax.random.key(0)})[0], labels)
    assert_close(
        [found[name] for name in ("auxiliary", "stage1", "stage2", "total")],
        [wanted_losses[name].numpy() for name in ("aux", "stage1", "stage2", "total")],
        1e-9,
    )
