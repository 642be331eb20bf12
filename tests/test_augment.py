"""Geometry and photometry against the official recipe stated in NumPy and OpenCV, on real images where they are."""

import functools
import hashlib
import io
import runpy
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

from isnet_jax import augment, photometry

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared/data"
recipe = runpy.run_path(str(ROOT / "benchmarks/opencv_recipe.py"))


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def settings(name):
    return runpy.run_path(str(ROOT / f"configs/{name}.py"))["get_config"]().augment.copy_and_resolve_references()


SAMPLES = {  # recipe: (images, where the label lies, label value -> train id)
    "ade20k": ("ADEChallengeData2016/images/*/*.jpg", ("images/", "annotations/"), lambda x: (x.astype(int) - 1) % 256),
    "coco_stuff": ("cocostuff_samples/images/*/*.jpg", ("images/", "annotations/"), lambda x: x),
    "lip": ("cihp_samples/Training/Images/*.jpg", ("/Images/", "/Category_ids/"), lambda x: x),
    "cityscapes": (
        "mmseg_pseudo/pseudo_cityscapes_dataset/leftImg8bit/*/*/*.png",
        ("leftImg8bit", "gtFine"),
        lambda x: x,
    ),
}


@functools.cache
def pairs(name):
    """[(encoded image, label uint8 (H, W))] of the real samples of a data set."""
    pattern, (image_part, label_part), ids = SAMPLES[name]
    found = []
    for path in sorted(DATA.glob(pattern)):
        label = str(path).replace(image_part, label_part).replace(".jpg", ".png")
        label = label.replace("_gtFine.png", "_gtFine_labelTrainIds.png")
        found.append((path.read_bytes(), ids(np.array(Image.open(label))).astype(np.uint8)))
    if not found:
        pytest.skip(f"there are no real samples at {DATA / pattern}")
    return found


def augmented(image, label, key, c):
    """image, label and window of `augment`, on a canvas of the crop's size."""
    out = np.zeros((*c.crop_size, 3), np.uint8), np.full(c.crop_size, 255, np.uint8)
    return *out, augment.augment(image, png(label), key, c, *out)


def statement(image, label, c, rng):
    """The recipe's geometry, padding and window."""
    image = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB)
    image, label = recipe["geometry"](image, label, c, rng)
    height, width = label.shape
    window = (c.crop_size[0] - height) // 2, (c.crop_size[1] - width) // 2, height, width
    return *recipe["pad"](image, label, c), window


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_geometry_equals_the_official_recipe(name):
    """Crop windows, sizes, labels and images to the bit, of every benchmark on its images."""
    c, parts = settings(name), 0
    if name == "cityscapes":  # the sample is an eighth of the real size
        c.resize, c.crop_size = (256, 128), (64, 128)
    for epoch in range(-(-60 // len(pairs(name)))):
        for index, (image, label) in enumerate(pairs(name)):
            key = 2**32 - 1, epoch, index
            found = augmented(image, label, key, c)
            for array, expected in zip(found, statement(image, label, c, augment.generator(key)), strict=True):
                np.testing.assert_array_equal(array, expected)
            _, plan = augment.augment_label(label, augment.generator(key), c)
            parts += plan.part[2] * plan.part[3] < label.size
    assert parts > 5  # images of which not all was decoded


def test_opencv_computes_as_it_did_for_the_official_recipe():
    """Digests of OpenCV 4.5 to 4.14; 5 rotates otherwise."""
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (30, 30, 3)).astype(np.uint8), (473, 473), interpolation=cv2.INTER_CUBIC)
    label = cv2.resize(rng.integers(0, 20, (30, 30)).astype(np.uint8), (473, 473), interpolation=cv2.INTER_NEAREST)
    results = (
        augment.turn(image, 17),
        augment.turn(label, 17),
        augment.resize(image, (333, 801)),
        augment.resize(label, (333, 801)),
        cv2.cvtColor(image, cv2.COLOR_BGR2HSV),
        cv2.cvtColor(image // 2, cv2.COLOR_HSV2BGR),
    )
    assert [hashlib.md5(np.ascontiguousarray(x)).hexdigest()[:8] for x in results] == [
        "fe0a8171",
        "3ab6ed3c",
        "7567076d",
        "68fe28f2",
        "707770c7",
        "4c7f575f",
    ]


def test_parts_of_any_jpeg_decode_as_the_whole():
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (24, 30, 3)).astype(np.uint8), (211, 157), interpolation=cv2.INTER_CUBIC)
    picture = Image.fromarray(np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8))
    ways = [("RGB", {"subsampling": s, "progressive": p}) for s in (0, 1, 2) for p in (False, True)]
    ways += [("RGB", {"restart_marker_blocks": 3}), ("L", {}), ("CMYK", {}), ("RGB", {"format": "PNG"})]
    for mode, options in ways:
        file = io.BytesIO()
        picture.convert(mode).save(file, **{"format": "JPEG", **options})
        data = file.getvalue()
        whole = augment.decode_image(data)
        for _ in range(12):
            (top, bottom), (left, right) = (sorted(rng.choice(n + 1, 2, False)) for n in whole.shape[:2])
            margin = augment.MARGIN
            box = max(top - margin, 0), max(left - margin, 0), min(bottom + margin, 157), min(right + margin, 211)
            part = augment.decode_image(data, (box[0], box[1], box[2] - box[0], box[3] - box[1]))
            part = part[top - box[0] :][: bottom - top, left - box[1] :][:, : right - left]
            np.testing.assert_array_equal(part, whole[top:bottom, left:right], f"{mode} {options}")


