"""Scenes: small drawn landscapes that need no download and cannot be segmented by colour alone.

All colours are random. Classes differ by texture (planks, checks, leaves, grain), by shape, and some only by
what is around them: sky and water are painted alike, but water lies below land; a house and a boat are the
same planked hut, on land or afloat.
"""

import colorsys
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from isnet_jax.datasets import common, image_files
from isnet_jax.datasets.journal import Finding

HEIGHT, WIDTH = 96, 128
SKY, WATER, GROUND, HOUSE, BOAT, TREE, BALL, FENCE = range(8)
FINE = 4  # shapes are drawn so many times finer, for smooth edges and exact labels
ROWS, COLS = np.mgrid[:HEIGHT, :WIDTH] + 0.5


class Scenes(common.SegmentationBuilder):
    """360 training and 60 validation scenes of 96 x 128 (height x width), the same every time."""

    NAMES = ("sky", "water", "ground", "house", "boat", "tree", "ball", "fence")
    PALETTE = (
        (142, 197, 240),
        (38, 84, 164),
        (222, 196, 132),
        (204, 78, 64),
        (128, 62, 140),
        (64, 146, 84),
        (246, 174, 45),
        (84, 66, 58),
    )
    DESCRIPTION = "Drawn landscapes for tests and trials: classes differ by texture, shape, surroundings, not colour."

    def items(self):
        """Returns {split: [Item, ...]}."""
        return {
            split: [Item(f"{split}_{i:03d}", (number, i)) for i in range(count)]
            for number, (split, count) in enumerate((("train", 360), ("val", 60)))
        }

    def check(self, item):
        """Draws an item, see `SegmentationBuilder.check`."""
        image, label = draw(item.seed)
        image_png, label_png = image_files.encode_png(image), image_files.encode_label(label)
        return Finding(
            image=image_png,
            label=label_png,
            size=label.shape,
            num_bytes=len(image_png) + len(label_png),
            counts=image_files.count_ids(label, len(self.NAMES)),
        )

    def stamp(self, item):
        """See `SegmentationBuilder.stamp`."""
        return f"{self.VERSION} {item.name}"


class Item(NamedTuple):
    """A scene to draw."""

    name: str
    seed: tuple  # of two integers


def draw(seed):
    """Draws a scene: terrain, and on it at random what THINGS lists.

    Args:
      seed: for numpy.random.default_rng.

    Returns:
      image uint8 [96, 128, 3] and label uint8 [96, 128].
    """
    rng = np.random.default_rng(seed)
    scene = Scene(rng)
    places = [
        (*place, label)
        for label, (most, _, surface, foot) in THINGS.items()
        for _ in range(rng.integers(most, endpoint=True))
        if (place := scene.find_place(rng, surface, foot))
    ]
    for row, col, label in sorted(places):  # far things first: nearer ones then hide parts of them
        THINGS[label][1](scene, rng, row, col, label)
    return scene.finish(rng), scene.label


