"""The loss on the evaluation split: as at full resolution, whatever the padding and the mesh; predictions stay."""

import functools

import jax
import numpy as np
import pytest
from cases import random_variables
from small_evaluation import mixed_sizes

from isnet_jax import create_model
from isnet_jax.evaluation.loop import evaluate, make_eval_step
from isnet_jax.input.photometry import normalize
from isnet_jax.input.pipeline import EvalBatch
from isnet_jax.models.layers import resize
from isnet_jax.runtime import sharding

SIZES = [(33, 49), (40, 56), (35, 41), (40, 56)] * 2  # of images
LABEL_SIZES = [(75, 98), (80, 112), (70, 82), (80, 112)] * 2


@pytest.fixture(scope="module")
def batch():
    """Eight padded images of three sizes, with labels of other sizes; the last image has no labels at all."""
    arrays = mixed_sizes(SIZES, LABEL_SIZES, 5, (40, 56), (80, 112))
    arrays["label"][7] = 255
    return arrays


def evaluated(batch, num_devices, model, variables, **options):
    """What `evaluate` returns for one batch, and its predictions."""
    mesh = sharding.make_mesh(devices=jax.devices()[:num_devices])
    step = make_eval_step(model, mesh, {"average": "logits"}, **options)
    seen = []
    plan = [EvalBatch((40, 56), (80, 112), True, batch["index"])]
    results = evaluate(step, variables, iter([batch]), plan, mesh, lambda *args: seen.append(args[2]["predictions"]))
    return results, np.asarray(seen[0])


def test_loss_is_the_mean_cross_entropy_of_each_image_alone(batch, tiny_network, x64):
    model = create_model({"backbone": "resnet18", "num_classes": 5, "dtype": "float64"})
    variables = random_variables(model, dtype=np.float64)

    @functools.partial(jax.jit, static_argnums=1)
    def alone(image, label_size):
        logits = model.apply(variables, normalize(image))["logits"]
        return jax.nn.log_softmax(resize(logits, label_size))[0]

    total = 0.0
    for i, ((h, w), (label_h, label_w)) in enumerate(zip(SIZES, LABEL_SIZES)):
        image, label = batch["image"][i : i + 1, :h, :w], batch["label"][i, :label_h, :label_w]
        log_probabilities = np.asarray(alone(image, (label_h, label_w)))
        rows, columns = np.nonzero(label != 255)
        total -= log_probabilities[rows, columns, label[rows, columns]].sum()
    expected = total / (batch["label"] != 255).sum()
    for num_devices in (8, 1):
        results, _ = evaluated(batch, num_devices, model, variables, loss=True)
        assert results["loss"] == pytest.approx(expected, rel=1e-12)


def test_loss_changes_no_prediction(batch, tiny_network):
    model = create_model({"backbone": "resnet18", "num_classes": 5})
    variables = random_variables(model)
    with_loss, predictions = evaluated(batch, 2, model, variables, loss=True)
    without, expected = evaluated(batch, 2, model, variables)
    np.testing.assert_array_equal(predictions, expected)
    np.testing.assert_array_equal(with_loss["confusion"], without["confusion"])
    assert set(with_loss) - set(without) == {"loss"} and with_loss["loss"] > 0


def test_loss_of_no_labelled_pixel_is_undefined(batch, tiny_network):
    model = create_model({"backbone": "resnet18", "num_classes": 5})
    unlabelled = batch | {"label": np.full_like(batch["label"], 255)}
    assert np.isnan(evaluated(unlabelled, 1, model, random_variables(model), loss=True)[0]["loss"])


def test_loss_needs_no_logits_at_full_resolution():
    """Its memory does not grow with the height times the classes: blocks of rows come one after the other."""
    from isnet_jax.evaluation.inference import predict_classes_and_loss

    def temporaries(height):
        maps = jax.ShapeDtypeStruct((1, height // 8, 32, 100), np.float32)
        labels = jax.ShapeDtypeStruct((1, height, 256), np.uint8)
        step = jax.jit(lambda maps, labels: predict_classes_and_loss([(maps, None)], labels))
        return step.lower(maps, labels).compile().memory_analysis().temp_size_in_bytes

    full = 4 * 1024 * 256 * 100
    assert temporaries(1024) < 0.3 * full and temporaries(1024) < 1.5 * temporaries(256)