def test_no_pixel_outside_the_part_reaches_the_crop():
    """What lies around the decoded part is whatever memory holds."""
    c = settings("ade20k")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (375, 500, 3)).astype(np.uint8)
    label = rng.integers(0, 5, (375, 500)).astype(np.uint8)
    for i in range(40):
        _, plan = augment.augment_label(label, augment.generator((0, 0, i)), c)
        top, left, height, width = plan.part
        np.testing.assert_array_equal(
            augment.augment_image(image[top : top + height, left : left + width], plan),
            augment.augment_image(image, plan._replace(part=(0, 0, 375, 500))),
        )


def test_lip_mirror_equals_the_mirrored_labels_of_cihp():
    """Category_rev_ids are Category_ids in the mirror, left and right exchanged."""
    c = settings("lip")
    c.resize, c.scale_range, c.crop_size, c.rotate_probability = (), (1.0, 1.0), (800, 800), 0.0
    mirrored = 0
    for _, label in pairs("lip"):
        path = next(
            path
            for path in DATA.glob("cihp_samples/Training/Category_ids/*.png")
            if np.array_equal(np.array(Image.open(path)), label)
        )
        golden = np.array(Image.open(DATA / "cihp_samples/Training/Category_rev_ids" / path.name))
        for index in range(6):
            found, plan = augment.augment_label(label, augment.generator((0, 0, index)), c)
            np.testing.assert_array_equal(found, golden if plan.mirror else label)
            mirrored += plan.mirror
    assert mirrored >= 5


def chance(hits, trials, probability):
    """Within five standard deviations."""
    return abs(hits - trials * probability) < 5 * np.sqrt(trials * probability * (1 - probability))


def test_draws_have_the_official_distribution():
    c = settings("lip")
    label = np.tile(np.arange(20, dtype=np.uint8), (60, 3))
    plans = [augment.augment_label(label, augment.generator((0, 1, i)), c)[1] for i in range(1500)]
    sizes = np.array([p.new_height for p in plans])
    assert sizes.min() >= 390 and sizes.max() < 650 and chance((sizes < 520).sum(), 1500, 0.5)
    assert all(p.new_height == p.new_width for p in plans)  # squares: the ratio is not kept
    assert chance(sum(p.mirror for p in plans), 1500, 0.5)
    degrees = np.array([p.degrees for p in plans])
    assert degrees.min() == -30 and degrees.max() == 29
    assert chance((degrees != 0).sum(), 1500, 0.6 * 59 / 60)
    assert np.ptp(np.bincount(degrees[degrees != 0] + 30, minlength=60)[[*range(30), *range(31, 60)]]) < 30
    room = [(p.top / (p.new_height - 473), p.left / (p.new_width - 473)) for p in plans if p.new_height > 520]
    assert chance(sum(top < 0.5 for top, _ in room), len(room), 0.5)
    assert chance(sum(left < 0.5 for _, left in room), len(room), 0.5)
    assert {p.top for p in plans if p.new_height == 475} <= {0, 1, 2}


def test_crops_without_two_classes_or_with_one_too_large_are_tried_again():
    """A label whose only crops to accept lie around its middle column."""
    label = np.zeros((64, 400), np.uint8)
    label[:, 200:] = 1
    label[:8] = augment.IGNORED  # counts nowhere

    def share(left):
        part = label[8:, left : left + 64]
        return max((part == 0).mean(), (part == 1).mean())

    tries = []
    for i in range(400):
        rng = augment.generator((0, 0, i))
        top, left, height, width = augment.choose_crop(label, (64, 64), 0.75, rng)
        again = augment.generator((0, 0, i))
        proposals = [(int(again.integers(1)), int(again.integers(337)))[1] for _ in range(10)]
        good = [left for left in proposals if share(left) < 0.75]
        assert left == (good[0] if good else proposals[-1])
        tries.append(share(left) < 0.75)
    expected = 1 - (1 - np.mean([share(left) < 0.75 for left in range(337)])) ** 10
    assert chance(sum(tries), 400, expected)


def test_class_counts_settle_the_question_as_full_counts_do():
    rng = np.random.default_rng(0)
    settled = 0
    for _ in range(300):
        classes = rng.integers(1, 12)
        label = rng.choice(classes, (40, 56), p=rng.dirichlet(np.full(classes, rng.choice([0.1, 1, 10]))))
        label = np.where(rng.random(label.shape) < rng.choice([0, 0.5, 0.99, 1]), 255, label).astype(np.uint8)
        counts = np.bincount(label.ravel(), minlength=256)[:255]
        labelled, most = augment.class_counts(label, 0.75)
        assert labelled == counts.sum()
        accepted = np.count_nonzero(counts) > 1 and counts.max() < 0.75 * counts.sum()
        assert (most < labelled and most < 0.75 * labelled) == accepted
        settled += accepted
    assert 50 < settled < 250


