"""The evaluation loop and what it computes: counts, scores, predictions at the original size."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import random_variables
from small_evaluation import mixed_sizes

from isnet_jax import create_model
from isnet_jax.evaluation import inference, metrics
from isnet_jax.evaluation.loop import eval_step, evaluate, make_eval_step
from isnet_jax.input.pipeline import EvalBatch
from isnet_jax.models.layers import resize
from isnet_jax.runtime import sharding


def test_confusion_matrices_count_every_labelled_pixel():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 7, (2, 3, 150, 41))
    labels[rng.random(labels.shape) < 0.2] = 255
    expected = np.zeros((7, 7), int)
    kept = labels != 255
    np.add.at(expected, (labels[kept], predictions[kept]), 1)
    found = jax.jit(metrics.confusion_matrices, static_argnums=2)(predictions, labels, 7)
    assert found.dtype == jnp.int32 and found.shape == (3, 7, 7)
    np.testing.assert_array_equal(found, metrics._count_by_products(predictions, labels, 7))  # as on accelerators
    np.testing.assert_array_equal(found.sum(0), expected)
    np.testing.assert_array_equal(metrics.pixel_counts(labels, 7), found.sum(2))


def test_scores_equal_results_by_hand():
    """Class 3 is only predicted and counts as 0; class 2 occurs nowhere and is left out."""
    confusion = [[6, 2, 0, 1], [1, 8, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    result = metrics.scores(confusion)
    np.testing.assert_allclose(result["iou"], [6 / 10, 8 / 11, np.nan, 0])
    assert result["miou"] == pytest.approx((6 / 10 + 8 / 11 + 0) / 3)
    assert result["pixel_accuracy"] == pytest.approx(14 / 18)
    assert result["mean_accuracy"] == pytest.approx((6 / 9 + 8 / 9) / 2)
    baseline = metrics.majority_class_scores(confusion)  # nine pixels each of classes 0 and 1, none of 2 and 3
    assert (baseline["miou"], baseline["pixel_accuracy"]) == (0.25, 0.5)
    table = metrics.format_table(result, ["sky", "water", "boat", "ball"]).splitlines()
    assert len({len(line) for line in table[:-3]}) == 1  # aligned
    assert table[3].split() == ["boat", "n/a", "n/a", "n/a", "n/a", "0.00"]
    assert table[-2] == "pixel accuracy 77.78 %"


def test_in_percent_makes_scores_jsonable():
    confusion = np.array([[6, 2, 0], [1, 8, 0], [0, 0, 0]])
    found = metrics.in_percent({**metrics.scores(confusion), "confusion": confusion}, ["sky", "water", "boat"])
    assert json.loads(json.dumps(found)) == found
    assert found["dice"] == found["f1"] == {"sky": 80.0, "water": 84.2105, "boat": None}
    assert found["mean_recall"] == found["mean_accuracy"] == 81.9444 and found["precision"]["sky"] == 85.7143
    assert found["iou"] == {"sky": 66.6667, "water": 72.7273, "boat": None}
    assert found["miou"] == 69.697 and found["confusion"] == [[6, 2, 0], [1, 8, 0], [0, 0, 0]]
    assert metrics.in_percent(metrics.scores(np.zeros((2, 2))), ["a", "b"])["miou"] is None


def test_percent_has_two_digits_and_an_optional_sign():
    assert [metrics.percent(x) for x in (0.12345, 1, np.float32(0.5), np.nan)] == ["12.35", "100.00", "50.00", "n/a"]
    assert [metrics.percent(x, "+") for x in (0.1, -0.1, np.nan)] == ["+10.00", "-10.00", "n/a"]


def test_predict_classes_of_mixed_sizes_equal_single_images():
    rng = np.random.default_rng(0)
    sizes, feature_sizes = np.array([(70, 131), (101, 90)]), np.array([(9, 17), (13, 12)])
    logits = rng.standard_normal((2, 16, 17, 5)).astype(np.float32)
    found = inference.predict_classes([(jnp.asarray(logits), feature_sizes)], (110, 140), sizes)
    for i, ((h, w), (fh, fw)) in enumerate(zip(sizes.tolist(), feature_sizes.tolist())):
        expected = resize(jnp.asarray(logits[i : i + 1, :fh, :fw]), (h, w))[0].argmax(-1)
        assert (np.asarray(found[i, :h, :w]) == expected).mean() > 0.9999  # except for ties within rounding


TTA = {"scales": (1.0, 0.75), "flip": True, "flip_pairs": ((1, 2),), "average": "softmax"}
SETTINGS = {
    "single": {"average": "logits"},
    "shortcut": {"average": "logits"},
    "tta": TTA,
    "slide": {**TTA, "mode": "slide", "crop_size": (32, 40), "stride": (17, 23), "scales": (1.25, 0.75)},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_evaluate_of_mixed_sizes_over_devices_equals_single_images(name, tiny_network, x64):
    """Padded batches on 8, 2 and 1 devices give the same counts as each image alone, unpadded."""
    model = create_model({"backbone": "resnet18", "num_classes": 5, "shortcut": name == "shortcut", "dtype": "float64"})
    variables = random_variables(model, dtype=np.float64)
    sizes = [(33, 49), (40, 56), (35, 41), (40, 56), (33, 49), (35, 41), (40, 56), (33, 49)]
    batch = mixed_sizes(sizes, sizes, 5, (40, 56), (40, 56))
    plan = [EvalBatch((40, 56), (40, 56), True, np.arange(8))]
    results = {}
    for devices in (8, 2, 1) if name == "single" else (8,):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        step = make_eval_step(model, mesh, SETTINGS[name], boundary=True)
        seen = []
        collect = functools.partial(lambda seen, *args: seen.append(args[2]), seen)
        scores = evaluate(step, variables, iter([batch]), plan, mesh, collect)
        results[devices] = (scores["confusion"], *(np.asarray(seen[0][key]) for key in ("counts", "boundary")))
    alone = jax.jit(
        lambda variables, batch: eval_step(variables, batch, False, model=model, settings=SETTINGS[name], boundary=True)
    )
    on_device = jax.device_put(variables)
    single = [
        alone(
            on_device,
            {
                "image": batch["image"][i : i + 1, :h, :w],
                "label": batch["label"][i : i + 1, :h, :w],
                "image_size": np.array([(h, w)]),
                "label_size": np.array([(h, w)]),
            },
        )
        for i, (h, w) in enumerate(sizes)
    ]
    for confusion, counts, bands in results.values():
        assert confusion.sum() == (batch["label"] != 255).sum()
        np.testing.assert_array_equal(confusion, sum(np.asarray(result["confusion"]) for result in single))
        np.testing.assert_array_equal(counts, np.concatenate([result["counts"] for result in single]))
        np.testing.assert_array_equal(bands, np.concatenate([result["boundary"] for result in single]))
        np.testing.assert_array_equal(counts.sum(0), metrics.class_counts(confusion))


def test_eval_step_memory_does_not_grow_with_the_number_of_windows():
    model = create_model({"backbone": "resnet18", "num_classes": 5})
    variables = jax.eval_shape(lambda: random_variables(model))
    memory = {}
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype)
        for name, shape, dtype in (
            ("image", (2, 64, 384, 3), np.uint8),
            ("label", (2, 64, 384), np.uint8),
            ("image_size", (2, 2), np.int32),
            ("label_size", (2, 2), np.int32),
        )
    }
    for stride in (48, 12):  # 8 and 29 windows
        settings = {"mode": "slide", "crop_size": (64, 48), "stride": (64, stride), "average": "softmax"}
        step = make_eval_step(model, sharding.make_mesh(devices=jax.devices()[:1]), settings)
        memory[stride] = step.lower(variables, batch, False).compile().memory_analysis().temp_size_in_bytes
    assert memory[12] < 1.02 * memory[48]
