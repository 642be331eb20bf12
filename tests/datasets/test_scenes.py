"""The scenes: shapes, classes, that they are deterministic, and that colour alone does not segment them."""

import numpy as np
import pytest
from data_sets import decode, records

from isnet_jax import datasets


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """{split: (images (N, 96, 128, 3), labels (N, 96, 128))}."""
    builder = datasets.load("scenes", tmp_path_factory.mktemp("data"))
    return {
        split: tuple(
            np.stack([decode(record[key]) for record in records(builder, split)]) for key in ("image", "label")
        )
        for split in ("train", "val")
    }


def test_scenes_have_the_documented_shapes(scenes):
    for split, count in ("train", 360), ("val", 60):
        images, labels = scenes[split]
        assert images.shape == (count, 96, 128, 3) and images.dtype == np.uint8
        assert labels.shape == (count, 96, 128) and labels.max() == 7


def test_scenes_are_deterministic(tmp_path):
    from isnet_jax.datasets.scenes import Scenes

    first, second = Scenes(data_dir=tmp_path), Scenes(data_dir=tmp_path)
    items = first.items()
    for item in items["train"][0], items["train"][359], items["val"][0]:
        assert first.check(item)[:4] == second.check(item)[:4]
    assert first.check(items["train"][0]).image != first.check(items["val"][0]).image


def test_scenes_contain_every_class_often(scenes):
    _, labels = scenes["train"]
    for k in range(8):
        assert (labels == k).any((1, 2)).mean() > 0.2
        assert 0.01 < (labels == k).mean() < 0.45


def test_scenes_cannot_be_segmented_by_colour(scenes):
    """A linear classifier of pixel colours is hardly better than the majority-class baseline."""

    def features(images):
        pixels = images[:, 1::3, 1::3].reshape(-1, 3) / 255
        return np.concatenate([pixels, pixels**2, np.ones((len(pixels), 1))], 1)

    def miou(predicted, ground_truth):
        ious = []
        for k in range(8):
            intersection, union = (predicted == k) & (ground_truth == k), (predicted == k) | (ground_truth == k)
            ious.append(intersection.sum() / max(union.sum(), 1))
        return np.mean(ious)

    (images, labels), (val_images, val_labels) = scenes["train"], scenes["val"]
    labels, val_labels = (x[:, 1::3, 1::3].ravel() for x in (labels, val_labels))
    weights = np.linalg.lstsq(features(images), np.eye(8)[labels], rcond=None)[0]
    linear = miou((features(val_images) @ weights).argmax(1), val_labels)
    majority = miou(np.bincount(labels).argmax(), val_labels)
    print(f"mIoU: linear {linear:.3f}, majority class {majority:.3f}")
    assert linear < majority + 0.1 < 0.2
