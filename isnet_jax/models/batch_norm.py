"""Batch normalisation over a batch: y = (x - mean) / sqrt(var + epsilon) * scale + bias, and its gradient.

Statistics of float32 need one pass and are as accurate as with two: values are shifted by the mean of a sample (of all
values where an image has few), so that E[x^2] - E[x]^2 hardly cancels. Larger maps of bfloat16 take no shift: the error
is below the rounding of the values, and XLA can fuse the sums into the convolution that writes them. The gradient is
written out: autodiff would keep more for the backward pass, and sum more often.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Shaped

EPSILON = 1e-5
SAMPLE = 64  # values of an image and channel, at least, whose mean is the shift

Channels = Float[jax.Array, " c"]


@jax.custom_vjp
def normalize_batch(
    x: Float[jax.Array, "b h w c"], scale: Channels, bias: Channels, weight: Shaped[jax.Array, "b h w 1"] | None
) -> tuple[Float[jax.Array, "b h w c"], tuple[Channels, Channels, Float[jax.Array, ""]]]:
    """x normalised, in its own dtype, and the mean, the biased variance and the number of the values.

    weight: how many values each entry of x stands for; None: one. Gradients flow through the first result alone.
    """
    return _forward(x, scale, bias, weight)[0]


def _forward(x, scale, bias, weight):
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    mean, var, count = batch_statistics(x, weight)
    inverse = lax.rsqrt(var + EPSILON)
    y = (x.astype(dtype) - mean) * (inverse * scale) + bias
    return (y.astype(x.dtype), (mean, var, count)), (x, scale, weight, mean, inverse, count)


def _backward(residuals, cotangents):
    x, scale, weight, mean, inverse, count = residuals
    dtype = mean.dtype
    dy, normalized = cotangents[0].astype(dtype), (x.astype(dtype) - mean) * inverse
    bias_grad, scale_grad = dy.sum((0, 1, 2)), (dy * normalized).sum((0, 1, 2))
    through_statistics = (bias_grad + normalized * scale_grad) / count
    if weight is not None:
        through_statistics = through_statistics * weight.astype(dtype)
    x_grad = (dy - through_statistics) * (inverse * scale)
    return x_grad.astype(x.dtype), scale_grad, bias_grad, None


normalize_batch.defvjp(_forward, _backward)


def batch_statistics(
    x: Float[jax.Array, "b h w c"], weight: Shaped[jax.Array, "b h w 1"] | None
) -> tuple[Channels, Channels, Float[jax.Array, ""]]:
    """Mean, biased variance and number of values of each channel; `weight` as in `normalize_batch`.

    In the dtype of x, but at least in float32.
    """
    dtype, pixels = jnp.promote_types(x.dtype, jnp.float32), (0, 1, 2)
    weight = None if weight is None else weight.astype(dtype)
    count = jnp.asarray(x.size // x.shape[-1], dtype) if weight is None else weight.sum()
    shift = jnp.zeros((), dtype)
    if x.dtype != jnp.bfloat16 or x.shape[1] * x.shape[2] <= SAMPLE:
        shift = _sample_mean(x.astype(dtype), weight)
    shifted = x.astype(dtype) - shift
    weighted = shifted if weight is None else shifted * weight
    first, second = weighted.sum(pixels) / count, (weighted * shifted).sum(pixels) / count
    return shift + first, jnp.maximum(second - first * first, 0), count


def _sample_mean(x, weight):
    """The mean of each channel over a grid of pixels."""
    stride = max(1, math.isqrt(x.shape[1] * x.shape[2] // SAMPLE))
    sample, pixels = x[:, ::stride, ::stride], (0, 1, 2)
    if weight is None:
        return sample.mean(pixels)
    sample_weight = weight[:, ::stride, ::stride]
    return (sample * sample_weight).sum(pixels) / jnp.maximum(sample_weight.sum(), 1)
