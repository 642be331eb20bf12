"""Layers with PyTorch's arithmetic, for NHWC activations that may carry padding.

Shapes: B images, H x W pixels, C channels. The compute dtype is that of the activations; parameters and
batch statistics stay float32 (or whatever dtype they were given in).

A `mask` (B, H, W, 1) marks the pixels that exist; the others are canvas. Every layer that mixes pixels leaves
zeros outside the mask, so that the next convolution sees exactly the zero border that PyTorch pads with: results
inside the mask do not depend on the canvas. `mask=None` says that every pixel exists; an integer mask says how
many pixels each entry stands for, which is its weight in batch norm.

`train` is false, or in how many parts a layer goes over the batch to save memory: True means one (microbatches.py).
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from isnet_jax import microbatches


def valid_mask(size, height, width):
    """(B, height, width, 1) bool, true inside each image's `size` (B, 2) = (h, w) at the top left."""
    rows = jnp.arange(height)[None, :, None] < size[:, 0, None, None]
    columns = jnp.arange(width)[None, None, :] < size[:, 1, None, None]
    return (rows & columns)[..., None]


def halve(size):
    """Extent after any stride-2 layer of the network: all of them round up."""
    return (size + 1) // 2


def apply_mask(x, mask):
    """x with zeros outside the mask."""
    return x if mask is None else jnp.where(mask != 0, x, jnp.zeros((), x.dtype))


def masked_mean(x, mask):
    """Mean of x (B, H, W, C) over the pixels of the mask: (B, 1, 1, C), in float32 or wider."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    if mask is None:
        return x.mean((1, 2), keepdims=True, dtype=dtype).astype(x.dtype)
    total = apply_mask(x, mask).sum((1, 2), keepdims=True, dtype=dtype)
    return (total / mask.sum((1, 2), keepdims=True)).astype(x.dtype)


def precision(dtype):
    """float32 means float32 on every device; JAX's default multiplies in bfloat16 or TF32 on accelerators."""
    return lax.Precision.DEFAULT if dtype == jnp.bfloat16 else lax.Precision.HIGHEST


def matmul(x, kernel, bias=None):
    """x (..., I) @ kernel (I, O) + bias (O,), in x's dtype."""
    y = jnp.matmul(x, kernel.astype(x.dtype), precision=precision(x.dtype))
    return y if bias is None else y + bias.astype(x.dtype)


def uniform_fan_in(fan_in):
    """PyTorch's default for convolution kernels and biases: uniform in +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
    """Convolution with symmetric padding; kernels are (kh, kw, I / groups, O)."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False

    def __call__(self, x, image_vector=None):
        """x (B, H, W, I) -> (B, ceil(H / stride), ceil(W / stride), features); `image_vector` as in `convolve`."""
        return self.function()(self.weights(x, image_vector), (x, image_vector))

    def function(self):
        return partial(convolve, stride=self.stride, dilation=self.dilation, groups=self.groups)

    @nn.compact
    def weights(self, x, image_vector=None):
        """The kernel, and the bias or None, for such inputs."""
        k = self.kernel_size
        in_channels = x.shape[-1] // self.groups + (0 if image_vector is None else image_vector.shape[-1])
        init = uniform_fan_in(k * k * in_channels)
        kernel = self.param("kernel", init, (k, k, in_channels, self.features))
        return kernel, self.param("bias", init, (self.features,)) if self.use_bias else None


