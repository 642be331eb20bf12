"""A trained network as an object: `isnet_jax.load(checkpoint).predict(image)`."""

import functools
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from isnet_jax import cli
from isnet_jax import config as configs
from isnet_jax.config import inference_settings
from isnet_jax.datasets import decoding, tables
from isnet_jax.errors import UserError, first_line
from isnet_jax.evaluation import exported, pictures, predictor
from isnet_jax.evaluation.exported import ExportedPredictor
from isnet_jax.evaluation.predictor import CLASSES, PROBABILITIES, Predictor, Source
from isnet_jax.evaluation.tiled_predictor import TiledPredictor, network_scores
from isnet_jax.evaluation.tiles import Tiling, make_tiling
from isnet_jax.models.isnet import ISNet
from isnet_jax.runtime import limits

AnyPredictor = Predictor | TiledPredictor | ExportedPredictor
Tile = int | tuple[int, int] | None  # pixels: the side of a square, or (height, width)
ImageLike = str | os.PathLike | Image.Image | np.ndarray  # a file, an image, or RGB uint8 (H, W, 3)
Mask = UInt8[np.ndarray, "h w"]


def load(
    checkpoint: str | os.PathLike, config: ConfigDict | str | None = None, ema: bool = False, best: bool = False
) -> "Segmenter":
    """The network of a checkpoint, ready to predict.

    checkpoint: the directory of a run or of isnet_jax.convert, an official file, a name such as isnet-ade20k-resnet50
    or hf://OWNER/NAME[@REVISION], which is downloaded once, or a file that isnet_jax.export wrote (.onnx or .stablehlo,
    which take no config, ema or best). config: for official files and names, which do not say how the network is built
    and tested: a ConfigDict, or FILE[:BACKBONE] as on the command line. ema: the moving averages of a run's weights;
    best: its best checkpoint. Raises UserError if the checkpoint cannot be read, is of another network, or needs a
    config, and for a config that cannot work.
    """
    if exported.is_export(checkpoint):
        given = [f for f, on in (("--config", config is not None), ("--ema", ema), ("--best", best)) if on]
        if given:
            raise UserError(
                f"{os.fspath(checkpoint)} is an exported network, with its config and weights in it: leave out "
                f"{given[0]}, or give it to isnet_jax.export."
            )
        return ExportedSegmenter(*exported.load(checkpoint))
    config = cli.load_config(config) if isinstance(config, str) else config
    if config is not None:
        configs.check(config)
    return Segmenter(*predictor.load(os.fspath(checkpoint), config, ema, best))


