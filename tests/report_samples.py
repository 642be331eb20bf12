"""Evaluations of the scenes, and the log of their training run, as isnet_jax.evaluate and isnet_jax.main write them."""

import json

import numpy as np
from PIL import Image

from isnet_jax import datasets
from isnet_jax.evaluation.report import gallery
from isnet_jax.runtime import files

COUNT = 14  # images of an evaluation


def write_samples(home, names):
    """Evaluations `a` and `b` of 8 classes, `large` of 150, `names` first, their run `w`, and their data in `data`."""
    write_metrics(home / "w")
    write_evaluation(home / "a", home / "data", home / "w")
    write_evaluation(home / "b", home / "data", home / "w", seed=1)
    names = names + [f"class number {i}" for i in range(150 - len(names))]
    write_evaluation(home / "large", home / "data", home / "w", names)
    return home


def write_evaluation(directory, data_dir, workdir, names=None, seed=0):
    """Writes an evaluation whose predictions are the ground truth, shifted, and wrong in a patch."""
    from isnet_jax.input import pipeline

    builder = datasets.load("scenes", data_dir)
    source = pipeline.open_split(builder, "val")
    rng = np.random.default_rng(seed)
    names = names or list(builder.info.metadata["names"])
    size = len(names)
    palette = np.r_[np.array(builder.info.metadata["palette"]), rng.integers(256, size=(250, 3))][:size].tolist()
    spread = rng.permutation(size)[:8] if size > 8 else np.arange(8)
    (directory / "predictions").mkdir(parents=True)
    confusion, images = np.zeros((size, size), np.int64), []
    for index in range(COUNT):
        name = source[index]["name"].decode()
        ground_truth = spread[gallery._example(source, index, name, 8)[1]].astype(np.uint8)
        prediction = np.roll(ground_truth, rng.integers(-index, index + 1), 1)
        patch = prediction[20 : 20 + 5 * index, 10 : 10 + 8 * index]
        patch[...] = np.where(patch % 3, patch, (patch + rng.integers(1, 4)) % size)
        picture = Image.fromarray(prediction).convert("L")
        picture.putpalette(bytes(768))
        picture.save(directory / f"predictions/{name}.png")
        counts = np.bincount(ground_truth.ravel().astype(int) * size + prediction.ravel(), minlength=size**2)
        counts = counts.reshape(size, size)
        confusion += counts
        images.append((name, np.stack([np.diag(counts), counts.sum(0), counts.sum(1)])))
    image_names, counts = np.array([name for name, _ in images]), np.int32([counts for _, counts in images])
    files.write_arrays(
        directory / "images.npz",
        name=image_names,
        file=image_names,
        index=np.arange(COUNT),
        counts=counts,
        boundary=(counts * [[[0.3], [0.5], [0.5]]]).astype(np.int32),
    )
    write_results(directory, confusion, names, palette, data_dir, workdir)


def write_results(directory, confusion, names, palette, data_dir, workdir):
    """Writes results.json with all optional fields."""
    record = {
        "dataset": "scenes",
        "split": "val",
        "images": COUNT,
        "checkpoint": str(workdir),
        "step": 16000,
        "setting": {
            "name": "tta",
            "mode": "slide",
            "crop_size": [64, 96],
            "stride": [42, 64],
            "flip": True,
            "scales": [0.75, 1.0, 1.25],
            "average": "softmax",
            "resize": [2048, 512],
            "keep_ratio": True,
        },
        "config": {
            "model": {"backbone": "resnet50", "num_classes": len(names)},
            "train": {"base_lr": 0.01},
            "data": {"name": "scenes", "data_dir": str(data_dir), "folder": {"name": "", "splits": {}}},
        },
        "names": names,
        "palette": palette,
        "confusion": confusion.tolist(),
        "published": {"miou": 44.22, "source": "https://example.org/zoo.md"},
        "run": {
            "devices": "NVIDIA H100",
            "num_devices": 8,
            "processes": 1,
            "dtype": "bfloat16",
            "seconds": 431.2,
            "versions": {"jax": "0.10.2", "python": "3.12.1"},
            "images_per_second": 32.53,
            "programs": 4,
            "padding_overhead": 0.072,
            "date": "2026-11-02T10:11:12",
        },
    }
    (directory / "results.json").write_text(json.dumps(record, indent=1))


def write_metrics(workdir, steps=16000, every=20):
    """Writes the metrics.jsonl of a training run: a loss is NaN, the last line cut off."""
    workdir.mkdir()
    rng = np.random.default_rng(0)
    with open(workdir / "metrics.jsonl", "w") as file:
        for step in range(every, steps + 1, every):
            stage = (3 * np.exp(-step / 4000) + 0.3) * rng.lognormal(0, 0.1)
            total = float("nan") if step == 200 else 1.8 * stage
            file.write(
                json.dumps(
                    {
                        "step": step,
                        "loss/auxiliary": 0.4 * stage,
                        "loss/stage1": 0.5 * stage,
                        "loss/stage2": stage,
                        "loss/total": total,
                        "lr": 0.01,
                    }
                )
                + "\n"
            )
            if step % (steps // 8) == 0:
                score = 0.45 * (1 - np.exp(-step / 5000))
                file.write(
                    json.dumps(
                        {
                            "step": step,
                            "weights/miou": score,
                            "weights/pixel_accuracy": score + 0.4,
                            "ema/miou": score + 0.02,
                            "ema/pixel_accuracy": score + 0.42,
                        }
                    )
                    + "\n"
                )
        file.write('{"step": 16020, "loss')  # cut off