class Scene:
    """A picture under work: image float [96, 128, 3] in 0..1, label uint8 [96, 128].

    It begins with sky, a far shore, water and a near shore (or land all the way, one time in four). `surface` is
    the label of this terrain, on which things stand; `light` is -1 if the light comes from the left, else 1.
    """

    def __init__(self, rng):
        self.horizon = rng.uniform(26, 48)
        self.light = rng.choice([-1, 1])
        self.image = np.zeros((HEIGHT, WIDTH, 3))
        self.label = np.zeros((HEIGHT, WIDTH), np.uint8)
        everywhere = np.ones((HEIGHT, WIDTH))
        waves = 1 + 0.13 * noise(rng, 3, 20)
        bright = 1.2 - 0.35 * np.minimum(abs(ROWS - self.horizon) / 50, 1)  # lightest near the horizon, above and below
        self.paint(everywhere, color(rng) * (waves * bright)[..., None], SKY)

        air = self.image.copy()
        earth = color(rng) * (1 + 0.13 * noise(rng, 1, 1) + 0.1 * noise(rng, 5, 9))[..., None]
        hills = self.horizon - rng.uniform(2, 9) - rng.uniform(2, 7) * noise(rng, 1, 32)[:1]
        self.paint(np.clip(ROWS - hills, 0, 1), earth, GROUND)
        if rng.random() < 0.78:
            shore = self.horizon + rng.uniform(1, 8) + 1.5 * noise(rng, 1, 24)[:1]
            self.paint(np.clip(ROWS - shore, 0, 1), air, WATER)
            slope = rng.uniform(-0.35, 0.35)
            near = rng.uniform(self.horizon + 22, HEIGHT + 10) + slope * (COLS - WIDTH / 2) + 3 * noise(rng, 1, 32)[:1]
            self.paint(np.clip(ROWS - np.maximum(near, shore + 6), 0, 1), earth, GROUND)
        self.surface = self.label.copy()

    def paint(self, cover, paint, label):
        """Lays paint (broadcast to the image) where cover [height, width] in 0..1 says, and the label where > 0.5."""
        self.image += cover[..., None] * (paint - self.image)
        self.label[cover > 0.5] = label

    def shade(self, col, row, width):
        """Darkens what lies around the foot of a thing, away from the light."""
        away = (COLS - col + 0.35 * self.light * width) / (0.75 * width)
        self.image *= 1 - 0.45 * np.exp(-(away**2) - ((ROWS - row) / (0.12 * width + 1)) ** 2)[..., None]

    def size(self, row):
        """The height in pixels of a hut that stands at this row: the nearer the larger."""
        return 15 + 0.52 * (row - self.horizon)

    def roundness(self, col, row, radius):
        """Returns the brightness [96, 128, 1] of a round body there, lit from above on one side."""
        return np.clip(1.05 + 0.3 * (self.light * (COLS - col) - (ROWS - row)) / radius, 0.5, 1.35)[..., None]

    def find_place(self, rng, surface, foot):
        """Looks for a place on a surface (None: any) for a foot so many times as wide as a hut is high.

        Returns (row, col), or None if there is none to be found.
        """
        for _ in range(60):
            row, col = rng.uniform(self.horizon + 5, HEIGHT - 2), rng.uniform(0, WIDTH)
            half = foot * self.size(row) / 2
            # Some of the surface must show on all sides, or nobody could tell what the thing stands on.
            found = np.unique(self.surface[int(row) - 4 : int(row) + 3, int(max(col - half, 0)) : int(col + half) + 1])
            if len(found) == 1 and surface in (None, found[0]):
                return row, col
        return None

    def finish(self, rng):
        """Lights the whole unevenly and adds grain; returns the image as uint8."""
        angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.3)
        across = (np.cos(angle) * (COLS / WIDTH - 0.5) + np.sin(angle) * (ROWS / HEIGHT - 0.5))[..., None]
        image = self.image * (1 + strength * across) + rng.normal(0, 0.018, self.image.shape)
        return (255 * np.clip(image, 0, 1)).round().astype(np.uint8)


def _hut(scene, rng, row, col, label):
    """A planked hut with a pitched roof: a house on land, a boat on water."""
    high = scene.size(row) * rng.uniform(0.85, 1.15)
    wide = high * rng.uniform(1.0, 1.5)
    scene.shade(col, row, wide)
    left, right, eaves = col - wide / 2, col + wide / 2, row - 0.58 * high
    body = color(rng)
    planks = 1 - 0.3 * ((row - ROWS) % 4 < 1.2)
    scene.paint(
        polygon([(left, row), (left, eaves), (right, eaves), (right, row)]),
        body * (planks * (1 + 0.12 * scene.light * (COLS - col) / wide))[..., None],
        label,
    )
    for side in -0.27, 0.27:
        middle, half = col + side * wide, 0.1 * wide
        scene.paint(
            polygon(
                [
                    (middle - half, eaves + 0.36 * high),
                    (middle - half, eaves + 0.14 * high),
                    (middle + half, eaves + 0.14 * high),
                    (middle + half, eaves + 0.36 * high),
                ]
            ),
            0.3 * body,
            label,
        )
    ridge = wide * rng.uniform(0.1, 0.35)
    scene.paint(
        polygon(
            [
                (left - 0.08 * wide, eaves + 1),
                (col - ridge, row - high),
                (col + ridge, row - high),
                (right + 0.08 * wide, eaves + 1),
            ]
        ),
        color(rng) * (0.72 - 0.2 * ((COLS - left) % 4 < 1.2))[..., None],
        label,
    )


