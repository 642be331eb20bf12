"""Predictions by the network of a checkpoint, for images of mixed sizes."""

import importlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from isnet_jax import config as configs
from isnet_jax import datasets
from isnet_jax.checkpoints.manager import CONFIG_FILE, read_config
from isnet_jax.checkpoints.pretrained import load_network
from isnet_jax.datasets import decoding, tables
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


class Task(NamedTuple):
    """An image to predict."""

    path: Path
    name: Path  # in the output: relative, without suffix
    header: decoding.Header


def load(
    checkpoint: str | Path, config: ConfigDict | None = None, ema: bool = False
) -> tuple[ConfigDict, ISNet, dict[str, Any]]:
    """Config, model and {"params", "batch_stats"} of a checkpoint.

    checkpoint: a directory, whose recorded config is used if `config` is None, or an official .pth; ema: the moving
    averages of a run's weights. Raises UserError if the checkpoint cannot be read, is of another network, or needs a
    config.
    """
    path = Path(checkpoint)
    if not path.exists():
        raise UserError(
            f"--checkpoint={checkpoint} does not exist; give the directory of a run or of "
            "isnet_jax.convert, or an official .pth file."
        )
    if config is None:
        if not path.is_dir():
            raise UserError(
                f"--checkpoint={checkpoint} is a file, which does not record how the network is built and "
                "tested: add --config=FILE[:BACKBONE], as in --config=configs/ade20k.py:resnet101."
            )
        config = recorded_config(path)
    model = create_model(config.model)
    return config, model, load_network(path, model, ema)


def recorded_config(directory: str | Path) -> ConfigDict:
    """The config of a run or converted checkpoint; fields that it does not record have their defaults.

    Fields that earlier versions recorded under other names are renamed, and those that are gone are dropped. Raises
    UserError if there is no valid config.
    """

    def with_tuples(value):  # JSON has no tuples
        if isinstance(value, dict):
            return {name: with_tuples(x) for name, x in value.items()}
        return tuple(map(with_tuples, value)) if isinstance(value, list) else value

    recorded = configs.upgrade(read_config(directory))
    try:
        config = configs.default(recorded["model"]["backbone"])
        with config.unlocked():  # additional facts, such as train_examples, do no harm
            config.update(with_tuples(recorded))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{directory}/{CONFIG_FILE} does not hold a config of isnet_jax ({reason}); give "
            "the config as --config=FILE."
        ) from None
    configs.check(config)
    return config


def class_names_and_palette(config: ConfigDict) -> tuple[Sequence[str], Sequence[Sequence[int]]]:
    """Names and colours (r, g, b) of the classes of the data set in `config`.

    Where they are unknown, classes are numbered and get distinct colours.
    """
    count, data = config.model.num_classes, config.data
    default_names = [f"class {i}" for i in range(count)]
    default_palette = tables.distinct_colors(range(1, count + 1))
    try:
        if data.name == "folder":
            names = [name for name in data.folder.classes if name]
            palette = tables.colors_of_named(data.folder.classes, data.folder.palette) or default_palette
        else:
            module, _, name = datasets.CLASSES[data.name].partition(".")
            builder = getattr(importlib.import_module(f"isnet_jax.datasets.{module}"), name)
            names, palette = builder.NAMES, builder.PALETTE
    except (ImportError, KeyError):  # builders need TensorFlow, which is not installed; or the data set is unknown
        return default_names, default_palette
    return (names, palette) if len(names) == len(palette) == count else (default_names, default_palette)


