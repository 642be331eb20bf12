"""Small drawn landscapes that need no download and cannot be segmented by colour alone.

All colours are random. Classes differ by texture (planks, checks, leaves, grain), by shape, and some only by their
surroundings: sky and water look alike, but water lies below land, and a house and a boat are the same planked hut, on
land or afloat.
"""

import colorsys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

HEIGHT, WIDTH = 96, 128
SKY, WATER, GROUND, HOUSE, BOAT, TREE, BALL, FENCE = range(8)
SUPERSAMPLING = 4  # of shapes along each axis, for smooth edges and exact labels
ROWS, COLS = np.mgrid[:HEIGHT, :WIDTH] + 0.5


def draw(seed: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Draws a scene, terrain with a random choice of THINGS: image uint8 (96, 128, 3) and label uint8 (96, 128)."""
    rng = np.random.default_rng(seed)
    scene = Scene(rng)
    places = [
        (*place, label)
        for label, thing in THINGS.items()
        for _ in range(rng.integers(thing.max_count, endpoint=True))
        if (place := scene.find_place(rng, thing.surface, thing.foot))
    ]
    for row, col, label in sorted(places):  # from far to near, so that near things hide parts of far ones
        THINGS[label].draw(scene, rng, row, col, label)
    return scene.finish(rng), scene.label


class Scene:
    """A picture in progress: image float (96, 128, 3) in 0..1, label uint8 (96, 128).

    It starts with sky, a far shore, water and a near shore, or in about one case of four with land all the way.
    `surface` is the label of this terrain, on which things stand. `light` is -1 if the light comes from the left,
    else 1.
    """

    def __init__(self, rng: np.random.Generator):
        self.horizon = rng.uniform(26, 48)
        self.light = rng.choice([-1, 1])
        self.image = np.zeros((HEIGHT, WIDTH, 3))
        self.label = np.zeros((HEIGHT, WIDTH), np.uint8)
        everywhere = np.ones((HEIGHT, WIDTH))
        waves = 1 + 0.13 * noise(rng, 3, 20)
        brightness = 1.2 - 0.35 * np.minimum(abs(ROWS - self.horizon) / 50, 1)  # highest at the horizon
        self.paint(everywhere, color(rng) * (waves * brightness)[..., None], SKY)

        sky = self.image.copy()
        earth = color(rng) * (1 + 0.13 * noise(rng, 1, 1) + 0.1 * noise(rng, 5, 9))[..., None]
        hills = self.horizon - rng.uniform(2, 9) - rng.uniform(2, 7) * noise(rng, 1, 32)[:1]
        self.paint(np.clip(ROWS - hills, 0, 1), earth, GROUND)
        if rng.random() < 0.78:
            shore = self.horizon + rng.uniform(1, 8) + 1.5 * noise(rng, 1, 24)[:1]
            self.paint(np.clip(ROWS - shore, 0, 1), sky, WATER)
            slope = rng.uniform(-0.35, 0.35)
            near = rng.uniform(self.horizon + 22, HEIGHT + 10) + slope * (COLS - WIDTH / 2) + 3 * noise(rng, 1, 32)[:1]
            self.paint(np.clip(ROWS - np.maximum(near, shore + 6), 0, 1), earth, GROUND)
        self.surface = self.label.copy()

    def paint(self, coverage: np.ndarray, paint: np.ndarray, label: int) -> None:
        """Blends `paint` (broadcast to the image) in by the coverage (H, W) in 0..1, and sets the label where > 0.5."""
        self.image += coverage[..., None] * (paint - self.image)
        self.label[coverage > 0.5] = label

    def shade(self, col: float, row: float, width: float) -> None:
        """Darkens the surroundings of a thing's foot, away from the light."""
        away = (COLS - col + 0.35 * self.light * width) / (0.75 * width)
        self.image *= 1 - 0.45 * np.exp(-(away**2) - ((ROWS - row) / (0.12 * width + 1)) ** 2)[..., None]

    def size(self, row: float) -> float:
        """The height in pixels of a hut that stands at this row: the nearer, the larger."""
        return 15 + 0.52 * (row - self.horizon)

    def roundness(self, col: float, row: float, radius: float) -> np.ndarray:
        """The brightness (96, 128, 1) of a round body at this position, lit from above on one side."""
        return np.clip(1.05 + 0.3 * (self.light * (COLS - col) - (ROWS - row)) / radius, 0.5, 1.35)[..., None]

    def find_place(self, rng: np.random.Generator, surface: int | None, foot: float) -> tuple[float, float] | None:
        """A random (row, col) on a surface (None: on any one), or None if there is no room.

        `foot` is the width of the thing's foot, relative to the height of a hut.
        """
        for _ in range(60):
            row, col = rng.uniform(self.horizon + 5, HEIGHT - 2), rng.uniform(0, WIDTH)
            half = foot * self.size(row) / 2
            # The surface must show on all sides, or its surroundings would not tell a house from a boat.
            around = np.unique(self.surface[int(row) - 4 : int(row) + 3, int(max(col - half, 0)) : int(col + half) + 1])
            if len(around) == 1 and surface in (None, around[0]):
                return row, col
        return None

    def finish(self, rng: np.random.Generator) -> np.ndarray:
        """The image as uint8, with uneven lighting and grain."""
        angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.3)
        across = (np.cos(angle) * (COLS / WIDTH - 0.5) + np.sin(angle) * (ROWS / HEIGHT - 0.5))[..., None]
        image = self.image * (1 + strength * across) + rng.normal(0, 0.018, self.image.shape)
        return (255 * np.clip(image, 0, 1)).round().astype(np.uint8)


