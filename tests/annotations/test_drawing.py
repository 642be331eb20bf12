"""Pixels of shapes, against exact expectations and an independent rasteriser."""

import numpy as np
import pytest
from annotation_trees import HEIGHT, WIDTH, filled
from pycocotools import mask as coco_mask

from isnet_jax.annotations import drawing
from isnet_jax.annotations.drawing import Object, Polygons, ShapeError
from isnet_jax.labels import IGNORED


def pixels(shape, height=HEIGHT, width=WIDTH):
    """The whole mask of a shape."""
    return drawing.draw([Object(1, shape)], height, width).label == 1


def contains_centres(ring, height, width):
    """Whether an even number of edges lie to the left of each pixel's centre, and the distance to the outline."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside, distance = np.zeros((height, width), bool), np.full((height, width), np.inf)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0)):
        if y0 != y1:
            crosses = (np.minimum(y0, y1) <= y) & (y < np.maximum(y0, y1))
            inside ^= crosses & (x0 + (y - y0) * (x1 - x0) / (y1 - y0) < x)
        length = (x1 - x0) ** 2 + (y1 - y0) ** 2 or 1
        t = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length, 0, 1)
        distance = np.minimum(distance, np.hypot(x - x0 - t * (x1 - x0), y - y0 - t * (y1 - y0)))
    return inside, distance


@pytest.mark.parametrize("seed", range(20))
def test_polygons_are_the_pixels_whose_centres_they_contain(seed):
    """But for centres near the outline; also where they cross themselves and lie outside the image."""
    rng = np.random.default_rng(seed)
    ring = rng.uniform(-8, 35, (rng.integers(4, 9), 2))
    inside, distance = contains_centres(ring, HEIGHT, WIDTH)
    mask = pixels(Polygons((ring,)))
    np.testing.assert_array_equal(mask[distance > 0.75], inside[distance > 0.75])
    assert inside.any()


@pytest.mark.parametrize("seed", range(20))
def test_polygons_equal_those_of_pycocotools(seed):
    """Drawn in their bounding box, they have the pixels that they have in the whole image."""
    rng = np.random.default_rng(seed)
    rings = [rng.uniform(-5, 35, (rng.integers(3, 9), 2)).round(2) for _ in range(rng.integers(1, 4))]
    runs = coco_mask.merge(coco_mask.frPyObjects([ring.ravel().tolist() for ring in rings], HEIGHT, WIDTH))
    np.testing.assert_array_equal(pixels(Polygons(tuple(rings))), coco_mask.decode(runs) == 1)


def test_rectangles_are_exact():
    np.testing.assert_array_equal(pixels(drawing.rectangle(2, 3, 7, 9)), filled((1, 2, 3, 7, 9)))
    np.testing.assert_array_equal(pixels(drawing.rectangle(7, 9, 2, 3)), filled((1, 2, 3, 7, 9)))
    np.testing.assert_array_equal(pixels(drawing.rectangle(-9, -9, 4, 99)), filled((1, 0, 0, 4, HEIGHT)))
    turned = drawing.rectangle(4, 6, 14, 10, degrees=90)
    np.testing.assert_array_equal(pixels(turned), filled((1, 7, 3, 11, 13)))
    assert not pixels(drawing.rectangle(WIDTH, 0, WIDTH + 5, 5)).any()


def test_ellipses_are_the_pixels_whose_centres_they_contain():
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    circle = drawing.ellipse((10, 8), (5, 5))
    np.testing.assert_array_equal(pixels(circle), np.hypot(x - 10, y - 8) <= 5)
    turned = drawing.ellipse((10, 8), (9, 2), degrees=90)
    np.testing.assert_array_equal(pixels(turned), ((x - 10) / 2) ** 2 + ((y - 8) / 9) ** 2 <= 1)
    tilted = pixels(drawing.ellipse((15, 10), (9, 2), degrees=30))  # clockwise, with y downwards
    assert tilted[13, 20] and not tilted[6, 20]


@pytest.mark.parametrize("seed", range(10))
def test_compressed_masks_decode_as_with_pycocotools(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((300, 200)) < rng.choice([0.0, 0.001, 0.3, 1.0])
    text = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    shape = drawing.runs(drawing.decompress(text), 300, 200, by_columns=True)
    np.testing.assert_array_equal(pixels(shape, 300, 200), mask)
    assert shape.area == mask.sum()


def test_masks_by_rows_lie_at_their_place():
    shape = drawing.runs([1, 2, 2, 1], 2, 3, by_columns=False, top=4, left=5)
    expected = filled((1, 6, 4, 8, 5), (1, 7, 5, 8, 6))
    np.testing.assert_array_equal(pixels(shape), expected)
    cut = drawing.runs([0, 100], 10, 10, by_columns=False, top=-3, left=WIDTH - 2)
    np.testing.assert_array_equal(pixels(cut), filled((1, WIDTH - 2, 0, WIDTH, 7)))


def test_later_objects_lie_on_top_and_overlaps_are_counted():
    boxes = (2, 0, 0, 8, 8), (1, 4, 4, 12, 12), (1, 10, 10, 14, 14)
    objects = [Object(value, drawing.rectangle(*corners)) for value, *corners in boxes]
    drawn = drawing.draw([Object(IGNORED, drawing.rectangle(0, 0, 9, 9)), *objects], HEIGHT, WIDTH)
    np.testing.assert_array_equal(drawn.label, filled((IGNORED, 0, 0, 9, 9), *boxes))
    assert drawn.num_contested == 16 and drawn.objects == {1: 2, 2: 1}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: drawing.polygon([0, 0, float("nan"), 1, 2, 2]), "not finite"),
        (lambda: drawing.polygon([0, 0, 1e9, 1, 2, 2]), "beyond"),
        (lambda: drawing.polygon([0, 0, 10**400, 1, 2, 2]), "not numbers"),
        (lambda: drawing.polygon([0, 0, "x", 1, 2, 2]), "not numbers"),
        (lambda: drawing.polygon([0, 0, 1, 1, 2]), "not pairs"),
        (lambda: drawing.polygon([[[0, 0]]]), "not pairs"),
        (lambda: drawing.polygon([0, 0, 1, 1]), "fewer than 3"),
        (lambda: drawing.polygon([0, 0, 100_000, 100_000] * 20), "outline is longer"),
        (lambda: drawing.runs([-1, 5], 2, 2, by_columns=True), "invalid run lengths"),
        (lambda: drawing.runs([2**62, 2**62], 2, 2, by_columns=True), "invalid run lengths"),
        (lambda: drawing.runs([10**10], 10**5, 10**5, by_columns=True), "invalid size"),
        (lambda: drawing.runs([3], 2, 2, by_columns=True), "do not add up"),
        (lambda: drawing.runs([4], 2, 2, by_columns=True, covers_image=True).draw(3, 3), "than their image"),
        (lambda: drawing.decompress("p"), "compressed text"),  # a number without an end
        (lambda: drawing.decompress("0\0"), "compressed text"),
        (lambda: drawing.decompress("o" * 7 + "0"), "compressed text"),
        (lambda: drawing.ellipse((5, 5), (0, 3)), "without an area"),
        (lambda: drawing.Bitmap(b"x", 0, 0, 2, 2).draw(9, 9), "readable PNG"),
    ],
)
def test_shapes_that_cannot_be_drawn_are_refused(make, message):
    with pytest.raises(ShapeError, match=message):
        make()
