"""The pictures of an image: input, ground truth, predictions, errors, as thumbnails and at full size."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from isnet_jax.evaluation.report import images

MAX_WHOLE = 25_000_000  # pixels of an image at full size; larger ones take long to compress
INPUT, GROUND_TRUTH, PREDICTION, ERRORS = "input", "ground truth", "prediction", "errors, in red"


class Panel(NamedTuple):
    """One of the pictures of an image."""

    title: str
    kind: str  # "photo", "class-map" or "errors", which are classes of the style sheet
    width: int  # of the whole picture, in pixels
    height: int
    thumbnail: str  # data URI
    whole: str  # data URI at full size, "" if the thumbnail is; errors are a layer to lay over the input

    @property
    def is_reduced(self) -> bool:
        """Whether it is larger than all that the page has of it."""
        return not self.whole and max(self.width, self.height) > images.THUMBNAIL

    @property
    def size(self) -> int:
        """Bytes in the page."""
        return len(self.thumbnail) + len(self.whole)


def panels(
    image: np.ndarray | None,
    ground_truth: np.ndarray | None,
    predictions: Mapping[str, np.ndarray],
    palette: Sequence[Sequence[int]],
) -> list[Panel]:
    """The pictures of those that are known; errors are those of the prediction PREDICTION, with all three.

    image: uint8 (H, W, 3); ground_truth and the predictions {title: classes}: integers (H, W).
    """
    found = [] if image is None else [_photo(image)]
    if ground_truth is not None:
        found.append(_class_map(GROUND_TRUTH, ground_truth, palette))
    for title, prediction in predictions.items():
        found.append(_class_map(title, prediction, palette))
        if title == PREDICTION and image is not None and ground_truth is not None:
            found.append(_errors(image, ground_truth, prediction))
    return found


def _photo(image: np.ndarray) -> Panel:
    whole = images.photo(image) if _has_whole(image) else ""
    return Panel(INPUT, "photo", *_size(image), images.photo(image, images.THUMBNAIL), whole)


def _class_map(title: str, classes: np.ndarray, palette: Sequence[Sequence[int]]) -> Panel:
    whole = images.class_map(classes, palette) if _has_whole(classes) else ""
    return Panel(title, "class-map", *_size(classes), images.class_map(classes, palette, images.THUMBNAIL), whole)


def _errors(image: np.ndarray, ground_truth: np.ndarray, prediction: np.ndarray) -> Panel:
    thumbnail = images.error_map(image, ground_truth, prediction, images.THUMBNAIL)
    whole = images.error_layer(ground_truth, prediction) if _has_whole(image) else ""
    return Panel(ERRORS, "errors", *_size(image), thumbnail, whole)


def _has_whole(pixels: np.ndarray) -> bool:
    height, width = pixels.shape[:2]
    return max(height, width) > images.THUMBNAIL and height * width <= MAX_WHOLE


def _size(pixels: np.ndarray) -> tuple[int, int]:
    height, width = pixels.shape[:2]
    return width, height
