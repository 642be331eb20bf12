"""Layers against PyTorch's."""

import functools

import numpy as np
import pytest
from cases import assert_close

from isnet_jax.evaluation.inference import rescale
from isnet_jax.models import layers


@pytest.mark.parametrize("shape", [(23, 31), (5, 4), (9, 13), (17, 6), (9, 40)])
def test_resize_equals_torch(shape, torch, x64):
    x = np.random.default_rng(7).standard_normal((2, 9, 13, 3))
    interpolate = functools.partial(
        torch.nn.functional.interpolate, torch.tensor(x.transpose(0, 3, 1, 2)), mode="bilinear", align_corners=False
    )
    assert_close(layers.resize(x, shape), interpolate(size=shape).numpy().transpose(0, 2, 3, 1), 1e-12)


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.1, 1.25, 1.75])
def test_rescale_equals_torch(scale, torch, x64):
    x = np.random.default_rng(8).standard_normal((1, 29, 23, 3))
    wanted = (
        torch.nn.functional.interpolate(
            torch.tensor(x.transpose(0, 3, 1, 2)), scale_factor=scale, mode="bilinear", align_corners=False
        )
        .numpy()
        .transpose(0, 2, 3, 1)
    )
    assert_close(rescale(x, scale)[0], wanted, 1e-12)
    padded, size = rescale(
        np.pad(x, ((0, 0), (0, 4), (0, 9), (0, 0)), constant_values=np.nan), scale, np.array([[29, 23]])
    )
    assert tuple(size[0]) == wanted.shape[1:3]
    assert_close(padded[:, : size[0, 0], : size[0, 1]], wanted, 1e-12)


@pytest.mark.parametrize("size", [(8, 12), (9, 12), (8, 13), (7, 5)])
def test_a_strided_convolution_of_images_equals_torch(size, torch, x64):
    rng = np.random.default_rng(9)
    x, kernel = rng.standard_normal((2, *size, 3)), rng.standard_normal((3, 3, 3, 5))
    wanted = torch.nn.functional.conv2d(
        torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(kernel.transpose(3, 2, 0, 1)), stride=2, padding=1
    )
    y = layers.Conv(5, 3, 2).apply({"params": {"kernel": kernel}}, x)
    assert_close(y, wanted.numpy().transpose(0, 2, 3, 1), 1e-12)