def _draw_hut(scene: Scene, rng: np.random.Generator, row: float, col: float, label: int) -> None:
    """A planked hut with a pitched roof: a house on land, a boat on water."""
    height = scene.size(row) * rng.uniform(0.85, 1.15)
    width = height * rng.uniform(1.0, 1.5)
    scene.shade(col, row, width)
    left, right, eaves = col - width / 2, col + width / 2, row - 0.58 * height
    wall_color = color(rng)
    planks = 1 - 0.3 * ((row - ROWS) % 4 < 1.2)
    scene.paint(
        polygons([(left, row), (left, eaves), (right, eaves), (right, row)]),
        wall_color * (planks * (1 + 0.12 * scene.light * (COLS - col) / width))[..., None],
        label,
    )
    for side in -0.27, 0.27:
        center, half = col + side * width, 0.1 * width
        bottom, top = eaves + 0.36 * height, eaves + 0.14 * height
        window = [(center - half, bottom), (center - half, top), (center + half, top), (center + half, bottom)]
        scene.paint(polygons(window), 0.3 * wall_color, label)
    ridge = width * rng.uniform(0.1, 0.35)
    overhang = 0.08 * width
    roof = [(left - overhang, eaves + 1), (col - ridge, row - height), (col + ridge, row - height)]
    roof.append((right + overhang, eaves + 1))
    scene.paint(polygons(roof), color(rng) * (0.72 - 0.2 * ((COLS - left) % 4 < 1.2))[..., None], label)


def _draw_tree(scene: Scene, rng: np.random.Generator, row: float, col: float, label: int) -> None:
    """A trunk and a leafy crown of overlapping circles, on land."""
    height = scene.size(row) * rng.uniform(1.1, 1.6)
    scene.shade(col, row, 0.6 * height)
    half, top = 0.055 * height, row - 0.6 * height
    trunk = [(col - 1.4 * half, row), (col - half, top), (col + half, top), (col + 1.4 * half, row)]
    scene.paint(polygons(trunk), 0.6 * color(rng), label)
    radius, center = 0.2 * height, row - 0.67 * height
    angles = np.arange(7) * 2 * np.pi / 7 + rng.uniform(0, 1)
    crown = circles(
        [(col, center, 1.2 * radius)]
        + [
            (col + 0.85 * radius * np.cos(a), center + 0.85 * radius * np.sin(a), radius * rng.uniform(0.6, 0.95))
            for a in angles
        ]
    )
    leaves = 1 + 0.3 * np.tanh(2 * noise(rng, 2, 2))
    scene.paint(crown, color(rng) * leaves[..., None] * scene.roundness(col, center, 2 * radius), label)


