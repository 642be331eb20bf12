"""Pictures of the report as data URIs: photographs, class maps, errors, the confusion matrix of many classes."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from isnet_jax.evaluation import pictures
from isnet_jax.labels import IGNORED

THUMBNAIL = 480  # pixels of its longer side
JPEG_QUALITY = 82
ERROR_COLOR = 214, 40, 40
HIT_COLOR, MISS_COLOR = [64, 132, 208], [218, 98, 46]  # of the confusion matrix
RIGHT, WRONG, UNLABELLED = range(3)  # the values of an error layer
LAYER_COLORS = [255, 255, 255, *ERROR_COLOR, 40, 40, 40]
LAYER_OPACITY = bytes([140, 190, 180])


def photo(pixels: np.ndarray, max_side: int | None = None) -> str:
    """RGB pixels (H, W, 3), uint8, as a JPEG; a longer side than `max_side` is scaled to it."""
    picture = _shrunk(Image.fromarray(pixels), max_side, Image.Resampling.LANCZOS)
    return _data_uri(picture, "jpeg", quality=JPEG_QUALITY)


def class_map(classes: np.ndarray, palette: Sequence[Sequence[int]], max_side: int | None = None) -> str:
    """Classes (H, W) as a PNG in the colours of the palette, scaled as in `photo`; ignored pixels are black."""
    picture = pictures.indexed(np.asarray(classes, np.uint8), palette)
    return _data_uri(_shrunk(picture, max_side, Image.Resampling.NEAREST), "png", optimize=True)


def error_map(image: np.ndarray, ground_truth: np.ndarray, prediction: np.ndarray, max_side: int) -> str:
    """A JPEG of the image (H, W, 3) in pale grey, with errors in red and ignored pixels in dark grey."""
    grey = image.mean(-1, keepdims=True)
    shown = np.where((ground_truth == IGNORED)[..., None], 0.3 * grey + 40, 0.45 * grey + 130)
    shown = np.where((ground_truth != prediction)[..., None], 0.25 * grey + 0.75 * np.array(ERROR_COLOR), shown)
    return photo(np.broadcast_to(shown, image.shape).astype(np.uint8), max_side)


def error_layer(ground_truth: np.ndarray, prediction: np.ndarray) -> str:
    """A translucent PNG (H, W) to lay over the image: errors red, ignored pixels dark, the others pale."""
    layer = np.where(ground_truth == prediction, RIGHT, WRONG)
    layer[ground_truth == IGNORED] = UNLABELLED
    picture = Image.fromarray(layer.astype(np.uint8)).convert("L")
    picture.putpalette(LAYER_COLORS)
    picture.info["transparency"] = LAYER_OPACITY
    return _data_uri(picture, "png", optimize=True)


def confusion_map(confusion: np.ndarray) -> str:
    """A confusion matrix (K, K) as a PNG of K x K pixels: hits blue, confusions orange.

    The opacity of a pixel is its share of the row's class, so that the background of the page shows through. For
    confusions it is the square root of the share, which makes rare ones visible.
    """
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    diagonal = np.eye(len(confusion), dtype=bool)
    opacity = np.where(diagonal, share, np.sqrt(share))
    picture = Image.fromarray((np.round(opacity * 127) + 128 * ~diagonal).astype(np.uint8)).convert("L")
    picture.putpalette(HIT_COLOR * 128 + MISS_COLOR * 128)  # "L" becomes "P", the values stay
    picture.info["transparency"] = bytes(2 * i for i in range(128)) * 2
    return _data_uri(picture, "png", optimize=True)


def _shrunk(picture: Image.Image, max_side: int | None, resampling: Image.Resampling) -> Image.Image:
    scale = (max_side or max(picture.size)) / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), resampling)


def _data_uri(picture: Image.Image, kind: str, **options: int) -> str:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
