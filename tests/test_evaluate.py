"""Scores, and predictions at the original size."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_variables

from isnet_jax import create_model, evaluate, metrics, sharding
from isnet_jax.layers import resize


def test_confusion_matrix_counts_every_labelled_pixel():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 7, (2, 3, 150, 41))
    labels[rng.random(labels.shape) < 0.2] = 255
    expected = np.zeros((7, 7), int)
    kept = labels != 255
    np.add.at(expected, (labels[kept], predictions[kept]), 1)
    found = jax.jit(metrics.confusion_matrix, static_argnums=2)(predictions, labels, 7)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)


def test_scores_by_hand():
    """Class 2 occurs nowhere, class 3 is only predicted: it counts as 0, class 2 not at all."""
    confusion = [[6, 2, 0, 1], [1, 8, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    result = metrics.scores(confusion)
    np.testing.assert_allclose(result["iou"], [6 / 10, 8 / 11, np.nan, 0])
    assert result["miou"] == pytest.approx((6 / 10 + 8 / 11 + 0) / 3)
    assert result["pixel_accuracy"] == pytest.approx(14 / 18)
    assert result["mean_accuracy"] == pytest.approx((6 / 9 + 8 / 9) / 2)
    constant = metrics.commonest_class_scores(confusion)  # nine pixels each of classes 0 and 1; 2 and 3 do not occur
    assert (constant["miou"], constant["pixel_accuracy"]) == (0.25, 0.5)
    table = metrics.format_table(result, ["sky", "water", "boat", "ball"]).splitlines()
    assert len({len(line) for line in table[:-2]}) == 1  # aligned
    assert table[3].split() == ["boat", "-", "-", "0.00"]


def test_predictions_at_mixed_sizes_equal_those_one_by_one():
    rng = np.random.default_rng(0)
    sizes, feature_sizes = np.array([(70, 131), (101, 90)]), np.array([(9, 17), (13, 12)])
    logits = rng.standard_normal((2, 16, 17, 5)).astype(np.float32)
    found = evaluate.predict_classes(jnp.asarray(logits), (110, 140), feature_sizes, sizes)
    for i, ((h, w), (fh, fw)) in enumerate(zip(sizes, feature_sizes)):
        expected = resize(jnp.asarray(logits[i:i + 1, :fh, :fw]), (h, w))[0].argmax(-1)
        assert (np.asarray(found[i, :h, :w]) == expected).mean() > 0.9999  # ties within rounding


@pytest.mark.parametrize("shortcut", [False, True])
def test_batches_of_mixed_sizes_over_devices_equal_single_images(shortcut, x64):
    """The same confusion matrix from padded batches on 8 devices and from each image alone, unpadded, on one."""
    model = create_model({"backbone": "resnet18", "num_classes": 5, "shortcut": shortcut, "dtype": "float64"})
    variables = random_variables(model, dtype=np.float64)
    rng = np.random.default_rng(0)
    sizes = [(33, 49), (40, 56), (35, 41), (40, 56), (33, 49), (35, 41), (40, 56), (33, 49)]
    batch = {"image": np.zeros((8, 40, 56, 3), np.uint8), "label": np.full((8, 40, 56), 255, np.uint8),
             "image_size": np.array(sizes), "label_size": np.array(sizes)}
    for i, (h, w) in enumerate(sizes):
        batch["image"][i, :h, :w] = rng.integers(0, 256, (h, w, 3))
        batch["label"][i, :h, :w] = rng.integers(0, 5, (h, w))
    mesh = sharding.make_mesh()
    assert mesh.size == 8
    result = evaluate.evaluate(evaluate.make_eval_step(model, mesh), variables, iter([batch]), 1, mesh)
    alone = jax.jit(lambda batch: evaluate.eval_step(variables, batch, model)[1])
    total = sum(np.asarray(alone({"image": batch["image"][i:i + 1, :h, :w], "label": batch["label"][i:i + 1, :h, :w],
                                  "image_size": np.array([(h, w)]), "label_size": np.array([(h, w)])}))
                for i, (h, w) in enumerate(sizes))
    assert result["confusion"].sum() == sum(h * w for h, w in sizes)
    np.testing.assert_array_equal(result["confusion"], total)
