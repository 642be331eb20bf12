"""Class weights, label smoothing, hard example mining and Dice, against independent statements at full resolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_close, weights
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from isnet_jax.models import layers, losses

CLASS_WEIGHTS = (0.5, 2.0, 0.0, 1.0, 3.5, 0.25)
OPTIONS = {
    "class_weights": CLASS_WEIGHTS,
    "label_smoothing": 0.1,
    "ohem_threshold": 0.3,
    "ohem_min_kept": 300,
    "dice_weight": 0.7,
}


def sample(batch=2, ignored=0.3, height=37, width=41):
    rng = np.random.default_rng(5)
    return 3 * rng.standard_normal((batch, 4, 5, 6)), weights.labels(height, width, 6, batch=batch, ignored=ignored)


@pytest.mark.parametrize("class_weights, smoothing", [(CLASS_WEIGHTS, 0.0), ((), 0.1), (CLASS_WEIGHTS, 0.1)])
def test_weighted_and_smoothed_cross_entropy_is_that_of_pytorch(class_weights, smoothing, torch, monkeypatch, x64):
    monkeypatch.setattr(losses, "BLOCK_ROWS", 8)
    logits, labels = sample()

    def mean(logits):
        total, count = losses.resized_cross_entropy(logits, labels, class_weights, smoothing)
        return total / count

    x = torch.tensor(logits.transpose(0, 3, 1, 2), requires_grad=True)
    resized = torch.nn.functional.interpolate(x, labels.shape[1:], mode="bilinear", align_corners=False)
    weight = torch.tensor(class_weights, dtype=torch.float64) if class_weights else None
    loss = torch.nn.functional.cross_entropy(
        resized, torch.tensor(labels.astype(np.int64)), weight, ignore_index=255, label_smoothing=smoothing
    )
    loss.backward()
    wanted = loss.item(), x.grad.numpy().transpose(0, 2, 3, 1)
    assert_close(jax.value_and_grad(mean)(logits), wanted, 1e-12)


def test_dice_equals_full_resolution(monkeypatch, x64):
    monkeypatch.setattr(losses, "BLOCK_ROWS", 8)
    logits, labels = sample()
    labels[labels == 4] = 1  # a class that does not occur

    def full(logits):
        p, ratios = jax.nn.softmax(layers.resize(logits, (37, 41)))[labels != 255], []
        for i in (0, 1, 2, 3, 5):
            is_class = labels[labels != 255] == i
            ratios.append(2 * p[is_class, i].sum() / (p[:, i].sum() + is_class.sum()))
        return 1 - sum(ratios) / 5

    found = jax.value_and_grad(losses.resized_dice_loss)(logits, labels)
    assert_close(found, jax.value_and_grad(full)(logits), 1e-12)


def kept_by_mmsegmentation(probability, labels, threshold, min_kept):
    """The pixels that OHEMPixelSampler.sample weighs with 1, of the probabilities of the labels."""
    in_order = np.sort(probability[labels != 255])
    if not len(in_order):
        return np.zeros(labels.shape, bool)
    lowest = in_order[min(min_kept * len(labels), len(in_order) - 1)]
    return (labels != 255) & (probability < max(lowest, threshold))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "threshold, min_kept, ignored",
    [(0.7, 0, 0.3), (0.1, 600, 0.3), (0.1, 10**9, 0.3), (0.7, 0, 1.0), (0.05, 5, 0.998)],
)
def test_hard_labels_are_those_of_mmsegmentation(threshold, min_kept, ignored, dtype, monkeypatch, x64):
    monkeypatch.setattr(losses, "BLOCK_ROWS", 8)
    logits, labels = sample(ignored=ignored)
    logits = logits.astype(dtype)
    p = np.asarray(jax.nn.softmax(layers.resize(logits, (37, 41))), np.float64)
    probability = np.take_along_axis(p, np.where(labels == 255, 0, labels)[..., None], -1)[..., 0]
    kept = kept_by_mmsegmentation(probability, labels, threshold, min_kept)
    found = np.asarray(jax.jit(losses.hard_labels, static_argnums=(2, 3))(logits, labels, threshold, min_kept))
    assert found.dtype == labels.dtype
    assert (found != np.where(kept, labels, 255)).sum() <= (0 if dtype == "float64" else 2)  # at the threshold itself
    if 0 < min_kept < 600:
        assert kept.sum() > 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_order_statistic_is_exact(dtype, x64):
    values = np.random.default_rng(0).exponential(size=400).astype(dtype)
    values[:40], values[40:60] = 0, np.inf
    for rank in (0, 39, 40, 200, 379, 390):
        assert losses._order_statistic(jnp.asarray(values), jnp.asarray(rank)) == np.sort(values)[rank]
    assert losses._order_statistic(jnp.asarray(values), jnp.asarray(-1)) == 0


def outputs_of(logits):
    return {"auxiliary_logits": logits, "stage1_logits": -logits, "logits": 2 * logits}


@jax.jit
def total_loss(logits, labels):
    """With all options, and its gradient."""
    return jax.value_and_grad(lambda x: losses.isnet_losses(outputs_of(x), labels, **OPTIONS)["total"])(logits)


def test_isnet_losses_apply_every_option_to_each_loss(x64):
    logits, labels = sample()
    values = jax.jit(functools.partial(losses.isnet_losses, **OPTIONS))(outputs_of(logits), labels)
    for name, weight in losses.WEIGHTS.items():
        x = outputs_of(logits)["logits" if name == "stage2" else f"{name}_logits"]
        hard = losses.hard_labels(x, labels, 0.3, 300)
        total, count = losses.resized_cross_entropy(x, hard, CLASS_WEIGHTS, 0.1)
        assert count == np.array([*CLASS_WEIGHTS, *[0] * 250])[hard].sum() > 0
        wanted = weight * (total / count + 0.7 * losses.resized_dice_loss(x, labels))
        assert float(values[name]) == pytest.approx(float(wanted), rel=1e-13)
    assert float(values["total"]) == pytest.approx(sum(float(values[name]) for name in losses.WEIGHTS), rel=1e-14)


@functools.cache
def on_devices(devices):
    logits, labels = sample(batch=8)
    mesh = Mesh(jax.devices()[:devices], "data")
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    return jax.device_get(
        jax.jit(total_loss, in_shardings=(split, split), out_shardings=(whole, split))(logits, labels)
    )


def test_options_on_eight_devices_equal_one(x64):
    assert_close(on_devices(8), on_devices(1), 1e-12)


def test_options_do_not_see_ignored_pixels(x64):
    """Rows of ignored pixels below, and the logits that reach only them, change nothing."""
    logits, labels = sample(height=32)
    taller = np.concatenate([logits, np.full((2, 2, 5, 6), 50.0)], 1)
    padded = np.concatenate([labels, np.full((2, 16, 41), 255, labels.dtype)], 1)
    padded[:, 28:32] = labels[:, 28:] = 255  # rows that resizing mixes with the logits below
    value, grad = total_loss(logits, labels)
    padded_value, padded_grad = total_loss(taller, padded)
    assert_close((padded_value, padded_grad[:, :4]), (value, grad), 1e-12)
    assert not padded_grad[:, 4:].any()


def test_options_are_zero_where_every_label_is_ignored():
    value, grad = total_loss(jnp.ones((1, 3, 3, 6)), np.full((1, 20, 20), 255))
    assert value == 0 and not grad.any()


def test_hard_labels_keep_pixels_whose_logits_are_no_numbers():
    logits, labels = sample(ignored=0.0)
    logits[0] = np.nan
    assert (losses.hard_labels(logits, labels, 0.3, 0)[0] == labels[0]).all()


def test_options_keep_no_logits_at_full_resolution():
    """Temporaries of compiled gradients are a few maps of one value per pixel, not one per pixel and class."""
    x, y = jax.ShapeDtypeStruct((1, 32, 32, 150), np.float32), jax.ShapeDtypeStruct((1, 256, 256), np.uint8)
    options = OPTIONS | {"class_weights": (0.5,) * 150}
    loss = jax.grad(lambda x, y: losses.isnet_losses(outputs_of(x), y, **options)["total"])
    memory = jax.jit(loss).lower(x, y).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.8 * 4 * 256 * 256 * 150