def convolve(weights, inputs, stride, dilation, groups):
    """The convolution of x (B, H, W, I), padded symmetrically, with (kernel, bias or None) of (x, image_vector).

    Where `image_vector` (B, 1, 1, G) is not None, the 1x1 convolution of concat(image_vector broadcast, x), without
    building it: the vector's part of the product is one row per image.
    """
    (kernel, bias), (x, image_vector) = weights, inputs
    if kernel.shape[0] == 1:  # a matrix product is faster than the same convolution on every backend
        rows = kernel.shape[2] - x.shape[-1]  # of the kernel, for the vector
        y = matmul(x[:, ::stride, ::stride], kernel[0, 0, rows:], bias)
        return y if image_vector is None else y + matmul(image_vector, kernel[0, 0, :rows])
    pad = dilation * (kernel.shape[0] // 2)
    y = lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (stride,) * 2,
        ((pad, pad),) * 2,
        rhs_dilation=(dilation,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=precision(x.dtype),
    )
    return y if bias is None else y + bias.astype(x.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation as in PyTorch: eps 1e-5, momentum 0.1, unbiased running variance.

    Under `jit` over a mesh the statistics cover the global batch (synchronised batch norm).
    """

    def __call__(self, x, train, weight=None):
        """x (..., C) -> same shape; `weight` (..., 1) says how many pixels each row counts for."""
        dtype = jnp.promote_types(x.dtype, jnp.float32)

        def whole(scale, bias, mean, variance):
            wide, count = x.astype(dtype), None
            if train:
                mean, variance, count = batch_statistics(wide, weight, mean)
            return normalize(x, mean, variance, scale, bias), (mean, variance, count)

        return self.around(whole, x.shape[-1], dtype, train)

    @nn.compact
    def around(self, compute, channels, dtype, train):
        """The y of compute(scale, bias, running mean, running variance) -> y, (mean, variance, count) of the batch."""
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        tracked = self.variable("batch_stats", "num_batches_tracked", jnp.zeros, (), jnp.int32)
        y, (batch_mean, batch_var, count) = compute(*(x.astype(dtype) for x in (scale, bias, mean.value, var.value)))
        if train and not self.is_initializing():
            unbiased = batch_var * (count / jnp.maximum(count - 1, 1))
            for variable, new in ((mean, batch_mean), (var, unbiased)):
                variable.value = (0.9 * variable.value + 0.1 * new).astype(variable.value.dtype)
            tracked.value = tracked.value + 1
        return y


def normalize(x, mean, variance, scale, bias):
    """Batch norm of x (..., C) by a mean and a variance (C,), in their dtype; the result is of x's."""
    y = (x.astype(mean.dtype) - mean) * (lax.rsqrt(variance + microbatches.EPSILON) * scale) + bias
    return y.astype(x.dtype)


def batch_statistics(x, weight, shift):
    """Mean (C,), biased variance (C,) and count of x (..., C) in one pass over the data.

    Subtracting `shift` (C,), the running mean, changes nothing in exact arithmetic; once it is near the batch's mean
    it keeps E[x^2] - E[x]^2 from cancelling in float32.
    """
    axes = tuple(range(x.ndim - 1))
    x = x - lax.stop_gradient(shift)
    if weight is None:
        count = jnp.asarray(x.size // x.shape[-1], x.dtype)
        first, second = x.mean(axes), (x * x).mean(axes)
    else:
        weight = weight.astype(x.dtype)
        count = weight.sum()
        first, second = (weight * x).sum(axes) / count, (weight * x * x).sum(axes) / count
    return first + shift, jnp.maximum(second - first * first, 0), count


class ConvBNAct(nn.Module):
    """Convolution, batch norm, activation (None: linear), and zeros outside the mask."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False
    act: Callable | None = nn.relu

    @nn.compact
    def __call__(self, x, train, mask=None, image_vector=None):
        """x (B, H, W, I), mask at the output's resolution -> (B, H', W', features); `image_vector` as in Conv."""
        conv = Conv(
            self.features, self.kernel_size, self.stride, self.dilation, self.groups, self.use_bias, name="conv"
        )
        bn = BatchNorm(name="bn")

        def activate(y, mask):
            return apply_mask(y if self.act is None else self.act(y), mask)

        if train > 1:
            weights, dtype = conv.weights(x, image_vector), jnp.promote_types(x.dtype, jnp.float32)

            def finish(*args):
                return activate(normalize(*args[:-1]), args[-1])

            return bn.around(
                lambda scale, bias, mean, _: microbatches.conv_bn_act(
                    train, conv.function(), finish, weights, scale, bias, mean, (x, image_vector), mask
                ),
                self.features,
                dtype,
                train,
            )
        return activate(bn(conv(x, image_vector), train, mask), mask)


def max_pool(x):
    """3x3/2 maximum; x must not be negative, so that the zeros of the border and of the canvas never win."""
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def _window_sum(x, window, padding):
    return lax.reduce_window(
        x, np.zeros((), x.dtype), lax.add, (1, window, window, 1), (1, 2, 2, 1), ((0, 0), *padding, (0, 0))
    )


def avg_pool_3x3(x):
    """3x3/2 mean that counts the zero border as pixels (ResNeSt, inside strided blocks)."""
    return _window_sum(x, 3, ((1, 1), (1, 1))) / 9


def avg_pool_2x2(x, mask):
    """2x2/2 mean in ceil mode that counts only pixels that exist (ResNeSt, on the shortcut)."""
    padding = ((0, x.shape[1] % 2), (0, x.shape[2] % 2))
    exists = jnp.ones((1, *x.shape[1:3], 1), x.dtype) if mask is None else mask.astype(x.dtype)
    return _window_sum(x, 2, padding) / jnp.maximum(_window_sum(exists, 2, padding), 1)


class ChannelDropout(nn.Module):
    """Dropout of whole channels per image (PyTorch's Dropout2d)."""

    rate: float

    @nn.compact
    def __call__(self, x, train):
        """x (B, H, W, C) -> same shape."""
        return nn.Dropout(self.rate, broadcast_dims=(1, 2))(x, deterministic=not train)


def interpolation_matrix(out_length, in_length, out_size, in_size, dtype=jnp.float32, scale=None):
    """Weights (..., out_length, in_length) of bilinear resizing, align_corners=False, along one axis.

    The first `in_size` of `in_length` samples become the first `out_size` of `out_length`; the sizes may be
    traced and of any shape (...). Positions follow the ratio of the sizes, or `scale` where it is given. As in
    PyTorch, they are clamped to the samples that exist, and nothing is smoothed when shrinking.
    """
    in_size, out_size = jnp.asarray(in_size)[..., None], jnp.asarray(out_size)[..., None]
    step = in_size.astype(dtype) / out_size.astype(dtype) if scale is None else 1 / scale
    position = (jnp.arange(out_length, dtype=dtype) + 0.5) * step - 0.5
    position = jnp.clip(position, 0, in_size.astype(dtype) - 1)
    return jnp.maximum(0, 1 - jnp.abs(position[..., None] - jnp.arange(in_length, dtype=dtype)))


def resize(x, shape, in_size=None, out_size=None, scale=None):
    """Bilinear resize (align_corners=False, no antialias) of x (B, H, W, C) to (B, *shape, C).

    With `in_size` and `out_size` (B, 2), the valid part of each image is resized to its own valid part of the
    output; what lies outside is unspecified. `scale` as in `interpolation_matrix`.
    """
    if x.shape[1:3] == tuple(shape) and in_size is None and scale is None:
        return x
    in_size = jnp.asarray(x.shape[1:3]) if in_size is None else in_size
    out_size = jnp.asarray(shape) if out_size is None else out_size
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    rows, columns = (
        interpolation_matrix(shape[i], x.shape[1 + i], out_size[..., i], in_size[..., i], dtype, scale) for i in (0, 1)
    )
    y = jnp.einsum("...oh,...hwc->...owc", rows.astype(x.dtype), x, precision=precision(x.dtype))
    return jnp.einsum("...ow,...hwc->...hoc", columns.astype(x.dtype), y, precision=precision(x.dtype))