def test_photometry_equals_the_official_recipe():
    """Images to the last bit but for one in a thousand values, where OpenCV's float32 cuts just below an integer."""
    rng = np.random.default_rng(0)
    images = cv2.resize(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)
    images = np.stack([np.roll(images, i, i % 3) for i in range(120)])
    images[::7] = images[::7, :, :, :1]  # greys
    draws = jax.device_get(photometry.draw_distortion(jax.random.key(0), len(images)))
    found = np.asarray(jax.jit(photometry.apply_distortion)(images, **draws))
    different = 0
    for i, image in enumerate(images):
        names = "brightness", "contrast", "saturation", "hue"
        expected = recipe["distort"](
            image,
            **{name: draws[name][i] if chosen else None for name, chosen in zip(names, draws["chosen"][:, i])},
            contrast_early=draws["contrast_early"][i],
        )
        error = np.abs(found[i] - expected)
        assert error.max() <= 3  # one, enlarged by what comes after
        different += (error > 0).sum()
    assert different < images.size / 1000


def test_hsv_equals_opencv():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    x[:8] = x[:8, :, :1]  # greys
    h, s, v = (np.asarray(c) for c in photometry.rgb_to_hsv(x.astype(np.float32)))
    np.testing.assert_array_equal(np.stack([h, s, v], -1), cv2.cvtColor(x, cv2.COLOR_RGB2HSV))
    hsv = np.stack([rng.integers(0, 180, (512, 512)), *rng.integers(0, 256, (2, 512, 512))], -1).astype(np.uint8)
    back = np.asarray(jax.jit(photometry.hsv_to_rgb)(*np.moveaxis(hsv.astype(np.float32), -1, 0)))
    error = np.abs(back - cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
    assert error.max() <= 1 and (error > 0).mean() < 1e-3


def test_distribution_of_photometry():
    draws = jax.device_get(photometry.draw_distortion(jax.random.key(1), 4000))
    for chosen in [*draws["chosen"], draws["contrast_early"]]:
        assert chance(chosen.sum(), 4000, 0.5)
    coins = np.stack([*draws["chosen"], draws["contrast_early"]])
    assert np.abs(np.corrcoef(coins) - np.eye(5)).max() < 5 / np.sqrt(4000)  # independent of one another
    for name, low, high in ("brightness", -32, 32), ("contrast", 0.5, 1.5), ("saturation", 0.5, 1.5):
        assert low <= draws[name].min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < draws[name].max() <= high
        assert chance((draws[name] < (low + high) / 2).sum(), 4000, 0.5)
    assert set(draws["hue"]) == set(range(-18, 18))
    images = np.full((4000, 1, 1, 3), 100, np.uint8) + np.array([0, 20, 50], np.uint8)
    out = np.asarray(photometry.distort(jax.random.key(0), images))[:, 0, 0]
    assert (out == np.floor(out)).all() and out.min() >= 0 and out.max() <= 255
    unchanged = (out == images[:, 0, 0]).all(1).mean()
    assert 1 / 16 < unchanged < 1 / 16 + 0.06  # four coins; a drawn change may come to nothing


def test_normalisation_leaves_zeros_outside_the_window():
    images = np.full((2, 1, 1, 3), (100, 120, 150), np.uint8)
    x = np.asarray(photometry.normalize(images, np.array([[0, 0, 1, 1], [0, 0, 0, 0]])))
    assert (x[1] == 0).all()
    np.testing.assert_allclose(x[0, 0, 0], recipe["normalize"](images[0])[0, 0], rtol=1e-5)


def test_evaluation_resizes_as_the_official_code():
    """Decoded by libjpeg with the accurate transform and resized by OpenCV to (2048, 512): within one grey level."""
    from isnet_jax import config, input_pipeline, records

    found = pairs("ade20k")
    source = records.Records([{"image": image, "label": png(label)} for image, label in found])
    c = config.default()
    plan, _ = input_pipeline.eval_plan(input_pipeline.eval_sizes([label.shape for _, label in found], c), 1, 8)
    seen = 0
    for batch in input_pipeline.eval_batches(source, c, plan):
        image, label = found[int(batch["index"][0])]
        official = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB)
        factor = min(2048 / max(label.shape), 512 / min(label.shape))
        size = int(label.shape[1] * factor + 0.5), int(label.shape[0] * factor + 0.5)
        official = cv2.resize(official, size, interpolation=cv2.INTER_LINEAR)
        height, width = batch["image_size"][0]
        assert (width, height) == size
        assert np.abs(batch["image"][0, :height, :width].astype(int) - official).max() <= 1
        np.testing.assert_array_equal(batch["label"][0, : label.shape[0], : label.shape[1]], label)
        seen += 1
    assert seen == len(found)
