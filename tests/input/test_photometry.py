"""Photometric distortion and normalisation against the official recipe in NumPy and OpenCV."""

import runpy

import cv2
import jax
import numpy as np
import pytest
from paths import ROOT
from samples import within_five_sigma

from isnet_jax.input import photometry

recipe = runpy.run_path(str(ROOT / "benchmarks/opencv_recipe.py"))


def test_apply_distortion_equals_the_official_recipe():
    """Bit for bit except in one of a thousand values, where OpenCV's float32 truncates just below an integer."""
    rng = np.random.default_rng(0)
    images = cv2.resize(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)
    images = np.stack([np.roll(images, i, i % 3) for i in range(120)])
    images[::7] = images[::7, :, :, :1]  # greys
    draws = jax.device_get(photometry.draw_distortion(jax.random.key(0), len(images)))
    distorted = np.asarray(jax.jit(photometry.apply_distortion)(images, **draws))
    different = 0
    for i, image in enumerate(images):
        names = "brightness", "contrast", "saturation", "hue"
        expected = recipe["distort"](
            image,
            **{name: draws[name][i] if chosen else None for name, chosen in zip(names, draws["chosen"][:, i])},
            contrast_early=draws["contrast_early"][i],
        )
        error = np.abs(distorted[i] - expected)
        assert error.max() <= 3  # one, magnified by the later changes
        different += (error > 0).sum()
    assert different < images.size / 1000


@pytest.mark.parametrize("level", [0, 2, 3])
def test_distort_rounds_alike_however_it_is_compiled(level):
    """Level 1 of the tests once fused a product with a sum, and so did later versions of XLA inside the train step."""
    images = np.random.default_rng(0).integers(0, 256, (64, 24, 24, 3)).astype(np.uint8)
    key = jax.random.key(0)
    expected = jax.jit(photometry.distort)(key, images)
    found = jax.jit(photometry.distort, compiler_options={"xla_backend_optimization_level": level})(key, images)
    np.testing.assert_array_equal(found, expected)


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


def test_draw_distortion_has_the_official_distribution():
    draws = jax.device_get(photometry.draw_distortion(jax.random.key(1), 4000))
    for chosen in [*draws["chosen"], draws["contrast_early"]]:
        assert within_five_sigma(chosen.sum(), 4000, 0.5)
    coins = np.stack([*draws["chosen"], draws["contrast_early"]])
    assert np.abs(np.corrcoef(coins) - np.eye(5)).max() < 5 / np.sqrt(4000)  # independent of one another
    for name, low, high in ("brightness", -32, 32), ("contrast", 0.5, 1.5), ("saturation", 0.5, 1.5):
        assert low <= draws[name].min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < draws[name].max() <= high
        assert within_five_sigma((draws[name] < (low + high) / 2).sum(), 4000, 0.5)
    assert set(draws["hue"]) == set(range(-18, 18))


def test_distort_makes_integers_and_leaves_some_images_unchanged():
    images = np.full((4000, 1, 1, 3), 100, np.uint8) + np.array([0, 20, 50], np.uint8)
    out = np.asarray(photometry.distort(jax.random.key(0), images))[:, 0, 0]
    assert (out == np.floor(out)).all() and out.min() >= 0 and out.max() <= 255
    unchanged = (out == images[:, 0, 0]).all(1).mean()
    assert 1 / 16 < unchanged < 1 / 16 + 0.06  # four coins; some chosen changes have no effect


def test_normalize_equals_the_official_recipe_inside_the_window_and_is_zero_outside():
    images = np.full((2, 1, 1, 3), (100, 120, 150), np.uint8)
    x = np.asarray(photometry.normalize(images, np.array([[0, 0, 1, 1], [0, 0, 0, 0]])))
    assert (x[1] == 0).all()
    np.testing.assert_allclose(x[0, 0, 0], recipe["normalize"](images[0])[0, 0], rtol=1e-5)


def test_normalize_places_windows_by_top_left_height_and_width():
    images = np.random.default_rng(0).integers(0, 256, (3, 11, 14, 3)).astype(np.uint8)
    windows = np.array([[2, 3, 5, 7], [0, 0, 11, 14], [10, 13, 1, 1]], np.int32)
    whole = np.asarray(photometry.normalize(images))
    x = np.asarray(photometry.normalize(images, windows))
    for image, normalized, (top, left, height, width) in zip(whole, x, windows):
        expected = np.zeros_like(image)
        rows, columns = slice(top, top + height), slice(left, left + width)
        expected[rows, columns] = image[rows, columns]
        np.testing.assert_array_equal(normalized, expected)
