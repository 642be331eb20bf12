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