def _draw_ball(scene: Scene, rng: np.random.Generator, row: float, col: float, label: int) -> None:
    """A chequered ball, on land or afloat."""
    radius = scene.size(row) * rng.uniform(0.25, 0.38)
    center = row - radius
    scene.shade(col, row, 1.6 * radius)
    angle, check = rng.uniform(0, np.pi), radius * rng.uniform(0.55, 0.7)
    along = np.cos(angle) * (COLS - col) + np.sin(angle) * (ROWS - center)
    across = np.cos(angle) * (ROWS - center) - np.sin(angle) * (COLS - col)
    checks = ((along // check + across // check) % 2)[..., None]
    scene.paint(
        circles([(col, center, radius)]),
        (checks * color(rng) + (1 - checks) * color(rng)) * scene.roundness(col, center, radius),
        label,
    )


def _draw_fence(scene: Scene, rng: np.random.Generator, row: float, col: float, label: int) -> None:
    """Posts and two rails, on land; the background shows between them."""
    height = scene.size(row) * rng.uniform(0.4, 0.55)
    gap = 0.5 * height
    num_posts = rng.integers(5, 10)
    start, half = col - (num_posts - 1) / 2 * gap, 0.08 * height + 0.5
    end, top = start + gap * (num_posts - 1), row - height
    posts = [
        [(x - half, row), (x - half, top), (x, row - height - half), (x + half, top), (x + half, row)]
        for x in start + gap * np.arange(num_posts)
    ]
    rails = [
        [(start, y - half), (end, y - half), (end, y + half), (start, y + half)]
        for y in (row - 0.3 * height, row - 0.75 * height)
    ]
    scene.paint(polygons(*posts, *rails), color(rng), label)


class Thing(NamedTuple):
    """A class of things in a scene."""

    max_count: int  # in a scene
    draw: Callable[[Scene, np.random.Generator, float, float, int], None]
    surface: int | None  # on which it stands; None: on any
    foot: float  # width of its foot, relative to the height of a hut


THINGS = {
    HOUSE: Thing(2, _draw_hut, GROUND, 1.1),
    BOAT: Thing(2, _draw_hut, WATER, 1.1),
    TREE: Thing(3, _draw_tree, GROUND, 0.2),
    BALL: Thing(2, _draw_ball, None, 0.4),
    FENCE: Thing(1, _draw_fence, GROUND, 1.2),
}


def color(rng: np.random.Generator) -> np.ndarray:
    """A random RGB colour, float (3,) in 0..1, from the same distribution for everything in a scene."""
    return np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.15, 0.6), rng.uniform(0.55, 0.95)))


def noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth noise (96, 128), roughly normal, with features of `height` x `width` pixels."""
    grid = rng.normal(size=(HEIGHT // height + 3, WIDTH // width + 3)).astype(np.float32)
    size = (grid.shape[1] * width, grid.shape[0] * height)
    return np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC))[height:, width:][:HEIGHT, :WIDTH]


def polygons(*shapes: Sequence[tuple[float, float]]) -> np.ndarray:
    """The share of each pixel that polygons, lists of (col, row), cover: float (96, 128) in 0..1."""
    pen, coverage = _supersampled_pen()
    for points in shapes:
        pen.polygon([(SUPERSAMPLING * x, SUPERSAMPLING * y) for x, y in points], fill=255)
    return coverage()


def circles(shapes: Sequence[tuple[float, float, float]]) -> np.ndarray:
    """The share of each pixel that circles (col, row, radius) cover: float (96, 128) in 0..1."""
    pen, coverage = _supersampled_pen()
    for x, y, r in shapes:
        pen.ellipse([SUPERSAMPLING * side for side in (x - r, y - r, x + r, y + r)], fill=255)
    return coverage()


def _supersampled_pen() -> tuple[ImageDraw.ImageDraw, Callable[[], np.ndarray]]:
    """A pen on an empty supersampled image, and a function that returns the coverage drawn with it."""
    image = Image.new("L", (SUPERSAMPLING * WIDTH, SUPERSAMPLING * HEIGHT))
    return ImageDraw.Draw(image), lambda: np.asarray(image.reduce(SUPERSAMPLING)) / 255
