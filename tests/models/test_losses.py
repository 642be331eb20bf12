"""The losses, against full resolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_close, weights

from isnet_jax.models import layers, losses


@pytest.mark.parametrize("block_rows", [4, 32])
def test_resized_cross_entropy_equals_full_resolution(block_rows, monkeypatch, x64):
    monkeypatch.setattr(losses, "BLOCK_ROWS", block_rows)
    rng = np.random.default_rng(5)
    logits, labels = 3 * rng.standard_normal((2, 4, 5, 6)), weights.labels(37, 41, 6, batch=2, ignored=0.3)

    def full(logits):
        x = jax.nn.log_softmax(layers.resize(logits, (37, 41)))
        picked = jnp.take_along_axis(x, np.where(labels == 255, 0, labels)[..., None], -1)[..., 0]
        return -jnp.where(labels != 255, picked, 0).sum()

    (total, count), grads = jax.value_and_grad(losses.resized_cross_entropy, has_aux=True)(logits, labels)
    assert count == (labels != 255).sum()
    assert_close((total, grads), jax.value_and_grad(full)(logits), 1e-12)


def test_losses_are_zero_where_every_label_is_ignored():
    outputs = dict.fromkeys(("auxiliary_logits", "stage1_logits", "logits"), jnp.ones((1, 3, 3, 4)))
    labels = np.full((1, 20, 20), 255)
    values, grads = jax.value_and_grad(lambda outputs: losses.isnet_losses(outputs, labels)["total"])(outputs)
    assert values == 0 and not any(grad.any() for grad in grads.values())


def test_products_in_bfloat16_parts_are_those_of_float32():
    """As TPUs and GPUs compute them: the parts add up to every bit, and the program has no float32 product."""
    rng = np.random.default_rng(6)
    x = (rng.standard_normal((3, 64, 5)) * 10.0 ** rng.integers(-6, 7, (3, 64, 5))).astype(np.float32)
    np.testing.assert_array_equal(sum(np.asarray(part, np.float64) for part in losses._split(x)), x)
    weights = layers.interpolation_matrix(512, 64, 512, 64)
    np.testing.assert_array_equal(weights.astype(jnp.bfloat16).astype(jnp.float32), weights)

    in_parts = losses._product_of_parts("cw,bwk->bck", weights.astype(jnp.bfloat16), x)
    wanted = np.einsum("cw,bwk->bck", np.float64(weights), np.float64(x))
    assert np.abs(in_parts - wanted).max() <= 1e-7 * np.abs(wanted).max()

    logits = jax.ShapeDtypeStruct((2, 8, 8, 5), np.float32)
    for shape, products in ((64, 64), "bf16"), ((60, 60), "f32"):
        labels = jax.ShapeDtypeStruct((2, *shape), np.int32)
        traced = jax.jit(jax.grad(lambda *arguments: losses.resized_cross_entropy(*arguments)[0])).trace(logits, labels)
        lines = traced.lower(lowering_platforms=("tpu",)).as_text().splitlines()
        found = [line.split("->")[0].rsplit(":", 1)[1] for line in lines if "dot_general" in line]
        assert found and all(line.count(products) == 2 for line in found), found