class Predictor:
    """Predicts images of mixed sizes, in batches over all devices.

    Images are padded to at most config.test.max_shape_buckets shapes, one compilation each. The padding never changes a
    prediction.
    """

    def __init__(self, config: ConfigDict, model: ISNet, variables: Mapping[str, Any], settings: Mapping[str, Any]):
        """settings: keyword arguments of `inference.score_maps`."""
        compiler.enable_cache()
        self._test = config.test
        self.mesh: Mesh = sharding.make_mesh()
        use_one_opencv_thread()
        self._variables = jax.device_put(variables, sharding.replicated(self.mesh))

        def step(variables, batch, output_shape):
            maps = inference.score_maps(
                model, variables, normalize(batch["image"]), valid_size=batch["image_size"], **settings
            )
            return inference.predict_classes(maps, output_shape, batch["output_size"])

        self._step = jax.jit(
            step,
            static_argnums=2,
            out_shardings=sharding.batch_sharding(self.mesh),
            compiler_options=compiler.options(self.mesh),
        )

    def __call__(
        self, tasks: Sequence[Task], on_failure: Callable[[UserError], None]
    ) -> Iterator[tuple[Task, np.ndarray, np.ndarray]]:
        """Yields (task, image (h, w, 3), prediction (h, w)), both uint8.

        on_failure(error): called for each image that cannot be read; it is then skipped.
        """
        pending = None
        for rows, batch, output_shape in self._batches(tasks, on_failure):
            predictions = self._step(self._variables, sharding.to_devices(batch, self.mesh), output_shape)
            if pending:  # fetched a batch late, so that the device never waits
                yield from self._unpad(*pending)
            pending = rows, predictions
        if pending:
            yield from self._unpad(*pending)

    def _unpad(
        self, rows: Sequence[tuple[Task, np.ndarray]], predictions: Array
    ) -> Iterator[tuple[Task, np.ndarray, np.ndarray]]:
        for (task, image), prediction in zip(rows, np.asarray(predictions)):
            yield task, image, prediction[: image.shape[0], : image.shape[1]]

    def _input_size(self, task: Task) -> tuple[int, int]:
        """(height, width) of the image as the network sees it."""
        height, width = target_size(*task.header.size, self._test.resize, self._test.keep_ratio)
        return max(height, 1), max(width, 1)

    def _batches(
        self, tasks: Sequence[Task], on_failure: Callable[[UserError], None]
    ) -> Iterator[tuple[list[tuple[Task, np.ndarray]], dict[str, np.ndarray], tuple[int, int]]]:
        """Yields the (task, image) of each batch, the batch, and the padded shape of its predictions."""
        sizes = np.array([(*self._input_size(task), *task.header.size) for task in tasks])
        max_buckets = min(self._test.max_shape_buckets, 1 + len(tasks) // self._test.batch_size)  # worth compiling
        chosen = buckets.choose_buckets(sizes, max_buckets, (1, OUTPUT_COST))
        order = np.argsort(-chosen.which, kind="stable")  # the largest first: too little memory shows at once

        def read(index):
            task = tasks[index]
            try:
                image = decoding.decode(task.path, task.header)
                return index, task, image, resize(image, self._input_size(task))
            except UserError as error:
                on_failure(error)
                return index, None, None, None

        ahead = map_in_order(read, order, lambda index: np.prod(tasks[index].header.size), AHEAD_PIXELS)
        for bucket, group in itertools.groupby(ahead, lambda row: chosen.which[row[0]]):
            height, width, output_height, output_width = chosen.sizes[bucket].tolist()
            num_images = np.count_nonzero(chosen.which == bucket)
            fitting = max(BATCH_PIXELS // (output_height * output_width), 1)
            batch_size = min(self._test.batch_size, num_images, fitting)
            batch_size = -(-batch_size // self.mesh.size) * self.mesh.size
            rows = (row[1:] for row in group if row[1])
            while part := list(itertools.islice(rows, batch_size)):
                batch = _pad(part, batch_size, (height, width))
                yield [(task, image) for task, image, _ in part], batch, (output_height, output_width)


def _pad(
    rows: Sequence[tuple[Task, np.ndarray, np.ndarray]], batch_size: int, shape: tuple[int, int]
) -> dict[str, np.ndarray]:
    """A batch of (task, image, resized image); rows without an image are of 1 x 1 pixels."""
    batch: dict[str, np.ndarray] = {
        "image": np.zeros((batch_size, *shape, 3), np.uint8),
        "image_size": np.ones((batch_size, 2), np.int32),
        "output_size": np.ones((batch_size, 2), np.int32),
    }
    for i, (_, image, resized) in enumerate(rows):
        batch["image"][i, : resized.shape[0], : resized.shape[1]] = resized
        batch["image_size"][i], batch["output_size"][i] = resized.shape[:2], image.shape[:2]
    return batch
