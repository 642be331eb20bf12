"""The context modules and their attention, against other statements of the same functions."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_close, randomised

from isnet_jax.models import attention, layers
from isnet_jax.models.image_level_context import ImageLevelContext
from isnet_jax.models.semantic_level_context import SemanticLevelContext


def pixel_by_pixel(variables, feats, logits, image_context, train, winner):
    """The module as the paper puts it: one vector a pixel, loops over images and classes, N x N attention."""
    params, stats, new = variables["params"], variables["batch_stats"], {}

    def normalize_act(x, name):
        bn, old = params[name]["bn"], stats[name]["bn"]
        mean, var, count = old["mean"], old["var"], x[..., 0].size
        if train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            new[name] = {
                "bn": {
                    "mean": 0.9 * old["mean"] + 0.1 * mean,
                    "num_batches_tracked": 1,
                    "var": 0.9 * old["var"] + 0.1 * var * count / (count - 1),
                }
            }
        return jax.nn.leaky_relu((x - mean) / jnp.sqrt(var + 1e-5) * bn["scale"] + bn["bias"], 0.01)

    def project(x, name):
        return normalize_act(x @ params[name]["conv"]["kernel"][0, 0], name)

    b, h, w, channels = feats.shape
    source = jnp.zeros_like(feats)
    for image in range(b):
        for c in range(logits.shape[-1]):
            ys, xs = np.nonzero(winner[image] == c)
            if len(ys):
                confidence = jnp.exp(logits[image, ys, xs, c])
                vector = (confidence[:, None] * feats[image, ys, xs]).sum(0) / confidence.sum()
                source = source.at[image, ys, xs].set(vector)
    query = project(project(feats, "query1"), "query2").reshape(b, h * w, -1)
    key = project(project(source, "key1"), "key2").reshape(b, h * w, -1)
    weights = jax.nn.softmax(query @ key.swapaxes(1, 2) / np.sqrt(channels // 2))
    context = weights @ project(source, "value").reshape(b, h * w, -1)
    both = jnp.concatenate([image_context, project(context.reshape(b, h, w, -1), "out")], -1)
    padded = jnp.pad(both, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = params["bottleneck"]["conv"]["kernel"]
    y = sum(padded[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3))
    return normalize_act(y, "bottleneck"), new


@pytest.mark.parametrize("train", [True, False])
def test_class_tokens_equal_pixel_by_pixel_attention(train, x64):
    rng = np.random.default_rng(0)
    module = SemanticLevelContext(functools.partial(nn.leaky_relu, negative_slope=0.01))
    feats, image_context, cotangent = rng.standard_normal((3, 2, 5, 7, 16))
    logits = 2 * rng.standard_normal((2, 5, 7, 6))
    logits[:, :, :, 2] = -9  # never predicted; class 4 in the second image only
    logits[0, :, :, 4] = -9
    variables = randomised(jax.eval_shape(lambda: module.init(jax.random.key(0), feats, logits, image_context, False)))

    def tokens(params, feats, logits, image_context):
        y, new = module.apply(
            {**variables, "params": params}, feats, logits, image_context, train, mutable=["batch_stats"]
        )
        return (y * cotangent).sum(), (y, new["batch_stats"] if train else {})

    def pixels(params, feats, logits, image_context):
        y, new = pixel_by_pixel({**variables, "params": params}, feats, logits, image_context, train, winner)
        return (y * cotangent).sum(), (y, new)

    winner = logits.argmax(-1)
    (grads, found), (wanted_grads, wanted) = (
        jax.jit(jax.grad(function, argnums=(0, 1, 2, 3), has_aux=True))(
            variables["params"], feats, logits, image_context
        )
        for function in (tokens, pixels)
    )
    assert_close(found, wanted, 1e-12)  # output and running statistics
    assert_close(grads, wanted_grads, 1e-10)
    assert np.abs(grads[2]).max() > 1e-4  # logits do get a gradient


@pytest.mark.parametrize("max_scores", [10, 39, 200])
def test_attention_in_blocks_equals_direct(max_scores, monkeypatch, x64):
    rng = np.random.default_rng(1)
    query, key, value, cotangent = (rng.standard_normal((2, 13, n)) for n in (4, 4, 6, 6))
    bias = np.where(rng.random((2, 13)) < 0.3, -np.inf, rng.standard_normal((2, 13)))

    def run(key_bias):
        y, pullback = jax.vjp(lambda q, k, v: attention.attention(q, k, v, key_bias), query, key, value)
        return y, pullback(cotangent)

    scores = np.exp(np.einsum("bnd,bmd->bnm", query, key) / 2 + bias[:, None])
    direct = run(None), run(bias)
    assert_close(direct[1][0], scores / scores.sum(-1, keepdims=True) @ value, 1e-12)
    monkeypatch.setattr(attention, "MAX_SCORES", max_scores)
    assert_close((run(None), run(bias)), direct, 1e-12)


def test_attention_memory_grows_with_the_pixels():
    pixels = jax.ShapeDtypeStruct((1, 128 * 128, 64), jnp.float32)  # N x N scores would take 1 GiB
    for function in (attention.attention, jax.grad(lambda *x: attention.attention(*x).sum(), argnums=(0, 1, 2))):
        memory = jax.jit(function).lower(pixels, pixels, pixels).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 160 * 2**20


def test_conv_with_image_vector_equals_concatenation(x64):
    rng = np.random.default_rng(2)
    feats, vector = rng.standard_normal((2, 5, 6, 8)), rng.standard_normal((2, 1, 1, 3))
    conv = layers.Conv(4, use_bias=True)
    variables = conv.init(jax.random.key(0), feats, vector)
    both = np.concatenate([np.broadcast_to(vector, (2, 5, 6, 3)), feats], -1)
    assert_close(conv.apply(variables, feats, vector), conv.apply(variables, both), 1e-14)


def test_image_level_context_in_blocks_equals_direct(monkeypatch, x64):
    module, rng = ImageLevelContext(nn.relu), np.random.default_rng(3)
    feats = rng.standard_normal((2, 5, 6, 8))
    mask = layers.valid_mask(np.array([[5, 6], [3, 4]]), 5, 6)
    variables = randomised(module.init(jax.random.key(0), feats, False))

    def run(feats):
        return jax.jit(jax.value_and_grad(lambda x: (module.apply(variables, x, False, mask) ** 2).sum()))(feats)

    direct = run(feats)
    monkeypatch.setattr(attention, "MAX_SCORES", 100)
    assert_close(run(feats), direct, 1e-12)