def _tree(scene, rng, row, col, label):
    """A trunk and a leafy crown of overlapping rounds, on land."""
    high = scene.size(row) * rng.uniform(1.1, 1.6)
    scene.shade(col, row, 0.6 * high)
    half = 0.055 * high
    scene.paint(
        polygon(
            [
                (col - 1.4 * half, row),
                (col - half, row - 0.6 * high),
                (col + half, row - 0.6 * high),
                (col + 1.4 * half, row),
            ]
        ),
        0.6 * color(rng),
        label,
    )
    radius, middle = 0.2 * high, row - 0.67 * high
    angles = np.arange(7) * 2 * np.pi / 7 + rng.uniform(0, 1)
    crown = ellipses(
        [(col, middle, 1.2 * radius)]
        + [
            (col + 0.85 * radius * np.cos(a), middle + 0.85 * radius * np.sin(a), radius * rng.uniform(0.6, 0.95))
            for a in angles
        ]
    )
    leaves = 1 + 0.3 * np.tanh(2 * noise(rng, 2, 2))
    scene.paint(crown, color(rng) * leaves[..., None] * scene.roundness(col, middle, 2 * radius), label)


def _ball(scene, rng, row, col, label):
    """A chequered ball, on land or afloat."""
    radius = scene.size(row) * rng.uniform(0.25, 0.38)
    middle = row - radius
    scene.shade(col, row, 1.6 * radius)
    angle, check = rng.uniform(0, np.pi), radius * rng.uniform(0.55, 0.7)
    along = np.cos(angle) * (COLS - col) + np.sin(angle) * (ROWS - middle)
    across = np.cos(angle) * (ROWS - middle) - np.sin(angle) * (COLS - col)
    checks = ((along // check + across // check) % 2)[..., None]
    scene.paint(
        ellipses([(col, middle, radius)]),
        (checks * color(rng) + (1 - checks) * color(rng)) * scene.roundness(col, middle, radius),
        label,
    )


def _fence(scene, rng, row, col, label):
    """Posts and two rails, on land; what is behind shows between them."""
    high = scene.size(row) * rng.uniform(0.4, 0.55)
    gap = 0.5 * high
    posts = rng.integers(5, 10)
    start, half = col - (posts - 1) / 2 * gap, 0.08 * high + 0.5
    lines = [
        [(x - half, row), (x - half, row - high), (x, row - high - half), (x + half, row - high), (x + half, row)]
        for x in start + gap * np.arange(posts)
    ]
    end = start + gap * (posts - 1)
    lines += [
        [
            (start, row - at * high - half),
            (end, row - at * high - half),
            (end, row - at * high + half),
            (start, row - at * high + half),
        ]
        for at in (0.3, 0.75)
    ]
    scene.paint(polygon(*lines), color(rng), label)


THINGS = {  # label: the most of them in a scene, how to draw one, what it stands on, its foot in hut heights
    HOUSE: (2, _hut, GROUND, 1.1),
    BOAT: (2, _hut, WATER, 1.1),
    TREE: (3, _tree, GROUND, 0.2),
    BALL: (2, _ball, None, 0.4),
    FENCE: (1, _fence, GROUND, 1.2),
}


def color(rng):
    """Returns a random RGB colour, float [3] in 0..1: the same distribution for everything in a scene."""
    return np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.15, 0.6), rng.uniform(0.55, 0.95)))


def noise(rng, height, width):
    """Returns smooth noise [96, 128], about normal, whose features have that size in pixels."""
    grid = rng.normal(size=(HEIGHT // height + 3, WIDTH // width + 3)).astype(np.float32)
    size = (grid.shape[1] * width, grid.shape[0] * height)
    return np.asarray(Image.fromarray(grid).resize(size, Image.BICUBIC))[height:, width:][:HEIGHT, :WIDTH]


def polygon(*shapes):
    """Returns how far polygons, lists of (col, row), cover each pixel: float [96, 128] in 0..1."""
    return _cover(lambda pen: [pen.polygon([(FINE * x, FINE * y) for x, y in points], fill=255) for points in shapes])


def ellipses(circles):
    """Returns how far circles (col, row, radius) cover each pixel: float [96, 128] in 0..1."""
    return _cover(
        lambda pen: [
            pen.ellipse([FINE * (x - r), FINE * (y - r), FINE * (x + r), FINE * (y + r)], fill=255)
            for x, y, r in circles
        ]
    )


def _cover(draw_shapes):
    fine = Image.new("L", (FINE * WIDTH, FINE * HEIGHT))
    draw_shapes(ImageDraw.Draw(fine))
    return np.asarray(fine.reduce(FINE)) / 255
