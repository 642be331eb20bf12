"""Pairs of image and label for the input tests: real samples where they exist, and generated ones everywhere."""

import functools
import io
import runpy

import cv2
import numpy as np
import pytest
from paths import ROOT, SHARED
from PIL import Image

DATA = SHARED / "data"
REAL = {  # recipe: (images, path of the image -> path of the label, label value -> train id)
    "ade20k": ("ADEChallengeData2016/images/*/*.jpg", ("images/", "annotations/"), lambda x: (x.astype(int) - 1) % 256),
    "coco_stuff": ("cocostuff_samples/images/*/*.jpg", ("images/", "annotations/"), lambda x: x),
    "lip": ("cihp_samples/Training/Images/*.jpg", ("/Images/", "/Category_ids/"), lambda x: x),
    "cityscapes": (
        "mmseg_pseudo/pseudo_cityscapes_dataset/leftImg8bit/*/*/*.png",
        ("leftImg8bit", "gtFine"),
        lambda x: x,
    ),
}
GENERATED = {  # recipe: (sizes, number of classes)
    "ade20k": (((512, 683), (256, 256), (375, 500), (240, 130)), 150),
    "coco_stuff": (((480, 640), (500, 333), (427, 640)), 182),
    "lip": (((377, 130), (220, 154), (333, 500)), 20),
    "cityscapes": (((128, 256),), 19),
}
JPEG_OPTIONS = {"subsampling": 2}, {"subsampling": 0}, {"subsampling": 1, "progressive": True}


def png(array):
    """A NumPy image or label as the bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def augment_config(name):
    """`config.augment` of an official recipe."""
    return runpy.run_path(str(ROOT / f"configs/{name}.py"))["get_config"]().augment.copy_and_resolve_references()


@functools.cache
def pairs(kind, name):
    """[(encoded image, label uint8 (H, W))] of a recipe's data set; skips where `kind` is real and there are none."""
    return _generated(name) if kind == "generated" else _real(name)


def _real(name):
    pattern, (image_part, label_part), ids = REAL[name]
    found = []
    for path in sorted(DATA.glob(pattern)):
        label = str(path).replace(image_part, label_part).replace(".jpg", ".png")
        label = label.replace("_gtFine.png", "_gtFine_labelTrainIds.png")
        found.append((path.read_bytes(), ids(np.array(Image.open(label))).astype(np.uint8)))
    if not found:
        pytest.skip(f"there are no real samples at {DATA / pattern}")
    return found


def _generated(name):
    sizes, num_classes = GENERATED[name]
    rng, made = np.random.default_rng(0), []
    for i, (height, width) in enumerate(sizes):
        coarse = rng.integers(0, 256, (7, 9, 3)).astype(np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR) + rng.normal(
            0, 8, (height, width, 3)
        )
        label = np.full((height, width), rng.integers(num_classes), np.uint8)
        for value in [*rng.integers(0, num_classes, 12), *range(num_classes - 6, num_classes), 255]:
            top, left = rng.integers(height - 20), rng.integers(width - 20)
            label[top : top + rng.integers(20, height), left : left + rng.integers(20, width)] = value
        file = io.BytesIO()
        options = {"format": "PNG"} if name == "cityscapes" else {"format": "JPEG", **JPEG_OPTIONS[i % 3]}
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(file, **options)
        made.append((file.getvalue(), label))
    return made


def within_five_sigma(hits, trials, probability):
    """Whether `hits` of `trials` are within five standard deviations of the expected number."""
    return abs(hits - trials * probability) < 5 * np.sqrt(trials * probability * (1 - probability))
