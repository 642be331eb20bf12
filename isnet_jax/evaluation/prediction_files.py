"""The images to predict, and the files their predictions are written to."""

import collections
import concurrent.futures
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm
from ml_collections import ConfigDict
from PIL import Image

from isnet_jax.errors import UserError, printable, translating_disk_and_memory_errors
from isnet_jax.evaluation import pictures, prediction_inputs
from isnet_jax.evaluation.predictor import AHEAD_PIXELS, CLASSES, Source
from isnet_jax.evaluation.segmenter import AnyPredictor, Tile, load, max_pixels, source
from isnet_jax.evaluation.tiled_predictor import TiledPredictor
from isnet_jax.evaluation.tiles import make_tiling
from isnet_jax.runtime import files
from isnet_jax.runtime.console import say
from isnet_jax.runtime.threads import map_in_order, num_workers

FORMATS = {  # the value of each class in the files that a benchmark's server expects
    "cityscapes": (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33),  # labelIds
    "ade20k": tuple(range(1, 151)),
    "lip": tuple(range(20)),
}
RESUME_HINT = "from the first image"
MEMORY_ADVICE = "add --config=FILE with a smaller --config.test.batch_size, or with --config.test.resize=(LONG,SHORT)"
TILED_MEMORY_ADVICE = "give a smaller --tile, or add --config=FILE with a smaller --config.test.batch_size"
MOST_FREQUENT = 5  # classes printed at the end


def predict_images(
    inputs: Sequence[str],
    output: Path,
    checkpoint: str,
    config: ConfigDict | None = None,
    *,
    ema: bool = False,
    best: bool = False,
    tta: bool = False,
    slide: bool = False,
    file_format: str | None = None,
    top: int = 0,
    tile: Tile = None,
    tile_overlap: int | None = None,
) -> None:
    """Predicts the images in `inputs`, files and folders, and writes them to the directory `output`.

    checkpoint, config, ema and best as in `predictor.load`; tta and slide as in `config.inference_settings`;
    file_format: one of FORMATS, or None for the class indices and an overlay; top: above 0, the probabilities of that
    many classes are written, too; tile and tile_overlap as in `tiles.make_tiling`. Raises UserError for anything the
    user can correct and, at the end, if some images could not be predicted.
    """
    tiling = make_tiling(tile, tile_overlap, tta, slide)
    images, passed_over = prediction_inputs.find_images(inputs)
    prediction_inputs.check_output(output, images, inputs)
    segmenter = load(checkpoint, config, ema, best)
    model, names, palette = segmenter.model, segmenter.classes, segmenter.palette
    file_values = FORMATS[file_format] if file_format else None
    if file_values and len(file_values) != model.num_classes:
        raise UserError(
            f"--format={file_format} is for networks of {len(file_values)} classes; this one has {model.num_classes}."
        )
    predictor = segmenter.predictor(tta, slide, tiling)
    say(
        f"{model.description}, {model.num_classes} classes, {predictor.where}, "
        f"{len(images)} image{'s' if len(images) > 1 else ''}"
    )
    advice = TILED_MEMORY_ADVICE if tiling else MEMORY_ADVICE
    with translating_disk_and_memory_errors(f"The prediction into {output}", "--output", RESUME_HINT, advice):
        num_failures, pixels = predict_files(
            predictor, images, output, palette, file_values, min(top, model.num_classes)
        )
    num_predicted = len(images) - num_failures
    if num_predicted:
        shares = pixels / pixels.sum()
        frequent = [i for i in pixels.argsort()[::-1][:MOST_FREQUENT] if pixels[i]]
        say("most frequent classes: " + ", ".join(f"{names[i]} {100 * shares[i]:.1f} %" for i in frequent))
        say(f"{num_predicted} image{'s' if num_predicted > 1 else ''} predicted: {output}")
    if passed_over:
        say(f"passed over: {prediction_inputs.describe(passed_over)}")
    if num_failures:
        raise UserError(
            f"{num_failures} of {len(images)} images could not be predicted, for the reasons above. Repair those "
            f"files or leave them out; {num_predicted or 'no'} predictions are in {output}."
        )


