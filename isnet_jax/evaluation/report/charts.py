"""Geometry of line charts and histograms, in SVG units from the top left; templates/charts.html draws them."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Point = tuple[float, float]

MAX_POINTS = 400  # of a curve; longer ones are averaged
MAX_MARKERS = 30  # curves of up to this many points mark each of them
WIDTH, HEIGHT, HISTOGRAM_HEIGHT = 420, 270, 190
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 44  # margins around the plot
DASHES = ("none", "7 3", "2 3", "9 3 2 3", "4 4", "1 2")  # of the curves, in their order
BORDERS = ("solid", "dashed", "dotted", "dashed", "dashed", "dotted")  # the closest borders in CSS, for the legend


class Axes(NamedTuple):
    """Both axes of a chart. Positions are rounded to a tenth."""

    x_range: tuple[float, float]
    y_values: list[float]  # of the ticks, which span the axis
    x_label: str
    y_label: str
    height: int = HEIGHT  # of the chart
    width: int = WIDTH
    left: int = LEFT  # edges of the plot
    right: int = WIDTH - RIGHT
    top: int = TOP

    @property
    def bottom(self) -> int:
        """The lower edge of the plot."""
        return self.height - BOTTOM

    def x(self, value: float) -> float:
        """Horizontal position of a value."""
        low, high = self.x_range
        return round(self.left + (value - low) / ((high - low) or 1) * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        """Vertical position of a value."""
        low, high = self.y_values[0], self.y_values[-1]
        return round(self.bottom - (value - low) / (high - low) * (self.bottom - self.top), 1)

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Position and text of each tick of the x axis."""
        low, high = self.x_range
        values = [value for value in ticks(low, high) if low <= value <= high]
        return [(self.x(value), text) for value, text in zip(values, _tick_texts(values))]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Position and text of each tick of the y axis."""
        return [(self.y(value), text) for value, text in zip(self.y_values, _tick_texts(self.y_values))]


class Line(NamedTuple):
    """One curve of a line chart."""

    name: str
    path: str  # in SVG's syntax
    markers: list[Point]  # positions of its points, if there are few
    last: float  # its last value
    dash: str
    border: str


class LineChart(NamedTuple):
    """Curves over a common x axis."""

    title: str
    axes: Axes
    lines: list[Line]
    is_averaged: bool  # some points are means of several


class Bar(NamedTuple):
    """A rectangle of a histogram."""

    x: float
    y: float
    width: float
    height: float


class Histogram(NamedTuple):
    """Numbers of values in bins of equal width."""

    title: str
    axes: Axes
    bars: list[Bar]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that span low to high."""
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / count))
    step *= next(m for m in (1, 2, 2.5, 5, 10) if span / (m * step) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def line_chart(title: str, series: Mapping[str, Sequence[Point]], x_label: str, y_label: str) -> LineChart:
    """Curves {name: [(x, y), ...]} of finite numbers, up to six; both axes include 0."""
    curves = {name: _thinned(points) for name, points in series.items()}
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    axes = Axes((min(0.0, *xs), max(xs)), ticks(min(0.0, *ys), max(ys)), x_label, y_label)
    lines = []
    for (name, points), dash, border in zip(curves.items(), DASHES, BORDERS):
        positions = [(axes.x(x), axes.y(y)) for x, y in points]
        path = "M" + "L".join(f"{x} {y}" for x, y in positions)
        markers = positions if len(positions) <= MAX_MARKERS else []
        lines.append(Line(name, path, markers, points[-1][1], dash, border))
    return LineChart(title, axes, lines, any(len(curves[name]) < len(series[name]) for name in series))


def histogram(title: str, shares: np.ndarray, x_label: str, y_label: str) -> Histogram:
    """Numbers of the `shares` (N,), in [0, 1], that fall in each of twenty bins."""
    counts, edges = np.histogram(100 * shares, 20, (0, 100))
    axes = Axes((0.0, 100.0), ticks(0.0, float(counts.max()), 3), x_label, y_label, HISTOGRAM_HEIGHT)
    bars = []
    for count, low, high in zip(counts.tolist(), edges.tolist(), edges[1:].tolist()):
        if count:
            left, top = axes.x(low) + 1, axes.y(count)
            bars.append(Bar(left, top, round(axes.x(high) - 1 - left, 1), round(axes.bottom - top, 1)))
    return Histogram(title, axes, bars)


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """The points, or MAX_POINTS means of neighbours if there are more."""
    if len(points) <= MAX_POINTS:
        return points
    return [tuple(part.mean(0).tolist()) for part in np.array_split(np.array(points, float), MAX_POINTS)]


def _tick_texts(values: Sequence[float]) -> list[str]:
    """Texts of ticks, in thousands where they are large."""
    large = max(map(abs, values), default=0) >= 10000
    return [f"{value / 1000:g}k" if large and value else f"{value:g}" for value in values]
