"""Predictions by the network of a checkpoint, for images of mixed sizes."""

import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from isnet_jax.checkpoints.pretrained import find_checkpoint, load_network
from isnet_jax.datasets import tables
from isnet_jax.datasets.class_tables import CLASS_TABLES, ClassTable
from isnet_jax.errors import UserError
from isnet_jax.evaluation import inference
from isnet_jax.input import buckets
from isnet_jax.input.photometry import normalize
from isnet_jax.input.resizing import resize, target_size, use_one_opencv_thread
from isnet_jax.models.isnet import ISNet, create_model
from isnet_jax.runtime import compiler, sharding
from isnet_jax.runtime.threads import map_in_order

OUTPUT_COST = 0.02  # of a pixel of the prediction, relative to a pixel of the network's input
BATCH_PIXELS = 2**26  # of predictions in a batch, so that batches of large images fit in memory
AHEAD_PIXELS = 2**28  # of images decoded ahead; a decoder may take 16 bytes for each
CLASSES, PROBABILITIES = -1, 0  # what a Predictor returns; a positive number: of the most probable classes
MAX_OVERHEAD, ROUNDING = 1.5, 64  # of padding to a shape that is compiled already; pixels


class Source(NamedTuple):
    """An image to predict, which is read when its turn comes."""

    size: tuple[int, int]  # (height, width)
    read: Callable[[], np.ndarray]  # -> RGB uint8 (height, width, 3); may raise UserError


def load(
    checkpoint: str | Path,
    config: ConfigDict | None = None,
    ema: bool = False,
    best: bool = False,
    step: int | None = None,
) -> tuple[ConfigDict, ISNet, dict[str, Any]]:
    """Config, model and {"params", "batch_stats"} of a checkpoint.

    checkpoint: a directory, whose recorded config is used if `config` is None, an official file, or a name of
    `downloads.WEIGHTS` or of the Hub; ema: the moving averages of a run's weights; best: its best checkpoint; step: one
    of its checkpoints, by default the newest. Raises UserError if the checkpoint cannot be read, is of another network,
    or needs a config.
    """
    path, config = find_checkpoint(checkpoint, config)
    model = create_model(config.model)
    return config, model, load_network(path, model, ema, step, best)


def class_table(config: ConfigDict) -> ClassTable:
    """Names and colours (r, g, b) of the classes of the data set in `config`.

    Where they are unknown, classes are numbered and get distinct colours.
    """
    count, data = config.model.num_classes, config.data
    default = ClassTable(tuple(f"class {i}" for i in range(count)), tables.distinct_colors(range(1, count + 1)))
    if data.name == "folder":
        palette = tables.colors_of_named(data.folder.classes, data.folder.palette)
        table = ClassTable(tuple(name for name in data.folder.classes if name), palette or default.palette)
    else:
        table = CLASS_TABLES.get(data.name, default)
    return table if len(table.names) == len(table.palette) == count else default


