"""The images of an evaluation that went worst and best, as HTML: input, truth, prediction, errors."""

import io

import numpy as np
from PIL import Image

from isnet_jax import datasets, limits
from isnet_jax.console import no_native_noise
from isnet_jax.errors import UserError
from isnet_jax.losses import IGNORED
from isnet_jax.page import data_uri, escape, note, percent, swatch

EACH = 6  # worst and best images
SIDE = 480  # of a thumbnail, in pixels, at most
LEGEND = 8  # classes told of an image, at most
ERROR = 214, 40, 40


def image_scores(counts):
    """mIoU (N,) of images with counts (N, 3, K) of hits, predicted and true pixels; NaN without any labelled pixel.

    The mean is over the classes that occur in the image's truth or prediction.
    """
    hits, predicted, truth = np.asarray(counts, np.int64).swapaxes(0, 1)
    union = predicted + truth - hits
    classes = (union > 0).sum(1)
    return np.where(classes > 0, (hits / np.maximum(union, 1)).sum(1) / np.maximum(classes, 1), np.nan)


def extremes(scores, each=EACH):
    """Positions of the worst and of the best images, worst and best first; no image is in both."""
    order = np.argsort(scores, kind="stable")
    order = order[: np.isfinite(scores).sum()]
    each = min(each, -(-len(order) // 2))
    return order[:each].tolist(), order[max(each, len(order) - each) :][::-1].tolist()


def gallery(evaluation, scores):
    """HTML of the worst and the best images of a results.Results; scores: `image_scores` of it.

    What cannot be shown is told instead.
    """
    trouble, source = "", None
    try:
        with no_native_noise():
            source = _open(evaluation.record)
    except UserError as error:
        trouble = note(f"Inputs and truths cannot be shown. {error}")
    shots = {
        heading: "".join(_shot(evaluation, source, i, scores[i]) for i in chosen)
        for heading, chosen in zip(("Worst", "Best"), extremes(scores))
    }
    return trouble + "".join(f"<h3>{heading}</h3>{found}" for heading, found in shots.items() if found)


def _open(record):
    """The examples of the evaluated split; raises UserError. Nothing is prepared or fetched for it."""
    data = record["config"].get("data") or {}
    builder = datasets.open_prepared(data.get("name"), data.get("data_dir"), data.get("folder"))
    from isnet_jax import input_pipeline  # needs TensorFlow

    return input_pipeline.open_split(builder, record["split"])


def _shot(evaluation, source, i, score):
    """Image i with what was predicted for it; source: the examples of its split, or None."""
    name, names, palette = evaluation.images[i], evaluation.names, evaluation.record["palette"]
    image = truth = prediction = None
    troubles, mistake = [], ""
    try:
        prediction = evaluation.prediction(i)
    except UserError as error:
        troubles.append(str(error))
    if source is not None:
        try:
            image, truth = _example(source, i, name, len(names))
        except UserError as error:
            troubles.append(str(error))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's
            troubles.append(f"The example cannot be read from the prepared data ({error}).")
    if truth is not None and prediction is not None:
        if truth.shape == prediction.shape:
            prediction = np.where(truth == IGNORED, IGNORED, prediction)  # what is ignored is not judged
            mistake = _mistake(truth, prediction, names)
        else:
            troubles.append(f"The prediction is of {prediction.shape}, the truth of {truth.shape} pixels.")
            prediction = None
    shown = [classes for classes in (truth, prediction) if classes is not None]
    counts = sum((np.bincount(classes.ravel(), minlength=256)[: len(names)] for classes in shown), np.zeros(len(names)))
    order = [k for k in np.argsort(-counts, kind="stable") if counts[k]]
    legend = "".join(f"<li>{swatch(palette[k])}{escape(names[k])}</li>" for k in order[:LEGEND])
    legend += f"<li>and {len(order) - LEGEND} more</li>" if len(order) > LEGEND else ""
    return (
        f'<article class="shot"><h4>{escape(name)} <span>mIoU {percent(score)} %{mistake}</span></h4>'
        f'{"".join(map(note, troubles))}<div class="panels">{_panels(image, truth, prediction, palette, name)}'
        f'</div><ul class="legend">{legend}</ul></article>'
    )


def _example(source, i, name, num_classes):
    """Image (H, W, 3) and label (H, W), uint8; raises ValueError if example i is of another name or other classes."""
    record = source[i] if i < len(source) else {"name": b""}
    there = record["name"].decode()
    if there != name:
        raise ValueError(f"it is another one: its example {i} is {there!r}")
    image, label = (
        limits.open_image(io.BytesIO(limits.decodable(record[key])), ("JPEG", "PNG")) for key in ("image", "label")
    )
    image, label = np.asarray(image.convert("RGB")), np.asarray(label)
    if label.max(where=label != IGNORED, initial=0) >= num_classes:
        raise ValueError("it has other classes")
    return image, label


def _mistake(truth, prediction, names):
    """The confusion that costs an image most, as HTML; "" if there is none."""
    wrong = truth != prediction  # equal where ignored
    if not wrong.any():
        return ""
    pairs, counts = np.unique(truth[wrong].astype(int) * 256 + prediction[wrong], return_counts=True)
    most = counts.argmax()
    share = 100 * counts[most] / (truth != IGNORED).sum()
    true, read = (escape(names[k]) for k in divmod(int(pairs[most]), 256))
    return f", mostly {true} read as {read} ({share:.1f} % of the pixels)"


def _panels(image, truth, prediction, palette, name):
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette

    def classes(ids):
        picture = Image.fromarray(np.asarray(ids, np.uint8)).convert("L")
        picture.putpalette(table.tobytes())  # "L" becomes "P", the indices stay
        return data_uri(_thumbnail(picture, Image.Resampling.NEAREST), "png")

    def photo(pixels):
        return data_uri(_thumbnail(Image.fromarray(pixels), Image.Resampling.LANCZOS), "jpeg")

    panels = [("input", photo(image), "")] if image is not None else []
    panels += [("truth", classes(truth), "classes-of")] if truth is not None else []
    panels += [("prediction", classes(prediction), "classes-of")] if prediction is not None else []
    if len(panels) == 3:
        panels.append(("errors, in red", photo(_errors(image, truth, prediction)), ""))
    return "".join(
        f'<figure><img src="{uri}" alt="{escape(title)} of {escape(name)}" class="{kind}">'
        f"<figcaption>{escape(title)}</figcaption></figure>"
        for title, uri, kind in panels
    )


def _thumbnail(picture, filter):
    scale = SIDE / max(picture.size)
    if scale >= 1:
        return picture
    return picture.resize([max(1, round(side * scale)) for side in picture.size], filter)


def _errors(image, truth, prediction):
    """The image in pale grey, what is wrong in red, what is ignored in dark grey."""
    grey = image.mean(-1, keepdims=True)
    shown = np.where((truth == IGNORED)[..., None], 0.3 * grey + 40, 0.45 * grey + 130)
    shown = np.where((truth != prediction)[..., None], 0.25 * grey + 0.75 * np.array(ERROR), shown)
    return np.broadcast_to(shown, image.shape).astype(np.uint8)
