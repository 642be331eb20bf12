"""Boundary IoU: the authors' formula where every pixel is labelled, and plain distances where some are ignored."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from isnet_jax.evaluation import boundary, protocols

K, IGNORED = 4, 255
SHAPE, SIZES = (96, 130), ((90, 130), (64, 50), (20, 17), (1, 40), (3, 4))  # padded shape, and images in it

counts_of = functools.partial(jax.jit(boundary.boundary_counts, static_argnums=3), num_classes=K)


def blobs(rng, height, width):
    """Squares of random classes, uint8 (height, width)."""
    classes = rng.integers(0, K, (height // 9 + 1, width // 9 + 1))
    return classes.repeat(9, 0).repeat(9, 1)[:height, :width].astype(np.uint8)


def padded(images, value):
    """A batch (B, *SHAPE) of images of SIZES, uint8."""
    batch = np.full((len(images), *SHAPE), value, np.uint8)
    for row, image in zip(batch, images):
        row[: image.shape[0], : image.shape[1]] = image
    return batch


def band_by_erosion(mask):
    """`mask_to_boundary` of the authors' code, as its steps are described: pad with zeros, erode, subtract."""
    import cv2

    height, width = mask.shape
    iterations = max(1, int(round(0.02 * np.sqrt(height**2 + width**2))))
    bordered = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(bordered, np.ones((3, 3), np.uint8), iterations=iterations)
    return mask & ~eroded[1:-1, 1:-1].astype(bool)


def band_by_distance(classes):
    """True for labelled pixels whose neighbourhood has a labelled pixel of another class, or leaves the image."""
    height, width = classes.shape
    reach = max(1, round(0.02 * float(np.hypot(height, width))))
    band = np.zeros(classes.shape, bool)
    for y, x in np.argwhere(classes != IGNORED):
        leaves = min(y, x) < reach or y + reach >= height or x + reach >= width
        near = classes[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
        band[y, x] = leaves or ((near != classes[y, x]) & (near != IGNORED)).any()
    return band


def test_counts_equal_the_authors_formula_where_every_pixel_is_labelled():
    rng = np.random.default_rng(0)
    labels = [blobs(rng, *size) for size in SIZES]
    predictions = [np.where(rng.random(x.shape) < 0.9, x, np.roll(x, 3)) for x in labels]
    found = counts_of(padded(predictions, 0), padded(labels, IGNORED), np.array(SIZES))
    for predicted, true, counts in zip(predictions, labels, np.asarray(found)):
        for k in range(K):
            p, g = band_by_erosion(predicted == k), band_by_erosion(true == k)
            assert counts[:, k].tolist() == [(p & g).sum(), p.sum(), g.sum()]


def test_counts_equal_distances_where_some_pixels_are_ignored():
    rng = np.random.default_rng(1)
    labels, predictions = [], []
    for size in SIZES:
        image = blobs(rng, *size)
        predictions.append(np.where(rng.random(size) < 0.98, image, blobs(rng, *size)))
        ignored = (rng.random(size) < 0.1) | (blobs(rng, *size) == 0)
        labels.append(np.where(ignored, IGNORED, image).astype(np.uint8))
    found = counts_of(padded(predictions, 3), padded(labels, IGNORED), np.array(SIZES))
    for predicted, true, counts in zip(predictions, labels, np.asarray(found)):
        predicted = np.where(true == IGNORED, IGNORED, predicted)
        p, g = band_by_distance(predicted), band_by_distance(true)
        for k in range(K):
            of_p, of_g = p & (predicted == k), g & (true == k)
            assert counts[:, k].tolist() == [(of_p & of_g).sum(), of_p.sum(), of_g.sum()]


def test_counts_are_the_same_on_images_split_over_devices():
    """Strips of rows on four devices, narrower than some bands reach."""
    rng = np.random.default_rng(4)
    labels, predictions = rng.integers(0, K, (2, 2, 16, 600)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.3] = IGNORED
    sizes = np.array([(16, 600), (13, 250)])
    expected = counts_of(predictions, labels, sizes)
    split = NamedSharding(Mesh(np.reshape(jax.devices()[:8], (2, 4)), ("data", "spatial")), P("data", "spatial"))
    found = counts_of(*(jax.device_put(x, split) for x in (predictions, labels)), sizes)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("width", [1, 3, 20])  # narrower and wider than the band of 3 pixels
def test_prediction_right_on_all_labelled_pixels_scores_one(width):
    """Whatever it predicts where the ground truth is ignored."""
    rng = np.random.default_rng(2)
    truth = np.zeros((1, 100, 100), np.uint8)
    truth[:, :, 50:] = 1
    labels = truth.copy()
    labels[:, 40 : 40 + width] = IGNORED
    for filling in truth, np.full_like(truth, 2), rng.integers(0, K, truth.shape, np.uint8):
        predictions = np.where(labels == IGNORED, filling, truth)
        counts = np.asarray(counts_of(predictions, labels, np.array([(100, 100)])))[0]
        assert protocols.boundary_scores(counts)["miou"] == 1
        pixels = 50 * (100 - width) - 44 * (
            94 - width
        )  # less those inside the band, which the strip does not interrupt
        assert counts[2].tolist() == [pixels, pixels, 0, 0]
    wrong = np.where(truth == 1, 0, truth)
    assert protocols.boundary_scores(counts_of(wrong, labels, np.array([(100, 100)]))[0])["miou"] < 0.5


def test_reach_is_the_authors_for_every_size():
    """In float32 it would differ for the last two sizes."""
    rng = np.random.default_rng(3)
    ties = [(15 * n, 20 * n) for n in range(1, 200, 2)]  # diagonals of 25, 75, 125, ...
    sizes = np.array([*ties, *rng.integers(1, 9000, (2000, 2)), (65_500, 1526), (1, 3225), (415, 3299)])
    found = np.asarray(boundary.reaches(sizes, 1400))
    np.testing.assert_array_equal(found, np.maximum(np.round(0.02 * np.sqrt((sizes.astype(float) ** 2).sum(1))), 1))
    assert all(boundary.reach_in((h, w)) == reach for (h, w), reach in zip(sizes.tolist(), found.tolist()))
