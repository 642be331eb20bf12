"""Padding of any content never changes what the network and its inference compute for the image."""

import functools

import jax
import numpy as np
import pytest
from cases import assert_close, cast, network, slow_if, weights

from isnet_jax.evaluation.inference import predict, sliding_window
from isnet_jax.models import losses
from isnet_jax.models.isnet import BACKBONES

pytestmark = pytest.mark.usefixtures("tiny_network")
SLOW = tuple(name for name in BACKBONES if name not in ("resnet18", "resnest50"))


def padded_with_garbage(images, shape, seed=0):
    """Images at the top left of padded inputs full of garbage, NaN included."""
    rng = np.random.default_rng(seed)
    padded = np.where(rng.random((len(images), *shape, 3)) < 0.5, np.nan, 1e6)
    for i, image in enumerate(images):
        padded[i, : image.shape[0], : image.shape[1]] = image
    return padded, np.array([image.shape[:2] for image in images])


@pytest.mark.parametrize("backbone", slow_if(BACKBONES, SLOW))
def test_isnet_ignores_padding(backbone, x64):
    model, variables = network(backbone, shortcut=backbone in ("resnet18", "resnest50"))
    variables = cast(variables, np.float64)
    images = [weights.image(*size).astype(np.float64)[0] for size in ((41, 57), (52, 31))]
    images = images[:1] if backbone in SLOW else images
    forward = jax.jit(lambda variables, x, size: model.apply(variables, x, valid_size=size))
    padded_images, sizes = padded_with_garbage(images, (64, 72))
    padded = forward(variables, padded_images, sizes)
    for i, image in enumerate(images):
        for name, wanted in forward(variables, image[None], None).items():
            h, w = wanted.shape[1:3]
            assert h == -(-image.shape[0] // (4 if name == "logits" and model.shortcut else 8))
            assert_close(padded[name][i, :h, :w], wanted[0], 1e-10)


@pytest.mark.parametrize(
    "backbone", slow_if(("resnet18", "resnest50", "resnet50", "resnet50d"), ("resnet50", "resnet50d"))
)
def test_isnet_training_ignores_padding(backbone, x64):
    model, variables = network(backbone)
    variables = cast(variables, np.float64)
    images = weights.image(41, 57, batch=2).astype(np.float64)
    labels = weights.labels(41, 57, 5, batch=2)

    @jax.jit
    def forward(variables, x, size):
        outputs, new = model.apply(
            variables, x, True, size, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
        )
        return losses.isnet_losses({name: y[:, :6, :8] for name, y in outputs.items()}, labels), new

    assert_close(forward(variables, *padded_with_garbage(images, (48, 72))), forward(variables, images, None), 1e-9)


def test_predict_with_scales_and_flip_ignores_padding(x64):
    """Multi-scale prediction with flips of images of mixed sizes in one compiled program."""
    model, variables = network("resnet18", num_classes=6, shortcut=True)
    variables = cast(variables, np.float64)
    images = [weights.image(*size).astype(np.float64)[0] for size in ((41, 57), (52, 31))]
    run = jax.jit(
        functools.partial(predict, model, scales=(1.0, 0.75), flip=True, flip_pairs=((1, 2), (4, 5))), static_argnums=2
    )
    padded_images, sizes = padded_with_garbage(images, (56, 64))
    padded = run(variables, padded_images, (51, 72), valid_size=sizes, output_size=np.array([(50, 70), (33, 40)]))
    for i, (image, (h, w)) in enumerate(zip(images, ((50, 70), (33, 40)))):
        assert_close(padded[i, :h, :w], run(variables, image[None], (h, w))[0], 1e-10)


def test_sliding_window_averages_overlaps():
    """Windows are averaged where they overlap, and cut at small images."""
    images = np.random.default_rng(4).standard_normal((2, 13, 9, 3)).astype(np.float32)
    run = functools.partial(sliding_window, lambda x, _: x - x.mean((1, 2), keepdims=True), images)
    wanted, count = np.zeros_like(images), np.zeros((13, 9, 1))
    for y in (0, 3, 6, 8):
        for x in (0, 2, 4):
            crop = images[:, y : y + 5, x : x + 5]
            wanted[:, y : y + 5, x : x + 5] += crop - crop.mean((1, 2), keepdims=True)
            count[y : y + 5, x : x + 5] += 1
    assert_close(run((5, 5), (3, 2)), wanted / count, 1e-5)
    assert_close(run((20, 20), (3, 2)), images - images.mean((1, 2), keepdims=True), 1e-5)
