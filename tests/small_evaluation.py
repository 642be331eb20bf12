"""A small evaluation of drawn predictions, as isnet_jax.evaluate writes it."""

import json
import zipfile

import numpy as np
from PIL import Image

from isnet_jax.evaluation import metrics

NAMES = ["road", "sky", "car", "bus"]  # bus occurs nowhere
PALETTE = [[128, 64, 128], [70, 130, 180], [0, 0, 142], [0, 60, 100]]


def mixed_sizes(sizes, label_sizes, num_classes, shape, label_shape):
    """A padded batch of random images and labels of these sizes; one label in num_classes + 1 is ignored."""
    rng, count = np.random.default_rng(0), len(sizes)
    batch = {
        "image": np.zeros((count, *shape, 3), np.uint8),
        "label": np.full((count, *label_shape), 255, np.uint8),
        "image_size": np.array(sizes),
        "label_size": np.array(label_sizes),
        "index": np.arange(count),
    }
    for i, ((h, w), (label_h, label_w)) in enumerate(zip(sizes, label_sizes)):
        batch["image"][i, :h, :w] = rng.integers(0, 256, (h, w, 3))
        batch["label"][i, :label_h, :label_w] = rng.choice([*range(num_classes), 255], (label_h, label_w))
    return batch


def write_evaluation(directory, names, ground_truths, predictions, **changes):
    """Writes an evaluation of images with these names, ground truths and predictions (H, W)."""
    (directory / "predictions").mkdir(parents=True)
    k, confusions = len(NAMES), []
    for name, ground_truth, prediction in zip(names, ground_truths, predictions):
        kept = ground_truth != 255
        confusions.append(np.bincount(ground_truth[kept] * k + prediction[kept], minlength=k * k).reshape(k, k))
        image = Image.fromarray(prediction.astype(np.uint8), mode="P")
        image.putpalette(np.array(PALETTE, np.uint8).tobytes())
        image.save(directory / "predictions" / f"{name}.png")
    counts = np.array([metrics.class_counts(confusion) for confusion in confusions])
    content = {
        "dataset": "cityscapes",
        "split": "val",
        "images": len(names),
        "checkpoint": "runs/x",
        "step": 7,
        "setting": {
            "name": "single",
            "mode": "whole",
            "crop_size": None,
            "scales": [1.0],
            "flip": False,
            "resize": [],
            "keep_ratio": True,
        },
        "config": {"model": {"backbone": "resnet50"}},
        "names": NAMES,
        "palette": PALETTE,
        "confusion": sum(confusions).tolist(),
        "boundary": counts.sum(0).tolist(),
        "protocols": {},
        "run": {},
    }
    (directory / "results.json").write_text(json.dumps(content | changes))
    save(
        directory,
        {
            "name": np.array(names),
            "file": np.array(names),
            "index": np.arange(len(names)),
            "counts": counts.astype(np.int32),
            "boundary": counts.astype(np.int32),
        },
    )
    return directory


def save(directory, arrays):
    """Writes images.npz; np.savez takes no array named "file"."""
    with zipfile.ZipFile(directory / "images.npz", "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
