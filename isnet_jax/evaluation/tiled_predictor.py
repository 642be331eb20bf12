"""Predictions of images larger than the network can take at once, tile by tile."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from isnet_jax.config import inference_settings
from isnet_jax.errors import UserError
from isnet_jax.evaluation import inference, tiles
from isnet_jax.evaluation.predictor import BATCH_PIXELS, CLASSES, Source, read_ahead, reduce_logits
from isnet_jax.evaluation.tiles import GRID, Axis, Tiling
from isnet_jax.input.photometry import normalize
from isnet_jax.models.isnet import ISNet
from isnet_jax.runtime import compiler, sharding

# (tiles uint8 (h, w, 3), their number) -> the score map of each, at least (ceil(h / stride), ceil(w / stride), K)
ScoreTiles = Callable[[Iterator[np.ndarray], int], Iterator[np.ndarray]]


@dataclasses.dataclass(eq=False)
class _Image:
    """An image that is being predicted."""

    index: int
    pixels: np.ndarray
    rows: Axis
    columns: Axis


class TiledPredictor:
    """Predicts images as `Predictor` does, but in tiles at their own resolution, whatever config.test.resize says.

    An image that is no larger than a tile is predicted as a whole. Of the others, memory holds the pixels, the result,
    and the scores of one row of tiles at the network's stride.
    """

    def __init__(self, tiling: Tiling, score: ScoreTiles, stride: int, where: str):
        """stride: of the score maps; where: what computes `score`, in words."""
        self.tiling = tiling
        self._score, self._stride = score, stride
        height, width = tiling.size
        self.where = f"{where}, tiles of {height}x{width} that overlap by {tiling.overlap}"

    def num_tiles(self, sources: Sequence[Source]) -> int:
        """The number of tiles of all images."""
        return sum(math.prod(len(axis.starts) for axis in self._axes(source.size)) for source in sources)

    def __call__(
        self,
        sources: Sequence[Source],
        on_failure: Callable[[UserError], None],
        output: int = CLASSES,
        on_tile: Callable[[], Any] = lambda: None,
    ) -> Iterator[tuple[int, np.ndarray, Any]]:
        """As `Predictor.__call__`, in the order of `sources`; calls on_tile() for each tile that is predicted."""
        in_flight: collections.deque[_Image] = collections.deque()  # the image of each tile that is being scored

        def cut() -> Iterator[np.ndarray]:
            sizes = [source.size for source in sources]
            for index, pixels, _ in read_ahead(sources, sizes, range(len(sources)), on_failure):
                image = _Image(index, pixels, *self._axes(pixels.shape[:2]))
                for top, left in itertools.product(image.rows.starts, image.columns.starts):
                    in_flight.append(image)
                    yield pixels[top : top + self.tiling.size[0], left : left + self.tiling.size[1]]

        def scores_of(group):
            for _, scores in group:
                on_tile()
                yield scores

        scored = ((in_flight.popleft(), scores) for scores in self._score(cut(), self.num_tiles(sources)))
        for image, group in itertools.groupby(scored, lambda pair: pair[0]):
            yield image.index, image.pixels, self._assemble(image, scores_of(group), output)

    def _axes(self, size: Sequence[int]) -> tuple[Axis, Axis]:
        """The tiles along the height and the width of an image of `size`."""
        rows, columns = (
            tiles.place(length, tile, self.tiling.overlap, self._stride) for length, tile in zip(size, self.tiling.size)
        )
        return rows, columns

    def _assemble(self, image: _Image, maps: Iterator[np.ndarray], output: int) -> Any:
        """The result for an image, as `output` says, of the score maps of its tiles."""
        height, width = image.pixels.shape[:2]
        result, done = None, 0
        for first, band in tiles.blend(maps, image.rows, image.columns):
            ready = tiles.rows_between(first + len(band), image.rows)
            for area, part in self._reduce(image, first, band, (done, ready), output):
                if result is None:
                    result = jax.tree.map(lambda x: np.empty((height, width, *x.shape[2:]), x.dtype), part)
                for whole, x in zip(jax.tree.leaves(result), jax.tree.leaves(part)):
                    whole[area] = x
            done = ready
        return result

    def _reduce(
        self, image: _Image, first: int, band: np.ndarray, between: tuple[int, int], output: int
    ) -> Iterator[tuple[tuple[slice, slice], Any]]:
        """Yields (area, result there) for the rows `between` (start, end) of the image, which depend on a band alone.

        Every area is computed at the same shape, so that one program serves all images.
        """
        height, width = self.tiling.size[0] + GRID, self.tiling.size[1]
        cells = self.tiling.size[0] // self._stride + 1, width // self._stride + 3
        sizes = np.array([[image.rows.cells, image.columns.cells], image.pixels.shape[:2]], np.int32)
        for top, left in itertools.product(range(*between, height), range(0, image.columns.length, width)):
            column = tiles.first_cell(left, image.columns)
            part = band[:, column : column + cells[1]]
            padded = np.zeros((1, *cells, band.shape[2]), band.dtype)
            padded[0, : part.shape[0], : part.shape[1]] = part
            starts = np.array([[top, left]], np.int32), np.array([[first, column]], np.int32)
            reduced = reduce_logits(padded, sizes[:1], sizes[1:], (height, width), output, starts)
            area = slice(top, min(top + height, between[1])), slice(left, min(left + width, image.columns.length))
            shape = [part.stop - part.start for part in area]
            yield area, jax.tree.map(lambda x: np.asarray(x)[0, : shape[0], : shape[1]], reduced)  # noqa: B023


def network_scores(
    config: ConfigDict, model: ISNet, variables: Mapping[str, Any], tiling: Tiling
) -> tuple[ScoreTiles, str]:
    """What scores tiles by a network, in batches of up to config.test.batch_size over all devices, by one program; and
    what computes it, in words.

    Tiles that are smaller than `tiling.size` are padded, which does not change their scores.
    """
    compiler.enable_cache()
    mesh: Mesh = sharding.make_mesh()
    on_devices = jax.device_put(variables, sharding.replicated(mesh))
    settings = inference_settings(config)

    def step(variables, batch):
        images = normalize(batch["image"])
        return inference.score_maps(model, variables, images, valid_size=batch["image_size"], **settings)[0][0]

    step = jax.jit(step, out_shardings=sharding.batch_sharding(mesh), compiler_options=compiler.options(mesh))

    def score(cut: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
        fitting = max(BATCH_PIXELS // math.prod(tiling.size), 1)
        batch_size = min(config.test.batch_size, count, fitting)
        batch_size = -(-batch_size // mesh.size) * mesh.size
        pending = None
        while part := list(itertools.islice(cut, batch_size)):
            batch = {
                "image": np.zeros((batch_size, *tiling.size, 3), np.uint8),
                "image_size": np.ones((batch_size, 2), np.int32),
            }
            for i, tile in enumerate(part):
                batch["image"][i, : tile.shape[0], : tile.shape[1]] = tile
                batch["image_size"][i] = tile.shape[:2]
            maps = step(on_devices, sharding.to_devices(batch, mesh))
            if pending:  # fetched a batch late, so that the device never waits
                yield from np.asarray(pending[1])[: pending[0]]
            pending = len(part), maps
        if pending:
            yield from np.asarray(pending[1])[: pending[0]]

    return score, sharding.describe(mesh)