def _write(
    root: Path,
    name: Path,
    image: np.ndarray,
    result: Any,
    palette: Sequence[Sequence[int]],
    file_values: Sequence[int] | None,
) -> np.ndarray:
    """Writes the files of an image; returns the pixels of each class, int64 (256,).

    result: as `Predictor.__call__` yields it, with or without probabilities.
    """
    prediction_path, overlay_path, confidence_path, scores_path = prediction_inputs.output_paths(root, name)
    prediction = result[0][..., 0] if isinstance(result, tuple) else result
    if file_values:
        pictures.save_image(prediction_path, Image.fromarray(pictures.look_up(np.array(file_values), prediction)))
    else:
        pictures.save_image(prediction_path, pictures.indexed(prediction, palette))
        pictures.save_image(overlay_path, Image.fromarray(pictures.overlay(image, prediction, palette)), quality=90)
    if isinstance(result, tuple):
        classes, probabilities = result
        pictures.save_image(confidence_path, Image.fromarray(np.rint(255 * probabilities[..., 0]).astype(np.uint8)))
        with files.atomic_write(scores_path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, classes=classes, probabilities=probabilities.astype(np.float16))
    counts = [np.bincount(prediction[rows].ravel(), minlength=256) for rows in pictures.bands(prediction)]
    return np.sum(counts, axis=0)


def predict_files(
    predictor: AnyPredictor,
    images: Mapping[Path, Path],
    root: Path,
    palette: Sequence[Sequence[int]],
    file_values: Sequence[int] | None,
    top: int = 0,
) -> tuple[int, np.ndarray]:
    """Predicts and writes {name: path}; returns the number of failures, and the pixels of each class in the others.

    file_values: the value written for each class, or None for class indices with a palette, and an overlay; top: the
    number of classes whose probabilities are written.
    """
    failures: list[UserError] = []

    def on_failure(error):
        failures.append(error)
        tqdm.tqdm.write(printable(f"skipped: {error}"), file=sys.stderr)

    root.mkdir(parents=True, exist_ok=True)  # first, so that a failure costs no work
    tiled = predictor if isinstance(predictor, TiledPredictor) else None
    named_sources = _read_headers(images, on_failure, max_pixels(tiled.tiling if tiled else None))
    names, sources = list(named_sources), list(named_sources.values())
    write = functools.partial(_write, root, palette=palette, file_values=file_values)
    workers = num_workers()
    pixels = np.zeros(256, np.int64)
    writing: collections.deque[tuple[concurrent.futures.Future, int]] = collections.deque()  # with its pixels
    total, unit = (tiled.num_tiles(sources), " tiles") if tiled else (len(sources), " images")
    with (
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
        tqdm.tqdm(total=total, desc="predicting", unit=unit, disable=None) as bar,
    ):

        def finish() -> np.ndarray:
            if not tiled:
                bar.update()
            return writing.popleft()[0].result()

        args = (sources, on_failure, top or CLASSES)
        predictions = tiled(*args, bar.update) if tiled else predictor(*args)
        for index, image, result in predictions if sources else ():
            writing.append((pool.submit(write, names[index], image, result), math.prod(image.shape[:2])))
            del image, result  # large images wait here alone
            while writing and (
                writing[0][0].done() or len(writing) > 2 * workers or sum(size for _, size in writing) > AHEAD_PIXELS
            ):
                pixels += finish()
        while writing:
            pixels += finish()
    return len(failures), pixels


def _read_headers(
    images: Mapping[Path, Path], on_failure: Callable[[UserError], None], max_pixels: int | None
) -> dict[Path, Source]:
    """The sources of {name: path}, without those whose header cannot be read. max_pixels: as in `segmenter.source`."""

    def read(item):
        name, path = item
        try:
            return name, source(path, max_pixels)
        except UserError as error:
            on_failure(error)
            return None

    found = map_in_order(read, images.items())
    bar = tqdm.tqdm(found, "reading headers", len(images), leave=False, unit=" images", disable=None)
    return dict(row for row in bar if row)
