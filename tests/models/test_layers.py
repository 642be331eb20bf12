"""Layers against PyTorch's."""

import functools

import jax
import jax.numpy as jnp
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


@pytest.mark.parametrize(
    "size, kernel_size, window",
    [
        ((9, 11), 3, (1, ((1, 1), (1, 1)), 1, 1)),
        ((9, 12), 3, (2, ((1, 1), (1, 1)), 1, 2)),
        ((8, 10), 3, (1, ((4, 4), (4, 4)), 4, 1)),
        ((7, 8), 2, (1, ((1, 0), (1, 0)), 1, 1)),
    ],
    ids=["3x3", "stride 2, groups", "dilation 4", "2x2"],
)
def test_kernel_gradient_of_a_convolution_is_autodiffs(size, kernel_size, window):
    """In float32 of bfloat16 inputs, as on a TPU, it is that of the same numbers in float32."""
    window = layers._Window(*window)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, *size, 4), jnp.bfloat16).astype(jnp.float32)
    kernel = jax.random.normal(keys[1], (kernel_size, kernel_size, 4 // window.groups, 6))
    y, transpose = jax.vjp(lambda x, kernel: layers._convolution(x, kernel, window), x, kernel)
    dy = jax.random.normal(keys[2], y.shape, jnp.bfloat16).astype(jnp.float32)
    expected_x, expected = transpose(dy)
    found_x, found = jax.vjp(lambda x, kernel: layers.convolve(x, kernel, window), x, kernel)[1](dy)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found_x, expected_x)
    halves = x.astype(jnp.bfloat16), dy.astype(jnp.bfloat16)
    found = layers._kernel_gradient(*halves, kernel.shape[:2], window, jnp.float32)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
