"""The attention chosen at the start of a run: measured, compared with the reference, and with a fall-back."""

import jax
import jax.numpy as jnp
import pytest

from isnet_jax import config as configs
from isnet_jax import create_model
from isnet_jax.models import attention
from isnet_jax.runtime import sharding
from isnet_jax.training import fastest_attention
from isnet_jax.training.fastest_attention import measure, with_fastest_attention


def slow(query, key, value, key_bias=None):
    """The same attention, twenty times."""
    return jax.lax.fori_loop(0, 20, lambda i, y: attention.attention(query, key, value) + 0 * y, jnp.zeros_like(value))


def fails(query, key, value, key_bias=None):
    raise NotImplementedError("not on this GPU")


def wrong_gradient(query, key, value, key_bias=None):
    return attention.attention(query, key, jax.lax.stop_gradient(value))


def test_measure_leaves_out_what_fails_or_computes_something_else():
    candidates = {
        "blocks": attention.attention,
        "fails": fails,
        "wrong": lambda query, key, value: value,
        "wrong gradient": wrong_gradient,
        "cudnn": attention.cudnn_attention,  # which a CPU does not have
    }
    seconds = measure(candidates, (2, 64, 8), jnp.float32, jax.devices()[0])
    assert list(seconds) == ["blocks"] and seconds["blocks"] > 0
    with pytest.raises(NotImplementedError):
        measure({"fails": fails}, (2, 64, 8), jnp.float32, jax.devices()[0])


def test_measure_orders_by_speed():
    seconds = measure({"slow": slow, "blocks": attention.attention}, (2, 512, 32), jnp.float32, jax.devices()[0])
    assert seconds["blocks"] < seconds["slow"]


def test_fastest_attention_is_that_of_the_network(monkeypatch, tmp_path):
    """On a GPU in bfloat16, of whole images; everything else has no choice. A resumed run keeps it."""
    c = configs.default("resnet18")
    c.model.num_classes = 3
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    asked = []

    def measured(implementations, shape, dtype, device):
        asked.append(shape)
        return {"blocks": 2.0, "cudnn": 1.0}

    monkeypatch.setattr(fastest_attention, "measure", measured)
    c.model.dtype = "bfloat16"
    assert with_fastest_attention(create_model(c.model), c, mesh).attention == "blocks" and not asked  # a CPU

    class Gpu:
        platform = "gpu"

    class GpuMesh:
        local_devices, shape = [Gpu()], {"data": 4, "spatial": 1}

    class SplitMesh(GpuMesh):
        shape = {"data": 2, "spatial": 2}

    record = tmp_path / "attention.json"
    for _ in range(2):
        assert with_fastest_attention(create_model(c.model), c, GpuMesh(), record).attention == "cudnn"
    assert asked == [(4, 64 * 64, 256)] and record.read_text() == '"cudnn"'
    record.write_bytes(b"\xff damaged")
    assert with_fastest_attention(create_model(c.model), c, GpuMesh(), record).attention == "cudnn" and len(asked) == 2
    assert with_fastest_attention(create_model(c.model), c, SplitMesh()).attention == "blocks" and len(asked) == 2
    c.model.dtype = "float32"
    assert with_fastest_attention(create_model(c.model), c, GpuMesh()).attention == "blocks" and len(asked) == 2


def test_masked_pixels_are_never_left_to_cudnn():
    """It would need a bias for every pair of pixels."""
    query, key_bias = jnp.ones((1, 6, 4)), jnp.zeros((1, 6))
    expected = attention.attention(query, query, query, key_bias)
    assert (attention.cudnn_attention(query, query, query, key_bias) == expected).all()
