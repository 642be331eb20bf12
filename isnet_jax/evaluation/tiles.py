"""Tiles of an image that is too large for the network: where they lie, and how their scores become those of the image.

Tiles are cut at the image's own resolution and begin at multiples of GRID, so that a network computes on the pixels of
a tile what it would compute on those of the image, as far as it sees no border. Their score maps are blended before
they are resized: the blended map has the cells of the whole image's, and is resized like it.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from isnet_jax.errors import UserError
from isnet_jax.runtime import limits

GRID = 8  # pixels: the stride of the network's features


class Tiling(NamedTuple):
    """How images are cut."""

    size: tuple[int, int]  # (height, width) of a tile; multiples of GRID
    overlap: int  # pixels of two neighbours, at least; a multiple of GRID


class Axis(NamedTuple):
    """The tiles along one axis of an image."""

    length: int  # pixels of the image
    starts: list[int]  # pixels; multiples of GRID
    cells: int  # of the image's score map
    first_cells: list[int]  # of each tile
    weights: list[np.ndarray]  # of each tile's cells, float64; those of all tiles sum to 1 at each cell


def make_tiling(
    tile: int | Sequence[int] | None, overlap: int | None = None, tta: bool = False, slide: bool = False
) -> Tiling | None:
    """The tiling of `tile`, the side of a square or (height, width), or None for None.

    overlap: by default a quarter of the shorter side. Raises UserError for numbers that do not fit together, and for
    `tta` and `slide` beside a tile.
    """
    if tile is None:
        if overlap is not None:
            raise UserError(f"--tile_overlap={overlap} is for tiles: add --tile=1024, or leave it out.")
        return None
    if tta or slide:
        raise UserError(
            f"--tile cuts images at their own resolution and predicts each tile once: leave out "
            f"{'--tta' if tta else '--slide'}, or leave out --tile."
        )
    height, width = sides = [tile, tile] if isinstance(tile, int) else list(tile)
    for side in sides:
        if side < GRID or side % GRID:
            nearest = max(GRID, round(side / GRID) * GRID)
            raise UserError(f"--tile has a side of {side} pixels; it must be a multiple of {GRID}, such as {nearest}.")
    if height * width > limits.MAX_PIXELS:
        raise UserError(f"--tile={height}x{width} is larger than any image without tiles: give a smaller one.")
    if overlap is None:
        overlap = min(sides) // 4 // GRID * GRID
    if not 0 <= overlap < min(sides) or overlap % GRID:
        raise UserError(
            f"--tile_overlap is {overlap}; for tiles of {height}x{width} pixels it must be a multiple of {GRID} from 0 "
            f"to {min(sides) - GRID}."
        )
    return Tiling((height, width), overlap)


def place(length: int, tile: int, overlap: int, stride: int) -> Axis:
    """The fewest tiles of `tile` pixels that cover `length` pixels, evenly spaced, with at least this overlap.

    An image shorter than a tile is one; the last tile may end up to GRID - 1 pixels beyond the image. stride: pixels of
    a cell of the score map. A cell's weight in a tile is its distance to the nearest end of that tile inside the image,
    divided by the sum over all tiles: where two tiles overlap, a linear ramp from one to the other.
    """
    missing = max(0, -(-length // GRID) - tile // GRID)  # in units of GRID, as are the steps
    steps = math.ceil(missing * GRID / (tile - overlap))
    starts = [(i * missing + steps // 2) // steps * GRID for i in range(steps + 1)] if steps else [0]
    cells = -(-length // stride)
    first_cells = [start // stride for start in starts]
    ends = [min(first + tile // stride, cells) for first in first_cells]
    distances = []
    for first, end in zip(first_cells, ends):
        middles = np.arange(first, end) + 0.5
        left = middles - first if first else np.full(end - first, np.inf)
        right = end - middles if end < cells else np.full(end - first, np.inf)
        nearest = np.minimum(left, right)
        distances.append(np.where(np.isinf(nearest), 1.0, nearest))
    total = np.zeros(cells)
    for first, end, distance in zip(first_cells, ends, distances):
        total[first:end] += distance
    weights = [distance / total[first:end] for first, end, distance in zip(first_cells, ends, distances)]
    return Axis(length, starts, cells, first_cells, weights)


def blend(maps: Iterator[np.ndarray], rows: Axis, columns: Axis) -> Iterator[tuple[int, np.ndarray]]:
    """The score map of the image in bands: (index of the first row of cells, scores (n, columns.cells, K)).

    maps: of the tiles, row by row, (h, w, K); cells beyond the image are not read. A band ends where the next row of
    tiles begins, and begins with the last row of the band before: two rows are interpolated between. It is valid until
    the next one is taken; memory holds the scores of one row of tiles.
    """
    band, first = np.zeros((0, 0, 0)), 0
    for i, (top, row_weights) in enumerate(zip(rows.first_cells, rows.weights)):
        for left, column_weights in zip(columns.first_cells, columns.weights):
            scores = next(maps)[: len(row_weights), : len(column_weights)]
            if not band.size:
                band = np.zeros((len(row_weights) + 1, columns.cells, scores.shape[-1]), scores.dtype)
            weights = (row_weights[:, None] * column_weights).astype(scores.dtype)
            bottom, right = top - first + len(row_weights), left + len(column_weights)
            band[top - first : bottom, left:right] += weights[..., None] * scores
        end = rows.first_cells[i + 1] if i + 1 < len(rows.starts) else rows.cells
        yield first, band[: end - first]
        kept = len(band) - (end - 1 - first)
        band[:kept] = band[end - 1 - first :]
        band[kept:] = 0
        first = end - 1


def rows_between(cells: int, axis: Axis) -> int:
    """The number of the image's pixels, from its first, whose scores depend on the first `cells` cells alone."""
    if cells == axis.cells:
        return axis.length
    return ((2 * cells - 1) * axis.length + axis.cells) // (2 * axis.cells)


def first_cell(pixel: int, axis: Axis) -> int:
    """The first of the cells on which the scores from a pixel on depend."""
    return max(0, ((2 * pixel + 1) * axis.cells - axis.length) // (2 * axis.length))
