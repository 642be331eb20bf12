"""Convolution, batch norm and activation of a large batch, a part at a time: gradient accumulation that is exact.

Batch norm couples all images of a batch, layer by layer, so that a network cannot go over the parts one by one. Each
layer can, in two passes: one for the statistics, and one that applies them; backwards, one for the sums over the
batch in the gradient of batch norm, and one for the gradients. Between layers the whole batch exists; inside, the
convolution of one part at a time, which is formed again in each pass.
"""

import functools

import jax
import jax.numpy as jnp


def _view(x, count):
    """x (B, ...) as (B / count, count, ...): part i is [:, i], which takes from every device that holds some of x."""
    return x.reshape(-1, count, *x.shape[1:])


def _part(tree, count, i):
    """Part i of a tree of arrays (B, ...), read in place."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(_view(x, count), i, axis=1, keepdims=False), tree)


def _with_part(tree, count, i, parts):
    """The tree with part i replaced, written in place."""
    return jax.tree.map(
        lambda x, part: jax.lax.dynamic_update_index_in_dim(_view(x, count), part, i, axis=1).reshape(x.shape),
        tree,
        parts,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def conv_bn_act(count, conv, finish, weights, scale, bias, shift, inputs, mask):
    """finish(conv(weights, inputs), batch mean, batch variance, scale, bias, mask), in `count` parts.

    conv(weights, inputs) -> (b, H, W, C) of a part; inputs: a tree of arrays (B, ...); scale, bias, shift (C,) float32
    or wider, the last any number near the mean; mask (B, H, W, 1), bool or how many pixels each entry stands
    for, or None. `finish` normalises, activates and masks. Returns (B, H, W, C), and the mean (C,), variance (C,) and
    count of the batch, through which no gradient flows.
    """
    return _forward(count, conv, finish, weights, scale, bias, shift, inputs, mask)[0]


def _forward(count, conv, finish, weights, scale, bias, shift, inputs, mask):
    def add(sums, i):
        part_inputs, part_mask = _part((inputs, mask), count, i)
        z = conv(weights, part_inputs).astype(shift.dtype) - shift
        weight, axes = _weight(z, part_mask), tuple(range(z.ndim - 1))
        return jax.tree.map(jnp.add, sums, (weight.sum(), (weight * z).sum(axes), (weight * z * z).sum(axes))), None

    zero = jnp.zeros_like(shift)
    (number, first, second), _ = jax.lax.scan(add, (zero[0], zero, zero), jnp.arange(count))
    first, second = first / number, second / number
    mean, variance = first + shift, jnp.maximum(second - first * first, 0)

    def apply(result, i):
        part_inputs, part_mask = _part((inputs, mask), count, i)
        z = conv(weights, part_inputs)
        part = finish(z.astype(mean.dtype), mean, variance, scale, bias, part_mask).astype(z.dtype)
        return _with_part(result, count, i, part), None

    shape = jax.eval_shape(conv, weights, inputs)
    result, _ = jax.lax.scan(apply, jnp.zeros(shape.shape, shape.dtype), jnp.arange(count))
    return (result, (mean, variance, number)), (weights, scale, bias, inputs, mask, mean, variance, number)


def _weight(z, mask):
    """(b, H, W, 1): how many pixels each entry of z (b, H, W, C) stands for."""
    return jnp.ones((*z.shape[:-1], 1), z.dtype) if mask is None else mask.astype(z.dtype)


def _backward(count, conv, finish, saved, cotangents):
    weights, scale, bias, inputs, mask, mean, variance, number = saved

    def finished(i):
        """The convolution of part i, and the cotangents of it, of scale and bias, at constant statistics."""
        part_inputs, part_mask, cotangent = _part((inputs, mask, cotangents[0]), count, i)
        z = conv(weights, part_inputs).astype(mean.dtype)
        _, pull = jax.vjp(lambda z, scale, bias: finish(z, mean, variance, scale, bias, part_mask), z, scale, bias)
        return z, pull(cotangent.astype(mean.dtype))

    def add(sums, i):
        return jax.tree.map(jnp.add, sums, finished(i)[1][1:]), None

    (of_scale, of_bias), _ = jax.lax.scan(add, (jnp.zeros_like(scale), jnp.zeros_like(bias)), jnp.arange(count))

    def accumulate(total, i):
        of_weights, of_inputs = total
        part_inputs, part_mask = _part((inputs, mask), count, i)
        z, (of_z, _, _) = finished(i)
        normalised = (z - mean) * jax.lax.rsqrt(variance + EPSILON)
        through_statistics = (of_bias + normalised * of_scale) / number * scale * jax.lax.rsqrt(variance + EPSILON)
        of_z = of_z - _weight(z, part_mask) * through_statistics
        z, pull = jax.vjp(conv, weights, part_inputs)
        part_weights, part = pull(of_z.astype(z.dtype))
        return (jax.tree.map(jnp.add, of_weights, part_weights), _with_part(of_inputs, count, i, part)), None

    zeros = jax.tree.map(jnp.zeros_like, (weights, inputs))
    (of_weights, of_inputs), _ = jax.lax.scan(accumulate, zeros, jnp.arange(count))
    of_mask = None if mask is None else jnp.zeros(mask.shape, jax.dtypes.float0)
    return of_weights, of_scale, of_bias, jnp.zeros_like(mean), of_inputs, of_mask


EPSILON = 1e-5  # of batch norm
conv_bn_act.defvjp(_forward, _backward)