class Segmenter:
    """Predicts the class of every pixel. Threads may share it; all devices of the process work for it.

    Images may be of any size. They are padded to few shapes, one compilation each, which never changes a prediction.
    """

    def __init__(self, config: ConfigDict, model: ISNet, variables: Mapping[str, Any]):
        """variables: {"params", "batch_stats"} of `model`, which is of `config`."""
        self.config, self.model = config, model
        self._variables = variables
        self._predictors: dict[tuple[bool, bool, Tiling | None], AnyPredictor] = {}
        self._lock = threading.Lock()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; their indices are the values in a mask."""
        return predictor.class_table(self.config).names

    @property
    def palette(self) -> tuple[tables.Color, ...]:
        """The colour (r, g, b) of each class."""
        return predictor.class_table(self.config).palette

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        tta: bool = False,
        tile: Tile = None,
        tile_overlap: int | None = None,
    ) -> Mask | list[Mask]:
        """Masks of class indices, uint8 (H, W), at the size of each image as viewers show it (EXIF orientation).

        Several images, in a list or as Path.glob yields them, give a list of masks. tta: several scales and flips, as
        config.test.tta sets them. tile: cut images into tiles of this size, at their own resolution, which overlap by
        `tile_overlap` pixels, by default a quarter of the shorter side; files may then have up to 1000 megapixels, not
        100. Raises UserError for an image that cannot be read, and for a tile that cannot be.
        """
        tiling = make_tiling(tile, tile_overlap, tta)
        if isinstance(images, str | os.PathLike | Image.Image | np.ndarray):
            return self._run([images], tta, CLASSES, tiling)[0]
        return self._run(list(images), tta, CLASSES, tiling)

    def probabilities(
        self,
        image: ImageLike,
        top: int | None = None,
        tta: bool = False,
        tile: Tile = None,
        tile_overlap: int | None = None,
    ) -> Float32[np.ndarray, "h w k"] | tuple[UInt8[np.ndarray, "h w top"], Float32[np.ndarray, "h w top"]]:
        """The probability of every class at every pixel; their argmax is the mask that `predict` returns.

        With `top`, only the largest: their classes and the probabilities themselves, in falling order, which take a
        fraction of the memory: 5 bytes each. tta, tile and errors as in `predict`, and an error for a `top` below 1.
        """
        if top is not None and not 1 <= top <= len(self.classes):
            raise UserError(f"top is {top!r}; it must be from 1 to {len(self.classes)}, the number of classes.")
        return self._run([image], tta, top or PROBABILITIES, make_tiling(tile, tile_overlap, tta))[0]

    def overlay(self, image: ImageLike, mask: Mask) -> UInt8[np.ndarray, "h w 3"]:
        """The mean of an image and the colours of its mask, with white outlines between classes.

        Raises UserError if their sizes differ.
        """
        pixels = source(image).read()
        if mask.shape != pixels.shape[:2]:
            raise UserError(f"The mask is {mask.shape}, but the image {pixels.shape[:2]} (height, width).")
        return pictures.overlay(pixels, mask, self.palette)

    def predictor(self, tta: bool = False, slide: bool = False, tiling: Tiling | None = None) -> AnyPredictor:
        """What predicts in batches, for many images, as `config.inference_settings` says, or in tiles; made once."""
        with self._lock:
            key = tta, slide, tiling
            if key not in self._predictors:
                self._predictors[key] = self._make_predictor(*key)
            return self._predictors[key]

    def _make_predictor(self, tta: bool, slide: bool, tiling: Tiling | None) -> AnyPredictor:
        if tiling:
            score, where = network_scores(self.config, self.model, self._variables, tiling)
            return TiledPredictor(tiling, score, self.model.output_stride, where)
        return Predictor(self.config, self.model, self._variables, inference_settings(self.config, tta, slide))

    def _run(self, images: Sequence[ImageLike], tta: bool, output: int, tiling: Tiling | None) -> list[Any]:
        def fail(error: UserError) -> None:
            raise error

        results: list[Any] = [None] * len(images)
        sources = [source(image, max_pixels(tiling)) for image in images]
        for index, _, result in self.predictor(tta, False, tiling)(sources, fail, output) if sources else ():
            results[index] = result
        return results


class ExportedSegmenter(Segmenter):
    """A Segmenter whose network is an exported file."""

    def __init__(self, config: ConfigDict, model: ISNet, predictor: ExportedPredictor):
        """model: of `config`, for its description; predictor: what runs the file."""
        super().__init__(config, model, {})
        self._exported = predictor

    def _make_predictor(self, tta: bool, slide: bool, tiling: Tiling | None) -> AnyPredictor:
        if tta or slide:
            flag = "--tta" if tta else "--slide"
            raise UserError(
                f"An exported network predicts whole images at one scale: leave out {flag}, or give the checkpoint."
            )
        return self._exported.tiled(tiling) if tiling else self._exported


def max_pixels(tiling: Tiling | None) -> int | None:
    """The bound on the pixels of image files: None, for the default, unless the user asks for tiles."""
    return limits.MAX_TILED_PIXELS if tiling else None


def source(image: ImageLike, max_pixels: int | None = None) -> Source:
    """What a Predictor takes; raises UserError for what is no image. max_pixels: of a file, as in `decoding`."""
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        header = decoding.read_header(path, max_pixels)
        return Source(header.size, functools.partial(decoding.decode, path, header, max_pixels))
    if isinstance(image, Image.Image):
        try:
            pixels = decoding.rgb(ImageOps.exif_transpose(image))
        except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: of a damaged PNG
            raise UserError(f"An image is damaged or of a kind that cannot be read: {first_line(error)}.") from None
    elif isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        pixels = image
    else:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(
            f"An image is {found}; it must be a path, a Pillow image, or an RGB array of uint8 (H, W, 3). For an array "
            "of another kind, give Image.fromarray(array)."
        )
    if not pixels.size:
        raise UserError(f"An image is {pixels.shape[0]} x {pixels.shape[1]} pixels; it must have some.")
    return Source(pixels.shape[:2], lambda: pixels)
