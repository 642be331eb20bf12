"""Drawn people, seen from the front or from behind, labelled as in LIP: left and right limbs look alike.

Which arm is the left one follows from the face alone: it is at the right of the image where the face is seen, and at
the left where it is not. A network must look at the whole person, and flips must swap the labels.
"""

import colorsys
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = (
    "background",
    "hair",
    "face",
    "clothes",
    "left arm",
    "right arm",
    "left leg",
    "right leg",
    "left shoe",
    "right shoe",
)
BACKGROUND, HAIR, FACE, CLOTHES, LEFT_ARM, RIGHT_ARM, LEFT_LEG, RIGHT_LEG, LEFT_SHOE, RIGHT_SHOE = range(10)
FLIP_PAIRS = (LEFT_ARM, RIGHT_ARM), (LEFT_LEG, RIGHT_LEG), (LEFT_SHOE, RIGHT_SHOE)
SPLITS = {"train": 320, "val": 120}  # images
HEIGHT, WIDTH = 128, 96
SUPERSAMPLING = 4

Point = tuple[float, float]


def write(folder: Path, splits: dict[str, int] = SPLITS) -> None:
    """Writes {split}/images/NNN.png and {split}/labels/NNN.png, the same every time; the folder appears once whole."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for number, (split, count) in enumerate(splits.items()):
        for kind in ("images", "labels"):
            (partial / split / kind).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image, label = draw(np.random.default_rng([number, i]))
            Image.fromarray(image).save(partial / split / "images" / f"{i:03d}.png")
            Image.fromarray(label).save(partial / split / "labels" / f"{i:03d}.png")
    partial.rename(folder)


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A person before a background of random colours: image uint8 (128, 96, 3), label uint8 (128, 96)."""
    canvas = Canvas(rng)
    for _ in range(rng.integers(2, 6)):  # things that are not a person, some of the colours of one
        canvas.limb(canvas.anywhere(rng), canvas.anywhere(rng), rng.uniform(3, 10), BACKGROUND, random_color(rng))
    _draw_person(canvas, rng)
    return canvas.finish(rng)


class Canvas:
    """A picture and its label in progress, drawn larger than they become."""

    def __init__(self, rng: np.random.Generator):
        size = WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING
        self._image, self._label = Image.new("RGB", size, random_color(rng)), Image.new("L", size, BACKGROUND)
        self._pens = ImageDraw.Draw(self._image), ImageDraw.Draw(self._label)

    def anywhere(self, rng: np.random.Generator) -> Point:
        """A random point (x, y)."""
        return rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)

    def ellipse(self, center: Point, radii: Point, label: int, color: tuple[int, int, int]) -> None:
        """Draws a filled ellipse."""
        low, high = ([SUPERSAMPLING * (c + sign * r) for c, r in zip(center, radii)] for sign in (-1, 1))
        for pen, fill in zip(self._pens, (color, label)):
            pen.ellipse((*low, *high), fill=fill)

    def limb(self, start: Point, end: Point, width: float, label: int, color: tuple[int, int, int]) -> None:
        """Draws a thick line with round ends."""
        points = [tuple(SUPERSAMPLING * x for x in point) for point in (start, end)]
        for pen, fill in zip(self._pens, (color, label)):
            pen.line(points, fill=fill, width=round(SUPERSAMPLING * width))
        for point in (start, end):
            self.ellipse(point, (width / 2, width / 2), label, color)

    def polygon(self, points: Sequence[Point], label: int, color: tuple[int, int, int]) -> None:
        """Draws a filled polygon."""
        scaled = [tuple(SUPERSAMPLING * x for x in point) for point in points]
        for pen, fill in zip(self._pens, (color, label)):
            pen.polygon(scaled, fill=fill)

    def finish(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Image and label at their final size, with noise in the image."""
        image = np.asarray(self._image.resize((WIDTH, HEIGHT), Image.Resampling.BOX), np.float32)
        image = image + rng.normal(0, 6, image.shape)
        label = np.asarray(self._label.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST))
        return np.clip(image, 0, 255).astype(np.uint8), label


def _draw_person(canvas: Canvas, rng: np.random.Generator) -> None:
    skin, hair, shirt, trousers, shoes = (random_color(rng) for _ in range(5))
    is_facing = rng.random() < 0.5
    sides = ((-1, RIGHT_ARM), (1, LEFT_ARM)) if is_facing else ((-1, LEFT_ARM), (1, RIGHT_ARM))
    size = rng.uniform(0.75, 1.1)
    x, y = WIDTH / 2 + rng.uniform(-14, 14), HEIGHT / 2 + rng.uniform(-8, 8)

    def at(right, down):  # of the hips
        return x + size * right, y + size * down

    for side, arm in sides:  # the classes of leg and shoe follow that of the arm: left, right, left, right, ...
        knee, foot = (side * rng.uniform(2, 9), 22 + rng.uniform(-3, 1)), (side * rng.uniform(2, 13), 44)
        canvas.limb(at(side * 5, 2), at(*knee), 7.5 * size, arm + 2, trousers)
        canvas.limb(at(*knee), at(*foot), 6.5 * size, arm + 2, trousers)
        canvas.limb(at(*foot), at(foot[0] + side * 4, 47), 6 * size, arm + 4, shoes)
    canvas.polygon([at(-11, -26), at(11, -26), at(9, 4), at(-9, 4)], CLOTHES, shirt)
    for side, arm in sides:
        angle, bend = rng.uniform(-0.3, 1.9), rng.uniform(-0.2, 1.2)  # from hanging down to raised
        shoulder = side * 11, -24
        elbow = shoulder[0] + side * 14 * np.sin(angle), shoulder[1] + 14 * np.cos(angle)
        hand = elbow[0] + side * 13 * np.sin(angle + bend), elbow[1] + 13 * np.cos(angle + bend)
        canvas.limb(at(*shoulder), at(*elbow), 6 * size, arm, shirt)
        canvas.limb(at(*elbow), at(*hand), 5 * size, arm, skin)
    canvas.ellipse(at(0, -36), (8.5 * size, 10 * size), HAIR, hair)
    if is_facing:
        canvas.ellipse(at(0, -34), (6.5 * size, 8 * size), FACE, skin)


def random_color(rng: np.random.Generator) -> tuple[int, int, int]:
    """A random colour (r, g, b)."""
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 0.9), rng.uniform(0.25, 0.95))
    return tuple(round(255 * x) for x in rgb)  # type: ignore[return-value]
