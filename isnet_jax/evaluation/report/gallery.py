"""Data of the gallery: the images with the lowest and highest mIoU, their ground truth, prediction and errors."""

import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from isnet_jax import datasets
from isnet_jax.datasets import decoding
from isnet_jax.errors import UserError
from isnet_jax.evaluation import metrics
from isnet_jax.evaluation.report import images
from isnet_jax.evaluation.report.formatting import ClassLabel, class_labels
from isnet_jax.evaluation.results import Results
from isnet_jax.labels import IGNORED
from isnet_jax.runtime import limits
from isnet_jax.runtime.console import no_native_noise

NUM_EXTREMES = 6  # worst and best images each
MAX_LEGEND = 8  # classes in the legend of an image


class Panel(NamedTuple):
    """One of the pictures of an image."""

    title: str
    uri: str
    is_class_map: bool = False


class ImageConfusion(NamedTuple):
    """The most frequent confusion of an image."""

    ground_truth: str
    prediction: str
    share: float  # of the labelled pixels


class GalleryImage(NamedTuple):
    """One image of the gallery."""

    name: str
    score: float
    confusion: ImageConfusion | None
    problems: list[str]  # why some of the panels are missing
    panels: list[Panel]
    legend: list[ClassLabel]
    num_more: int  # classes that are not in the legend


class Gallery(NamedTuple):
    """The worst and the best images."""

    problem: str  # why no image can be shown, or ""
    groups: list[tuple[str, list[GalleryImage]]]  # by heading


def image_scores(counts: np.ndarray) -> np.ndarray:
    """MIoU (N,) of images with counts (N, 3, K) of hits, predicted and ground-truth pixels.

    The mean is over the classes that occur in the image's ground truth or prediction. It is NaN for images without
    labelled pixels.
    """
    return np.asarray(metrics.mean(metrics.iou(counts)))


def extremes(scores: np.ndarray, count: int = NUM_EXTREMES) -> tuple[list[int], list[int]]:
    """Indices of up to `count` worst and best images each, worst and best first; no image is in both."""
    order = np.argsort(scores, kind="stable")
    order = order[: np.isfinite(scores).sum()]  # NaN is last
    count = min(count, -(-len(order) // 2))
    return order[:count].tolist(), order[max(count, len(order) - count) :][::-1].tolist()


def gallery(evaluation: Results, scores: np.ndarray) -> Gallery:
    """The worst and the best images by their `image_scores`; what cannot be shown is explained instead."""
    problem, source = "", None
    try:
        with no_native_noise():
            source = _open_split(evaluation.record)
    except UserError as error:
        problem = str(error)
    groups = [
        (heading, [_gallery_image(evaluation, source, i, scores[i]) for i in indices])
        for heading, indices in zip(("Worst", "Best"), extremes(scores))
        if indices
    ]
    return Gallery(problem, groups)


def _open_split(record: dict[str, Any]) -> Any:
    """The examples of the evaluated split; raises UserError. Prepares and fetches nothing."""
    data = record["config"].get("data") or {}
    builder = datasets.open_prepared(data.get("name", ""), data.get("data_dir"), data.get("folder"))
    from isnet_jax.input import pipeline  # needs TensorFlow

    return pipeline.open_split(builder, record["split"])


def _gallery_image(evaluation: Results, source: Any, i: int, score: float) -> GalleryImage:
    """Image i and its prediction; source: the examples of its split, or None."""
    name, names = str(evaluation.images[i]), evaluation.names
    image = ground_truth = prediction = confusion = None
    problems = []
    try:
        prediction = evaluation.prediction(i)
    except UserError as error:
        problems.append(str(error))
    if source is not None:
        try:
            image, ground_truth = _example(source, i, name, len(names))
        except UserError as error:
            problems.append(str(error))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's
            problems.append(f"The example cannot be read from the prepared data ({error}).")
    if ground_truth is not None and prediction is not None:
        if ground_truth.shape == prediction.shape:
            prediction = np.where(ground_truth == IGNORED, IGNORED, prediction)  # ignored pixels are not scored
            confusion = _most_frequent_confusion(ground_truth, prediction, names)
        else:
            problems.append(
                f"The prediction has {_size(prediction)} pixels, but the ground truth has {_size(ground_truth)}."
            )
            prediction = None
    shown = [classes for classes in (ground_truth, prediction) if classes is not None]
    legend = _legend(shown, class_labels(evaluation))
    panels = _panels(image, ground_truth, prediction, evaluation.record["palette"])
    return GalleryImage(name, score, confusion, problems, panels, legend[:MAX_LEGEND], max(0, len(legend) - MAX_LEGEND))


def _size(classes: np.ndarray) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(map(str, classes.shape))


def _example(source: Any, i: int, name: str, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) and label (H, W), uint8; raises ValueError if example i has another name or other classes."""
    example = source[i] if i < len(source) else {"name": b""}
    stored_name = example["name"].decode()
    if stored_name != name:
        raise ValueError(f"example {i} there is {stored_name!r}, so the data differ from those evaluated")
    image, label = (
        limits.open_image(io.BytesIO(limits.decodable(example[key])), ("JPEG", "PNG")) for key in ("image", "label")
    )
    pixels, classes = np.asarray(image.convert("RGB")), np.asarray(label)
    if source.upright:
        file = io.BytesIO(example["image"])
        pixels = decoding.turned(pixels, decoding.read_orientation(limits.open_image(file, ("JPEG", "PNG")), file))
    if classes.max(where=classes != IGNORED, initial=0) >= num_classes:
        raise ValueError(f"its label has classes beyond the {num_classes} of the evaluation")
    return pixels, classes


def _most_frequent_confusion(
    ground_truth: np.ndarray, prediction: np.ndarray, names: tuple[str, ...]
) -> ImageConfusion | None:
    """None if all labelled pixels are right."""
    wrong = ground_truth != prediction  # equal where ignored
    if not wrong.any():
        return None
    pairs, counts = np.unique(ground_truth[wrong].astype(int) * 256 + prediction[wrong], return_counts=True)
    t, p = divmod(int(pairs[counts.argmax()]), 256)
    return ImageConfusion(names[t], names[p], counts.max() / (ground_truth != IGNORED).sum())


def _legend(maps: list[np.ndarray], labels: list[ClassLabel]) -> list[ClassLabel]:
    """The classes that occur in some class maps, the most frequent first."""
    counts = np.zeros(len(labels), np.int64)
    for classes in maps:
        counts += np.bincount(classes.ravel(), minlength=256)[: len(labels)]
    return [labels[k] for k in np.argsort(-counts, kind="stable") if counts[k]]


def _panels(
    image: np.ndarray | None,
    ground_truth: np.ndarray | None,
    prediction: np.ndarray | None,
    palette: list[list[int]],
) -> list[Panel]:
    """The pictures of those that are known; errors only with all three."""
    panels = []
    if image is not None:
        panels.append(Panel("input", images.photo(image)))
    if ground_truth is not None:
        panels.append(Panel("ground truth", images.class_map(ground_truth, palette), is_class_map=True))
    if prediction is not None:
        panels.append(Panel("prediction", images.class_map(prediction, palette), is_class_map=True))
    if image is not None and ground_truth is not None and prediction is not None:
        panels.append(Panel("errors, in red", images.error_map(image, ground_truth, prediction)))
    return panels
