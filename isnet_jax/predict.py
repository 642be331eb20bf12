"""Predicts the class of every pixel of images.

usage: python -m isnet_jax.predict --checkpoint=DIR [--tta] [--format=FORMAT] --output=DIR IMAGE_OR_FOLDER...
       python -m isnet_jax.predict --checkpoint=FILE.pth --config=FILE[:BACKBONE] ... --output=DIR IMAGE_OR_FOLDER...

  --checkpoint  the directory of a training run or of isnet_jax.convert, whose config is then used; or an official .pth
  --output      the directory for NAME.png (class indices, in the data set's colours) and NAME_overlay.jpg (to look at);
                the folders inside a folder are kept, files that exist are replaced
  --ema         the moving averages of a run's weights, if it kept any
  --tta         several scales and the mirrored image as config.test.tta says: better, and several times slower
  --format      cityscapes, ade20k or lip: only NAME.png, grey, with the values that benchmark's server expects

Images are JPEG, PNG, WebP or BMP files of any size and colour mode. One that its EXIF orientation turns is predicted
upright, as viewers show it, and its prediction has the upright size. A file that cannot be read is skipped with its
reason; the exit code is then 1.
"""

import collections
import concurrent.futures
import functools
import importlib
import itertools
import os
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import numpy as np
import tqdm
from absl import flags
from PIL import Image

from isnet_jax import canvases, checkpoints, convert, datasets, decoding, inference, pictures, sharding, stored
from isnet_jax import config as configs
from isnet_jax.console import say
from isnet_jax.datasets import tables
from isnet_jax.datasets.survey import in_order
from isnet_jax.errors import UserError, printable
from isnet_jax.models import create_model
from isnet_jax.photometry import normalize
from isnet_jax.resizing import resize, target_size

FORMATS = {  # the value of each class in the files of a benchmark
    "cityscapes": (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33),  # labelIds
    "ade20k": tuple(range(1, 151)),
    "lip": tuple(range(20)),
}
OUTPUT_COST = 0.02  # of a pixel of the prediction, beside one of the network's input
BATCH_PIXELS = 2**26  # of predictions at once, so that batches of large images fit in memory
AHEAD_PIXELS = 2**28  # of images decoded ahead, which a decoder may take 16 bytes for, each


class Task(NamedTuple):
    """An image file, its name in the output (a relative Path without suffix), and what its header says."""

    path: Path
    name: Path
    header: decoding.Header


