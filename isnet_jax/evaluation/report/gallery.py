"""Data of the gallery: the images with the lowest and highest mIoU and the worst ones of each class."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm
from PIL import Image

from isnet_jax import datasets
from isnet_jax.datasets import decoding
from isnet_jax.errors import UserError
from isnet_jax.evaluation import metrics
from isnet_jax.evaluation.report.formatting import ClassLabel, class_labels
from isnet_jax.evaluation.report.panels import MAX_WHOLE, PREDICTION, Panel, panels
from isnet_jax.evaluation.results import Results
from isnet_jax.labels import IGNORED
from isnet_jax.runtime import limits
from isnet_jax.runtime.console import no_native_noise

NUM_EXTREMES = 6  # worst and best images each
MAX_LEGEND = 8  # classes in the legend of an image
BUDGET = 20_000_000  # bytes of the page for pictures; thumbnails of the extremes are there in any case


class ImageConfusion(NamedTuple):
    """The most frequent confusion of an image."""

    ground_truth: str
    prediction: str
    share: float  # of the labelled pixels


class GalleryImage(NamedTuple):
    """One image of the gallery."""

    number: int  # in the evaluation
    name: str
    score: float
    other_scores: list[tuple[str, float]]  # label and score of the other evaluations
    confusion: ImageConfusion | None
    problems: list[str]  # why some of the panels are missing
    panels: list[Panel]
    legend: list[ClassLabel]
    num_more: int  # classes that are not in the legend

    @property
    def size(self) -> int:
        """Bytes of its pictures in the page."""
        return sum(panel.size for panel in self.panels)

    @property
    def is_reduced(self) -> bool:
        """Whether the page has thumbnails only."""
        return any(panel.is_reduced for panel in self.panels)


class Gallery(NamedTuple):
    """The worst and the best images, and the worst ones of classes that are not among them."""

    problems: list[str]  # why something can be shown of no image
    groups: list[tuple[str, list[GalleryImage]]]  # by heading
    num_missing: int  # images of the third group that the budget did not allow
    budget: int = BUDGET
    max_pixels: int = MAX_WHOLE

    @property
    def images(self) -> list[GalleryImage]:
        """All images, in the order of the page."""
        return [image for _, group in self.groups for image in group]

    @property
    def num_reduced(self) -> int:
        """How many images are there as thumbnails only."""
        return sum(image.is_reduced for image in self.images)


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


def gallery(
    evaluation: Results,
    others: Mapping[str, Results],
    scores: Mapping[str, np.ndarray],
    of_classes: Sequence[int],
) -> Gallery:
    """The worst and the best images by `scores`, and those of `of_classes` that are neither, as far as BUDGET goes.

    others: evaluations to compare with, by their labels; scores: the `image_scores` of all evaluations by their labels,
    the evaluation's own by "". What cannot be shown is explained instead.
    """
    problems, source = [], None
    try:
        with no_native_noise():
            source = _open_split(evaluation.record)
    except UserError as error:
        problems.append(f"Inputs and ground truth cannot be shown. {error}")
    shown = {label: other for label, other in others.items() if other.has_predictions}
    problems += [f"{label} has no predictions/ to show." for label in others if label not in shown]
    worst, best = extremes(scores[""])
    more = [i for i in of_classes if i not in {*worst, *best}]
    images: dict[int, GalleryImage] = {}
    budget = BUDGET
    for i in tqdm.tqdm([*worst, *best, *more], "pictures", leave=False, disable=None, unit="image"):
        image = _gallery_image(evaluation, shown, source, i, {label: x[i] for label, x in scores.items()})
        if image.size > budget:
            image = image._replace(panels=[panel._replace(whole="") for panel in image.panels])
        if i in more and image.size > budget:
            break
        images[i], budget = image, budget - image.size
    groups = [
        (heading, [images[i] for i in indices if i in images])
        for heading, indices in (("Worst", worst), ("Best", best), ("Worst of a class", more))
    ]
    missing = sum(i not in images for i in more)
    return Gallery(problems, [(heading, group) for heading, group in groups if group], missing, BUDGET)


def _open_split(record: dict[str, Any]) -> Any:
    """The examples of the evaluated split; raises UserError. Prepares and fetches nothing."""
    data = record["config"].get("data") or {}
    builder = datasets.open_prepared(data.get("name", ""), data.get("data_dir"), data.get("folder"))
    from isnet_jax.input import pipeline  # needs TensorFlow

    return pipeline.open_split(builder, record["split"])


def _gallery_image(
    evaluation: Results, others: Mapping[str, Results], source: Any, i: int, scores: Mapping[str, float]
) -> GalleryImage:
    """Image i and its predictions; source: the examples of its split, or None; scores: as in `gallery`."""
    name, names = str(evaluation.images[i]), evaluation.names
    image = ground_truth = confusion = None
    predictions, problems = {}, []
    for label, results in {"": evaluation, **others}.items():
        try:
            predictions[f"{PREDICTION} {label}".strip()] = results.prediction(i)
        except UserError as error:
            problems.append(str(error))
    if source is not None:
        try:
            image, ground_truth = _example(source, i, name, len(names))
        except UserError as error:
            problems.append(str(error))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's
            problems.append(f"The example cannot be read from the prepared data ({error}).")
    if ground_truth is not None:
        predictions, faults = _judged(ground_truth, predictions)
        problems += faults
        if PREDICTION in predictions:
            confusion = _most_frequent_confusion(ground_truth, predictions[PREDICTION], names)
    shown = [*predictions.values(), *([] if ground_truth is None else [ground_truth])]
    legend = _legend(shown, class_labels(evaluation))
    return GalleryImage(
        number=i,
        name=name,
        score=scores[""],
        other_scores=[(label, score) for label, score in scores.items() if label],
        confusion=confusion,
        problems=problems,
        panels=panels(image, ground_truth, predictions, evaluation.record["palette"]),
        legend=legend[:MAX_LEGEND],
        num_more=max(0, len(legend) - MAX_LEGEND),
    )


def _judged(ground_truth: np.ndarray, predictions: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The predictions as they are scored, without ignored pixels, and what is wrong with those of another size."""
    judged, faults = {}, []
    for title, prediction in predictions.items():
        if prediction.shape == ground_truth.shape:
            judged[title] = np.where(ground_truth == IGNORED, IGNORED, prediction)
        else:
            faults.append(
                f"The {title} has {_size(prediction)} pixels, but the ground truth has {_size(ground_truth)}."
            )
    return judged, faults


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
    if pixels.shape[:2] != classes.shape:
        raise ValueError(f"its image has {_size(pixels[..., 0])} pixels, its label {_size(classes)}")
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
