"""Random geometry and evaluation's resize against the official recipe in NumPy and OpenCV."""

import hashlib
import io
import runpy

import cv2
import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from samples import DATA, REAL, augment_config, pairs, png, within_five_sigma

from isnet_jax import config
from isnet_jax.input import augment, pipeline, records

recipe = runpy.run_path(str(ROOT / "benchmarks/opencv_recipe.py"))
KINDS = pytest.mark.parametrize("kind", ["real", "generated"])


def augmented(image, label, key, c):
    """image, label and window of `augment`, in arrays of the crop's size."""
    out = np.zeros((*c.crop_size, 3), np.uint8), np.full(c.crop_size, 255, np.uint8)
    return *out, augment.augment(image, png(label), key, c, *out)


def official(image, label, c, rng):
    """The recipe's geometry and padding, and the window."""
    image = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB)
    image, label = recipe["geometry"](image, label, c, rng)
    height, width = label.shape
    window = (c.crop_size[0] - height) // 2, (c.crop_size[1] - width) // 2, height, width
    return *recipe["pad"](image, label, c), window


@KINDS
@pytest.mark.parametrize("name", sorted(REAL))
def test_augment_equals_the_official_recipe(kind, name):
    """Images, labels and windows bit for bit, for every benchmark."""
    c, partly_decoded = augment_config(name), 0
    if name == "cityscapes":  # the samples are an eighth of the real size
        c.resize, c.crop_size = (256, 128), (64, 128)
    examples = pairs(kind, name)
    for epoch in range(-(-60 // len(examples))):
        for index, (image, label) in enumerate(examples):
            key = 2**32 - 1, epoch, index
            expected = official(image, label, c, augment.generator(key))
            for array, expected_array in zip(augmented(image, label, key, c), expected, strict=True):
                np.testing.assert_array_equal(array, expected_array)
            _, plan = augment.augment_label(label, augment.generator(key), c)
            partly_decoded += plan.source_region[2] * plan.source_region[3] < label.size
    assert partly_decoded > 5


def test_opencv_results_are_unchanged():
    """Digests of OpenCV 4.5 to 4.14, with and without IPP; OpenCV 5 rotates differently.

    The input is computed in NumPy, since OpenCV's own bicubic resize depends on the CPU.
    """
    y, x = np.mgrid[:473, :473]
    image = np.stack([np.abs((y * a + x * b) // 7 % 510 - 255) for a, b in ((3, 5), (11, 2), (4, 9))], -1)
    image = image.astype(np.uint8)
    label = np.random.default_rng(0).integers(0, 20, (43, 43)).astype(np.uint8).repeat(11, 0).repeat(11, 1)
    results = (
        augment.rotate(image, 17),
        augment.rotate(label, 17),
        augment.resize(image, (333, 801)),
        augment.resize(label, (333, 801)),
        cv2.cvtColor(image, cv2.COLOR_BGR2HSV),
        cv2.cvtColor(image // 2, cv2.COLOR_HSV2BGR),
    )
    assert [hashlib.md5(np.ascontiguousarray(x)).hexdigest()[:8] for x in results] == [
        "31cb6a96",
        "bbcd181a",
        "73c3a938",
        "3db5dc56",
        "4e781302",
        "8630a5bb",
    ]


def test_decode_image_of_a_region_equals_the_whole():
    """Every kind of JPEG, and PNG."""
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (24, 30, 3)).astype(np.uint8), (211, 157), interpolation=cv2.INTER_CUBIC)
    picture = Image.fromarray(np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8))
    kinds = [("RGB", {"subsampling": s, "progressive": p}) for s in (0, 1, 2) for p in (False, True)]
    kinds += [("RGB", {"restart_marker_blocks": 3}), ("L", {}), ("CMYK", {}), ("RGB", {"format": "PNG"})]
    for mode, options in kinds:
        file = io.BytesIO()
        picture.convert(mode).save(file, **{"format": "JPEG", **options})
        data = file.getvalue()
        whole = augment.decode_image(data)
        for _ in range(12):
            (top, bottom), (left, right) = (sorted(rng.choice(n + 1, 2, False)) for n in whole.shape[:2])
            margin = augment.MARGIN
            box = max(top - margin, 0), max(left - margin, 0), min(bottom + margin, 157), min(right + margin, 211)
            region = augment.decode_image(data, (box[0], box[1], box[2] - box[0], box[3] - box[1]))
            region = region[top - box[0] :][: bottom - top, left - box[1] :][:, : right - left]
            np.testing.assert_array_equal(region, whole[top:bottom, left:right], f"{mode} {options}")


def test_augment_image_ignores_pixels_outside_the_region():
    """The pixels around the decoded region are uninitialised memory."""
    c = augment_config("ade20k")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (375, 500, 3)).astype(np.uint8)
    label = rng.integers(0, 5, (375, 500)).astype(np.uint8)
    for i in range(40):
        _, plan = augment.augment_label(label, augment.generator((0, 0, i)), c)
        top, left, height, width = plan.source_region
        np.testing.assert_array_equal(
            augment.augment_image(image[top : top + height, left : left + width], plan),
            augment.augment_image(image, plan._replace(source_region=(0, 0, 375, 500))),
        )


def flipped_lip_label(kind, label):
    """The label of the flipped image, with left and right exchanged; CIHP's Category_rev_ids for real samples."""
    if kind == "generated":
        partner = {14: 15, 15: 14, 16: 17, 17: 16, 18: 19, 19: 18}
        return np.array([[partner.get(value, value) for value in row[::-1]] for row in label.tolist()])
    path = next(
        path
        for path in DATA.glob("cihp_samples/Training/Category_ids/*.png")
        if np.array_equal(np.array(Image.open(path)), label)
    )
    return np.array(Image.open(DATA / "cihp_samples/Training/Category_rev_ids" / path.name))


@KINDS
def test_augment_label_swaps_left_and_right_when_it_flips(kind):
    c = augment_config("lip")
    c.resize, c.scale_range, c.crop_size, c.rotate_probability = (), (1.0, 1.0), (800, 800), 0.0
    flips = 0
    for _, label in pairs(kind, "lip"):
        flipped = flipped_lip_label(kind, label)
        for index in range(6):
            crop, plan = augment.augment_label(label, augment.generator((0, 0, index)), c)
            np.testing.assert_array_equal(crop, flipped if plan.flip else label)
            flips += plan.flip
    assert flips >= 5


def test_augment_label_draws_from_the_official_distribution():
    c = augment_config("lip")
    label = np.tile(np.arange(20, dtype=np.uint8), (60, 3))
    plans = [augment.augment_label(label, augment.generator((0, 1, i)), c)[1] for i in range(1500)]
    sizes = np.array([p.new_height for p in plans])
    assert sizes.min() >= 390 and sizes.max() < 650 and within_five_sigma((sizes < 520).sum(), 1500, 0.5)
    assert all(p.new_height == p.new_width for p in plans)  # squares: the ratio is not kept
    assert within_five_sigma(sum(p.flip for p in plans), 1500, 0.5)
    degrees = np.array([p.degrees for p in plans])
    assert degrees.min() == -30 and degrees.max() == 29
    assert within_five_sigma((degrees != 0).sum(), 1500, 0.6 * 59 / 60)
    assert np.ptp(np.bincount(degrees[degrees != 0] + 30, minlength=60)[[*range(30), *range(31, 60)]]) < 30
    room = [(p.top / (p.new_height - 473), p.left / (p.new_width - 473)) for p in plans if p.new_height > 520]
    assert within_five_sigma(sum(top < 0.5 for top, _ in room), len(room), 0.5)
    assert within_five_sigma(sum(left < 0.5 for _, left in room), len(room), 0.5)
    assert {p.top for p in plans if p.new_height == 475} <= {0, 1, 2}


def test_choose_crop_retries_crops_of_one_class_or_with_a_dominant_one():
    """On a label whose only acceptable crops lie around its middle column."""
    label = np.zeros((64, 400), np.uint8)
    label[:, 200:] = 1
    label[:8] = augment.IGNORED  # does not count

    def share(left):
        part = label[8:, left : left + 64]
        return max((part == 0).mean(), (part == 1).mean())

    accepted = []
    for i in range(400):
        rng = augment.generator((0, 0, i))
        top, left, height, width = augment.choose_crop(label, (64, 64), 0.75, rng)
        again = augment.generator((0, 0, i))
        proposals = [(int(again.integers(1)), int(again.integers(337)))[1] for _ in range(10)]
        good = [left for left in proposals if share(left) < 0.75]
        assert left == (good[0] if good else proposals[-1])
        accepted.append(share(left) < 0.75)
    expected = 1 - (1 - np.mean([share(left) < 0.75 for left in range(337)])) ** 10
    assert within_five_sigma(sum(accepted), 400, expected)


def test_class_counts_decide_as_full_counts_do():
    rng = np.random.default_rng(0)
    num_accepted = 0
    for _ in range(300):
        classes = rng.integers(1, 12)
        label = rng.choice(classes, (40, 56), p=rng.dirichlet(np.full(classes, rng.choice([0.1, 1, 10]))))
        label = np.where(rng.random(label.shape) < rng.choice([0, 0.5, 0.99, 1]), 255, label).astype(np.uint8)
        counts = np.bincount(label.ravel(), minlength=256)[:255]
        labelled, most = augment.class_counts(label, 0.75)
        assert labelled == counts.sum()
        accepted = np.count_nonzero(counts) > 1 and counts.max() < 0.75 * counts.sum()
        assert (most < labelled and most < 0.75 * labelled) == accepted
        num_accepted += accepted
    assert 50 < num_accepted < 250


@KINDS
def test_eval_batches_resize_as_the_official_code(kind):
    """Decoded by libjpeg with the accurate transform and resized by OpenCV to (2048, 512): within one grey level."""
    examples = pairs(kind, "ade20k")
    source = records.Records([{"image": image, "label": png(label)} for image, label in examples])
    c = config.default()
    plan, _ = pipeline.eval_plan(pipeline.eval_sizes([label.shape for _, label in examples], c), 1, 8)
    seen = 0
    for batch in pipeline.eval_batches(source, c, plan):
        image, label = examples[int(batch["index"][0])]
        expected = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB)
        factor = min(2048 / max(label.shape), 512 / min(label.shape))
        size = int(label.shape[1] * factor + 0.5), int(label.shape[0] * factor + 0.5)
        expected = cv2.resize(expected, size, interpolation=cv2.INTER_LINEAR)
        height, width = batch["image_size"][0]
        assert (width, height) == size
        assert np.abs(batch["image"][0, :height, :width].astype(int) - expected).max() <= 1
        np.testing.assert_array_equal(batch["label"][0, : label.shape[0], : label.shape[1]], label)
        seen += 1
    assert seen == len(examples)