def load(checkpoint, config=None, ema=False):
    """Config, model and {"params", "batch_stats"} of a checkpoint.

    checkpoint: a directory, whose own config is taken where `config` is None, or an official .pth; ema: of a run, the
    moving averages. Raises UserError if it cannot be read, is of another network, or needs a config.
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
                f"--checkpoint={checkpoint} is a file, which does not say how the network is built and "
                "tested: add --config=FILE[:BACKBONE], as in --config=configs/ade20k.py:resnet101."
            )
        config = recorded_config(path)
    model = create_model(config.model)
    return config, model, convert.load_network(path, model, ema)


def recorded_config(directory):
    """The config of a run or converted checkpoint, with defaults for fields that are younger; raises UserError."""

    def frozen(value):  # JSON has no tuples
        if isinstance(value, dict):
            return {name: frozen(x) for name, x in value.items()}
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    record = checkpoints.read_config(directory)
    try:
        config = configs.default(record["model"]["backbone"])
        with config.unlocked():  # what else was recorded does no harm
            config.update(frozen(record))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{directory}/{checkpoints.CONFIG_FILE} does not hold a config of isnet_jax ({reason}); give "
            "the config as --config=FILE."
        ) from None
    configs.check(config)
    return config


def classes(config):
    """Names and palette of the data set in `config`; numbers and distinct colours where they cannot be told."""
    count, data = config.model.num_classes, config.data
    numbered = [f"class {i}" for i in range(count)], tables.distinct_colors(range(1, count + 1))
    try:
        if data.name == "folder":
            names, palette = [name for name in data.folder.classes if name], data.folder.palette or numbered[1]
        else:
            module, _, name = datasets.CLASSES[data.name].partition(".")
            builder = getattr(importlib.import_module(f"isnet_jax.datasets.{module}"), name)
            names, palette = builder.NAMES, builder.PALETTE
    except (ImportError, KeyError):  # TensorFlow, which builders need, is not installed; or the data set is unknown
        return numbered
    return (names, palette) if len(names) == len(palette) == count else numbered


def find_images(words):
    """{name in the output, a relative Path without suffix: path} of the files and folders given.

    Of a folder all images below count, by their suffix, but for hidden ones. Raises UserError for what does not exist,
    for a folder without images, and where two images would have one name.
    """

    def stop(error):
        raise UserError(f"The folder {error.filename} cannot be read ({error.strerror}).")

    found = {}
    for word in words:
        path = Path(word)
        if path.is_dir():
            files = sorted(
                Path(folder) / name
                for folder, _, names in os.walk(path, onerror=stop)
                for name in names
                if name.lower().endswith(decoding.SUFFIXES)
            )
            named = [(file.relative_to(path), file) for file in files]
            named = [(name, file) for name, file in named if not any(part.startswith(".") for part in name.parts)]
            if not named:
                raise UserError(f"The folder {word} holds no images ({', '.join(decoding.SUFFIXES)}).")
        elif path.exists():
            named = [(Path(path.name), path)]
        else:
            raise UserError(f"The image or folder {word} does not exist.")
        for name, file in named:
            name = name.with_suffix("")
            if name in found:
                raise UserError(
                    f"{found[name]} and {file} would both be written to {name}.png: rename one, or predict "
                    "them into different --output directories."
                )
            found[name] = file
    return found


def check_output(output, images, words):
    """Raises UserError if writing to the directory `output` would touch an input, or anything outside it."""
    root = Path(output).resolve()
    for word in words:
        path = Path(word).resolve()
        if root == path.parent and path.is_file() or path.is_dir() and root.is_relative_to(path):
            raise UserError(f"--output={output} is where the images of {word} are; choose a directory apart from them.")
    inputs = {path.resolve(): path for path in images.values()}
    for name in images:
        for target in targets(root, name):
            if target in inputs:
                raise UserError(
                    f"--output={output} is such that {inputs[target]}, an image to predict, would be "
                    "overwritten; choose another directory."
                )
    for parent in {name.parent for name in images}:
        if not (root / parent).resolve().is_relative_to(root):
            raise UserError(
                f"{Path(output) / parent} leads out of --output={output} by a symbolic link: remove the "
                "link, or choose another directory."
            )


def targets(root, name):
    """The files written for an image: its prediction and the overlay."""
    return root / name.with_name(f"{name.name}.png"), root / name.with_name(f"{name.name}_overlay.jpg")


class Predictor:
    """Predictions of images of mixed sizes, in batches over all devices.

    Sizes share programs, at most config.test.max_programs; the padding this takes changes nothing in a prediction.
    """

    def __init__(self, config, model, variables, settings):
        """settings: keyword arguments of `inference.score_maps`."""
        self.test = config.test
        self.mesh = sharding.make_mesh()
        self.variables = jax.device_put(variables, sharding.replicated(self.mesh))

        def step(variables, batch, output_shape):
            maps = inference.score_maps(
                model, variables, normalize(batch["image"]), valid_size=batch["image_size"], **settings
            )
            return inference.predict_classes(maps, output_shape, batch["output_size"])

        self._step = jax.jit(step, static_argnums=2, out_shardings=sharding.split_batch(self.mesh))

    def __call__(self, tasks, on_failure):
        """Yields (task, image uint8 (h, w, 3), classes uint8 (h, w)); on_failure(error) is told what cannot be read."""
        pending = None
        for rows, batch, shape in self._batches(tasks, on_failure):
            predictions = self._step(self.variables, sharding.to_devices(batch, self.mesh), shape)
            if pending:  # fetched a batch late, so that the device never waits
                yield from self._unpack(*pending)
            pending = rows, predictions
        if pending:
            yield from self._unpack(*pending)

    def _unpack(self, rows, predictions):
        for (task, image), prediction in zip(rows, np.asarray(predictions)):
            yield task, image, prediction[: image.shape[0], : image.shape[1]]

    def _size(self, task):
        """Of the network's input."""
        return tuple(max(n, 1) for n in target_size(*task.header.size, self.test.resize, self.test.keep_ratio))

    def _batches(self, tasks, on_failure):
        sizes = np.array([(*self._size(task), *task.header.size) for task in tasks])
        programs = min(self.test.max_programs, 1 + len(tasks) // self.test.batch_size)  # worth compiling
        chosen = canvases.choose(sizes, programs, (1, OUTPUT_COST))
        order = np.argsort(-chosen.which, kind="stable")  # the largest first: too little memory shows at once

        def read(index):
            task = tasks[index]
            try:
                image = decoding.decode(task.path, task.header)
                return index, task, image, resize(image, self._size(task))
            except UserError as error:
                on_failure(error)
                return index, None, None, None

        ahead = in_order(read, order, lambda index: np.prod(tasks[index].header.size), AHEAD_PIXELS)
        for canvas, group in itertools.groupby(ahead, lambda row: chosen.which[row[0]]):
            height, width, *shape = chosen.sizes[canvas].tolist()
            count = min(
                self.test.batch_size,
                np.count_nonzero(chosen.which == canvas),
                max(BATCH_PIXELS // (shape[0] * shape[1]), 1),
            )
            count = -(-count // self.mesh.size) * self.mesh.size
            rows = (row[1:] for row in group if row[1])
            while part := list(itertools.islice(rows, count)):
                batch = {
                    "image": np.zeros((count, height, width, 3), np.uint8),
                    "image_size": np.ones((count, 2), np.int32),
                    "output_size": np.ones((count, 2), np.int32),
                }
                for i, (_, image, resized) in enumerate(part):
                    batch["image"][i, : resized.shape[0], : resized.shape[1]] = resized
                    batch["image_size"][i], batch["output_size"][i] = resized.shape[:2], image.shape[:2]
                yield [(task, image) for task, image, _ in part], batch, tuple(shape)


def overlay(image, prediction, palette):
    """image (H, W, 3) and the colours of prediction (H, W), half and half, with contours -> uint8 (H, W, 3)."""
    colors = pictures.colorize(prediction, palette)
    result = cv2.addWeighted(image, 0.5, colors, 0.5, 0)
    contour = np.zeros(prediction.shape, bool)
    contour[1:] |= prediction[1:] != prediction[:-1]
    contour[:, 1:] |= prediction[:, 1:] != prediction[:, :-1]
    result[contour] = 255
    return result


def save(path, image, **options):
    """Writes a Pillow image to a file that is never seen half-written; the folders above it are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with stored.replacing(path) as partial:
        image.save(partial, {".png": "PNG", ".jpg": "JPEG"}[path.suffix], **options)


def _write(root, task, image, prediction, palette, values):
    """Writes the files of an image; returns the pixels of each class, int64 (256,)."""
    png, jpg = targets(root, task.name)
    if values:
        save(png, Image.fromarray(np.array(values, np.uint8)[prediction]))
    else:
        indices = Image.fromarray(prediction)
        indices.putpalette(pictures.colorize(np.arange(256), palette).tobytes())
        save(png, indices)
        save(jpg, Image.fromarray(overlay(image, prediction, palette)), quality=90)
    return np.bincount(prediction.ravel(), minlength=256)


def _define_flags():
    for name in "checkpoint", "output":
        flags.DEFINE_string(name, None, name, required=True)
    flags.DEFINE_boolean("ema", False, "moving averages")
    flags.DEFINE_boolean("tta", False, "several scales and mirroring")
    flags.DEFINE_enum("format", None, list(FORMATS), "a benchmark's")


def _main(config, values, *words):
    if not words:
        raise flags.Error("IMAGE_OR_FOLDER is missing")
    images = find_images(words)
    check_output(values.output, images, words)
    config, model, variables = load(values.checkpoint, config, values.ema)
    file_values = FORMATS.get(values.format)
    if file_values and len(file_values) != config.model.num_classes:
        raise UserError(
            f"--format={values.format} is for networks of {len(file_values)} classes; this one has "
            f"{config.model.num_classes}."
        )
    predictor = Predictor(config, model, variables, configs.inference_settings(config, values.tta))
    names, palette = classes(config)
    say(
        f"{config.model.backbone} ISNet, {config.model.num_classes} classes, {predictor.mesh.size} "
        f"{predictor.mesh.devices.flat[0].device_kind} device{'s' if predictor.mesh.size > 1 else ''}, "
        f"{len(images)} image{'s' if len(images) > 1 else ''}"
    )
    try:
        failures, pixels = _predict(predictor, images, Path(values.output), palette, file_values)
    except OSError as error:
        raise UserError(
            f"--output={values.output} cannot be written ({error}); make room, or choose another directory."
        ) from None
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            "The device has too little memory for these images: add --config=FILE with a smaller "
            "--config.test.batch_size, or with --config.test.resize=(LONG,SHORT) "
            f"({str(error).splitlines()[0][:200]})."
        ) from None
    done = len(images) - failures
    if done:
        common = pixels.argsort()[::-1][:5]
        shares = 100 * pixels / pixels.sum()
        say("commonest: " + ", ".join(f"{names[i]} {shares[i]:.1f} %" for i in common if pixels[i]))
        say(f"{done} image{'s' if done > 1 else ''} predicted: {values.output}")
    if failures:
        raise UserError(
            f"{failures} of {len(images)} images could not be predicted, for the reasons above. Mend those "
            f"files or leave them out; {done or 'no'} predictions are in {values.output}."
        )


def _predict(predictor, images, root, palette, file_values):
    """Predicts and writes {name: path}; returns how many failed, and the pixels of each class in the others."""
    failures, pixels, writing = [], 0, collections.deque()

    def fail(error):
        failures.append(error)
        tqdm.tqdm.write(printable(f"skipped: {error}"), file=sys.stderr)

    def task(item):
        try:
            return Task(item[1], item[0], decoding.read_header(item[1]))
        except UserError as error:
            return fail(error)

    root.mkdir(parents=True, exist_ok=True)  # if it cannot be, that shows before any work
    tasks = [
        task
        for task in tqdm.tqdm(
            in_order(task, images.items()), "reading headers", len(images), leave=False, unit=" images", disable=None
        )
        if task
    ]
    write = functools.partial(_write, root, palette=palette, values=file_values)
    workers = min(16, os.cpu_count())
    with (
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
        tqdm.tqdm(total=len(tasks), desc="predicting", unit=" images", disable=None) as bar,
    ):
        for result in predictor(tasks, fail) if tasks else ():
            writing.append(pool.submit(write, *result))
            while len(writing) > 2 * workers or writing and writing[0].done():
                pixels = pixels + writing.popleft().result()
                bar.update()
        for future in writing:
            pixels = pixels + future.result()
            bar.update()
    return len(failures), pixels


if __name__ == "__main__":
    from isnet_jax import command

    command.run(
        _main, __doc__, _define_flags, needs_config=False, goes_on="from the first image", most_words=sys.maxsize
    )
