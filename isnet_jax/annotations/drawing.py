"""Shapes of objects and their pixels. A pixel is a unit square: the top left one covers (0, 0) to (1, 1).

Polygons become pixels as in COCO's own tools (pycocotools). Parts outside the image are cut off.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from isnet_jax.labels import IGNORED
from isnet_jax.runtime import limits

MAX_COORDINATE = 2 * limits.MAX_SIDE  # in pixels, of points
MAX_OUTLINE = 1_000_000  # pixels along the outline of a polygon, which COCO's rasteriser visits one by one
COMPRESSED = re.compile(r"(?:[P-o]{0,6}[0-O])*")  # COCO's base-32 numbers, of up to 35 bits each
BACKGROUND = 0


class ShapeError(ValueError):
    """A shape that cannot be drawn. The message is a noun phrase, a kind of findings."""


class NoArea(ShapeError):
    """A shape that covers nothing. The message is a noun phrase."""


class Patch(NamedTuple):
    """The pixels of a shape inside a rectangle of the image."""

    top: int
    left: int
    mask: np.ndarray  # bool (h, w)


class Polygons(NamedTuple):
    """The union of polygons; where one crosses itself, its even-odd interior."""

    rings: tuple[np.ndarray, ...]  # float64 (n, 2) of x, y, each with n >= 3

    @property
    def area(self) -> float:
        """The sum of the areas, in pixels."""
        return sum(abs(float(np.sum(x * np.roll(y, 1) - y * np.roll(x, 1)))) / 2 for x, y in (r.T for r in self.rings))

    def draw(self, height: int, width: int) -> Patch:
        """The pixels in an image of this size."""
        points = np.concatenate(self.rings)
        left, top = np.clip(np.floor(points.min(0)), 0, (width, height)).astype(int).tolist()
        right, bottom = np.clip(np.ceil(points.max(0)) + 1, (left, top), (width, height)).astype(int).tolist()
        if left == right or top == bottom:
            return Patch(0, 0, np.zeros((0, 0), bool))
        flat = [(ring - (left, top)).ravel() for ring in self.rings]
        runs = coco_mask.merge(coco_mask.frPyObjects(flat, bottom - top, right - left))
        return Patch(top, left, coco_mask.decode(runs).astype(bool))


class Ellipse(NamedTuple):
    """The pixels whose centres an ellipse contains."""

    center: tuple[float, float]  # x, y
    radii: tuple[float, float]
    degrees: float = 0.0  # clockwise, of the first radius from the x axis

    def draw(self, height: int, width: int) -> Patch:
        """The pixels in an image of this size."""
        (cx, cy), reach = self.center, max(self.radii)
        left, right = np.clip([np.floor(cx - reach), np.ceil(cx + reach)], 0, width).astype(int).tolist()
        top, bottom = np.clip([np.floor(cy - reach), np.ceil(cy + reach)], 0, height).astype(int).tolist()
        x, y = np.arange(left, right) + 0.5 - cx, (np.arange(top, bottom) + 0.5 - cy)[:, None]
        cos, sin = np.cos(np.radians(self.degrees)), np.sin(np.radians(self.degrees))
        a, b = self.radii
        return Patch(top, left, ((x * cos + y * sin) / a) ** 2 + ((y * cos - x * sin) / b) ** 2 <= 1)


class Runs(NamedTuple):
    """Run lengths of zeros and ones in turn, first zeros, over a rectangle."""

    counts: np.ndarray  # int64 (n,), their sum is height * width
    height: int
    width: int
    by_columns: bool  # as COCO counts; or by rows, as CVAT does
    top: int = 0
    left: int = 0
    covers_image: bool = False  # the rectangle must be the image

    @property
    def area(self) -> float:
        """The number of ones."""
        return float(self.counts[1::2].sum())

    def draw(self, height: int, width: int) -> Patch:
        """The pixels in an image of this size; raises ShapeError if the rectangle has to be the image and is not."""
        if self.covers_image and (self.height, self.width) != (height, width):
            raise ShapeError("masks of another size than their image")
        flat = np.repeat(np.arange(len(self.counts)) % 2 == 1, self.counts)
        mask = flat.reshape(self.width, self.height).T if self.by_columns else flat.reshape(self.height, self.width)
        return _cut(self.top, self.left, mask, height, width)


class Bitmap(NamedTuple):
    """The pixels of a PNG that are not 0, at a place in the image."""

    png: bytes
    top: int
    left: int
    height: int
    width: int

    def draw(self, height: int, width: int) -> Patch:
        """The pixels in an image of this size; raises ShapeError for a PNG that is damaged or of another size."""
        try:
            with limits.open_image(io.BytesIO(limits.decodable(self.png)), ("PNG",)) as image:
                if image.size != (self.width, self.height):
                    raise ShapeError("masks of another size than their box")
                mask = np.array(image)
        except ShapeError:
            raise
        except Exception:  # Pillow raises a wide mix on damaged files
            raise ShapeError("masks that are no readable PNG") from None
        if mask.ndim != 2:
            raise ShapeError("masks that are colour images")
        return _cut(self.top, self.left, mask.astype(bool), height, width)


Shape = Polygons | Ellipse | Runs | Bitmap


def _cut(top: int, left: int, mask: np.ndarray, height: int, width: int) -> Patch:
    """A patch without what lies outside the image."""
    mask = mask[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
    return Patch(max(top, 0), max(left, 0), mask) if mask.size else Patch(0, 0, np.zeros((0, 0), bool))


def points(values: Any) -> np.ndarray:
    """Points from a list x, y, x, y, ... or of pairs: float64 (n, 2). Raises ShapeError unless all are sensible."""
    try:
        array = np.array(values, np.float64)
    except (ValueError, TypeError, OverflowError):
        raise ShapeError("objects with coordinates that are not numbers") from None
    if array.ndim not in (1, 2) or array.ndim == 2 and array.shape[1] != 2 or array.size % 2:
        raise ShapeError("objects with coordinates that are not pairs")
    if not (np.abs(array) <= MAX_COORDINATE).all():  # false for NaN
        raise ShapeError(f"objects with coordinates beyond {MAX_COORDINATE}, or not finite")
    return array.reshape(-1, 2)


def polygon(values: Any) -> np.ndarray:
    """The points of a polygon, see `points`. Raises ShapeError for fewer than 3, or an outline without end."""
    ring = points(values)
    if len(ring) < 3:
        raise NoArea("polygons of fewer than 3 points")
    if np.abs(ring - np.roll(ring, 1, axis=0)).max(1).sum() + len(ring) > MAX_OUTLINE:
        raise ShapeError(f"polygons whose outline is longer than {MAX_OUTLINE} pixels")
    return ring


def rectangle(x0: float, y0: float, x1: float, y1: float, degrees: float = 0.0) -> Polygons:
    """A rectangle with these opposite corners, turned clockwise about its centre."""
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)
    if degrees:
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        center = corners.mean(0)
        corners = (corners - center) @ [[cos, sin], [-sin, cos]] + center
    return Polygons((polygon(corners),))


def ellipse(center: Sequence[float], radii: Sequence[float], degrees: float = 0.0) -> Ellipse:
    """A checked ellipse; raises ShapeError."""
    (cx, cy), (a, b), (angle, _) = points([center, radii, (degrees, 0.0)]).tolist()
    if min(a, b) <= 0:
        raise NoArea("ellipses without an area")
    return Ellipse((cx, cy), (a, b), angle)


def runs(counts: Any, height: Any, width: Any, **place: Any) -> Runs:
    """Checked run lengths; `place` holds the other fields of `Runs`. Raises ShapeError."""
    try:
        if not (type(height) is type(width) is int and min(height, width) > 0):
            raise ValueError
        limits.check_size(width, height)
        if len(counts) > height * width + 2:
            raise ValueError
        array = np.array(counts, np.int64)
        if array.ndim != 1 or not array.size or array.min() < 0 or array.max() > height * width:
            raise ValueError
    except (ValueError, TypeError, OverflowError, limits.TooLarge):
        raise ShapeError("masks with invalid run lengths or an invalid size") from None
    if array.sum() != height * width:
        raise ShapeError("masks whose run lengths do not add up to their size")
    return Runs(array, height, width, **place)


def decompress(text: str) -> np.ndarray:
    """The run lengths in COCO's compressed text: int64 (n,). Raises ShapeError.

    A number is written in digits of 5 bits, the least first; from the fourth on, it is the difference to the number
    two places before.
    """
    if not text or not COMPRESSED.fullmatch(text):
        raise ShapeError("masks with an invalid compressed text")
    digits = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(digits < 32)
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    places = np.arange(len(digits)) - np.repeat(starts, lengths)
    counts = np.add.reduceat((digits & 31) << 5 * places, starts)
    counts -= np.where(digits[ends] & 16, 1 << 5 * lengths, 0)
    counts[1::2] = counts[1::2].cumsum()
    counts[2::2] = counts[2::2].cumsum()
    return counts


class Object(NamedTuple):
    """A shape and the label of its pixels."""

    label: int  # a class, or IGNORED
    shape: Shape


class Drawing(NamedTuple):
    """A label image and what was drawn on it."""

    label: np.ndarray  # uint8 (H, W)
    objects: Counter[int]  # of each class
    num_contested: int  # pixels on which objects of different classes lie


def draw(objects: Iterable[Object], height: int, width: int) -> Drawing:
    """Draws objects in turn, later ones on top, over the background. Raises ShapeError."""
    label = np.full((height, width), BACKGROUND, np.uint8)
    covered, contested = np.zeros((2, height, width), bool)
    for value, shape in objects:
        top, left, mask = shape.draw(height, width)
        window = slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1])
        if value != IGNORED:
            contested[window] |= mask & covered[window] & (label[window] != value)
            covered[window] |= mask
        else:
            covered[window] &= ~mask
        label[window][mask] = value
    counts = Counter(value for value, _ in objects if value != IGNORED)
    return Drawing(label, counts, int(np.count_nonzero(contested)))