class Predictor:
    """Predicts images of mixed sizes, in batches over all devices. Threads may share it.

    Images are padded to a few shapes, one compilation each: in a call, to at most config.test.max_shape_buckets, and
    later calls take the shapes of earlier ones where that costs little. The padding never changes a prediction.
    """

    def __init__(self, config: ConfigDict, model: ISNet, variables: Mapping[str, Any], settings: Mapping[str, Any]):
        """settings: keyword arguments of `inference.score_maps`."""
        compiler.enable_cache()
        self._test = config.test
        self.mesh: Mesh = sharding.make_mesh()
        self.where = sharding.describe(self.mesh)
        use_one_opencv_thread()
        self._variables = jax.device_put(variables, sharding.replicated(self.mesh))
        self._shapes = KnownShapes(config.test.max_shape_buckets)

        def step(variables, batch, output_shape, output):
            maps = inference.score_maps(
                model, variables, normalize(batch["image"]), valid_size=batch["image_size"], **settings
            )
            return reduce_maps(maps, output_shape, batch["output_size"], output, settings["average"])

        self._step = jax.jit(
            step,
            static_argnums=(2, 3),
            out_shardings=sharding.batch_sharding(self.mesh),
            compiler_options=compiler.options(self.mesh),
        )

    def __call__(
        self, sources: Sequence[Source], on_failure: Callable[[UserError], None], output: int = CLASSES
    ) -> Iterator[tuple[int, np.ndarray, Any]]:
        """Yields (index in `sources`, image uint8 (h, w, 3), prediction uint8 (h, w)), in no particular order.

        on_failure(error): called for each image that cannot be read; it is then skipped. output: CLASSES for
        predictions as above; PROBABILITIES for float32 (h, w, K) in their place; or a number, for that many of the most
        probable classes, uint8 (h, w, output), and their probabilities, float32 (h, w, output).
        """
        pending = None
        for rows, batch, output_shape in self._batches(sources, on_failure):
            results = self._step(self._variables, sharding.to_devices(batch, self.mesh), output_shape, output)
            if pending:  # fetched a batch late, so that the device never waits
                yield from self._unpad(*pending)
            pending = rows, results
        if pending:
            yield from self._unpad(*pending)

    def _unpad(self, rows: Sequence[tuple[int, np.ndarray]], results: Any) -> Iterator[tuple[int, np.ndarray, Any]]:
        on_host = jax.tree.map(np.asarray, results)
        for i, (index, image) in enumerate(rows):
            height, width = image.shape[:2]
            yield index, image, jax.tree.map(lambda x: x[i, :height, :width], on_host)  # noqa: B023 (used at once)

    def _batches(
        self, sources: Sequence[Source], on_failure: Callable[[UserError], None]
    ) -> Iterator[tuple[list[tuple[int, np.ndarray]], dict[str, np.ndarray], tuple[int, int]]]:
        """Yields the (index, image) of each batch, the batch, and the padded shape of its predictions."""
        input_sizes = [target_size(*source.size, self._test.resize, self._test.keep_ratio) for source in sources]
        sizes = np.array([(*input_size, *source.size) for input_size, source in zip(input_sizes, sources)])
        max_buckets = min(self._test.max_shape_buckets, 1 + len(sources) // self._test.batch_size)  # worth compiling
        chosen = buckets.choose_buckets(sizes, max_buckets, (1, OUTPUT_COST))
        shapes = self._shapes.padded(chosen.sizes)
        order = np.argsort(-chosen.which, kind="stable")  # the largest first: too little memory shows at once
        ahead = read_ahead(sources, input_sizes, order, on_failure)
        for bucket, group in itertools.groupby(ahead, lambda row: chosen.which[row[0]]):
            height, width, output_height, output_width = shapes[bucket]
            num_images = np.count_nonzero(chosen.which == bucket)
            fitting = max(BATCH_PIXELS // (output_height * output_width), 1)
            batch_size = min(self._test.batch_size, num_images, fitting)
            batch_size = -(-batch_size // self.mesh.size) * self.mesh.size
            while part := list(itertools.islice(group, batch_size)):
                batch = _pad(part, batch_size, (height, width))
                yield [(index, image) for index, image, _ in part], batch, (output_height, output_width)


def read_ahead(
    sources: Sequence[Source],
    input_sizes: Sequence[tuple[int, int]],
    order: Iterable[int],
    on_failure: Callable[[UserError], None],
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields (index, image, image resized to its input size) in `order`, while threads read the next ones.

    on_failure(error): called for each image that cannot be read; it is then skipped.
    """

    def read(index: int) -> tuple[int, np.ndarray, np.ndarray] | None:
        try:
            image = sources[index].read()
            size = input_sizes[index]
            return index, image, image if image.shape[:2] == size else resize(image, size)
        except UserError as error:
            on_failure(error)
            return None

    ahead = map_in_order(read, order, lambda index: math.prod(sources[index].size), AHEAD_PIXELS)
    return (row for row in ahead if row)


def reduce_maps(
    maps: Sequence[inference.ScoreMap],
    output_shape: tuple[int, int],
    output_size: Any,
    output: int,
    average: str,
    starts: inference.Starts | None = None,
) -> Any:
    """What a Predictor returns for the maps: classes, probabilities, or the most probable classes, by `output`.

    `starts` as in `inference.predict_classes`.
    """
    if output == CLASSES:
        return inference.predict_classes(maps, output_shape, output_size, starts)
    return inference.predict_probabilities(maps, output_shape, output_size, average, output or None, starts)


@functools.partial(jax.jit, static_argnums=(3, 4))
def reduce_logits(
    score_map: Array | np.ndarray,
    map_size: np.ndarray,
    size: np.ndarray,
    shape: tuple[int, int],
    output: int,
    starts: tuple[np.ndarray, np.ndarray] | None = None,
) -> Any:
    """What `reduce_maps` returns for a map of logits (B, h, w, K); sizes int (B, 2)."""
    return reduce_maps([(jnp.asarray(score_map), map_size)], shape, size, output, "logits", starts)


class KnownShapes:
    """The padded shapes that are compiled, (height, width) of input and output. Threads may share it."""

    def __init__(self, enough: int):
        """enough: from this number of shapes on, new ones are rounded up, so that they serve more sizes."""
        self._enough, self._lock = enough, threading.Lock()
        self._known: list[tuple[int, ...]] = []

    def padded(self, shapes: np.ndarray) -> list[tuple[int, ...]]:
        """For each of the shapes int (n, 4), the cheapest known one that it fits and that costs little more, or a new
        one, which is known from then on.
        """
        with self._lock:
            known = np.array(self._known).reshape(-1, 4)
            result = []
            for shape in shapes:
                costs = buckets.cost(known, (1, OUTPUT_COST))
                fits = (shape <= known).all(-1) & (costs <= MAX_OVERHEAD * buckets.cost(shape, (1, OUTPUT_COST)))
                if fits.any():
                    result.append(tuple(known[np.where(fits, costs, np.inf).argmin()].tolist()))
                else:
                    step = ROUNDING if len(self._known) >= self._enough else 1
                    result.append(tuple((-(-shape // step) * step).tolist()))
                    self._known.append(result[-1])
            return result


def _pad(
    rows: Sequence[tuple[int, np.ndarray, np.ndarray]], batch_size: int, shape: tuple[int, int]
) -> dict[str, np.ndarray]:
    """A batch of (index, image, resized image); rows without an image are of 1 x 1 pixels."""
    batch: dict[str, np.ndarray] = {
        "image": np.zeros((batch_size, *shape, 3), np.uint8),
        "image_size": np.ones((batch_size, 2), np.int32),
        "output_size": np.ones((batch_size, 2), np.int32),
    }
    for i, (_, image, resized) in enumerate(rows):
        batch["image"][i, : resized.shape[0], : resized.shape[1]] = resized
        batch["image_size"][i], batch["output_size"][i] = resized.shape[:2], image.shape[:2]
    return batch
