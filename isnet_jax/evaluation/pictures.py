"""Pictures for visual inspection: image, ground truth and prediction side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from isnet_jax.evaluation import fonts
from isnet_jax.labels import IGNORED
from isnet_jax.runtime import files
from isnet_jax.runtime.sharding import from_devices

if TYPE_CHECKING:  # imports TensorFlow
    from isnet_jax.input.pipeline import EvalBatch

MARGIN, HEADER, SWATCH = 6, 18, 18  # pixels around a panel, in height of a line of text, of the colour before a name
BAND_PIXELS = 2**22
Row = tuple[np.ndarray, ...]  # image, ground truth, and one prediction or more


def colorize(classes: np.ndarray, palette: ArrayLike) -> np.ndarray:
    """RGB uint8 (..., 3) of integer classes (...); values without a colour, such as 255 (ignored), are black."""
    palette = np.asarray(palette, np.uint8).reshape(-1, 3)
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    return table[classes]


def bands(array: np.ndarray) -> list[slice]:
    """Slices of rows: indices of a band take little memory, those of a large image 8 bytes a pixel."""
    rows = max(1, BAND_PIXELS // max(1, array.shape[1]))
    return [slice(top, top + rows) for top in range(0, len(array), rows)]


def look_up(table: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """table[classes] as uint8 (H, W), in bands."""
    result = np.empty(classes.shape, np.uint8)
    for rows in bands(classes):
        result[rows] = table[classes[rows]]
    return result


def indexed(classes: np.ndarray, palette: Sequence[Sequence[int]]) -> Image.Image:
    """Classes uint8 (H, W) as an image of indices, shown in the colours of `colorize`."""
    picture = Image.fromarray(classes)
    picture.putpalette(colorize(np.arange(256), palette).tobytes())  # "L" becomes "P", the indices stay
    return picture


def overlay(image: np.ndarray, prediction: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """uint8 (H, W, 3): the mean of the image and the colours of its prediction (H, W), with white outlines."""
    result = np.empty(image.shape, np.uint8)
    for rows in bands(prediction):
        classes = prediction[rows]
        above = np.concatenate([prediction[max(rows.start - 1, 0) :][:1], classes[:-1]])
        is_outline = classes != above
        is_outline[:, 1:] |= classes[:, 1:] != classes[:, :-1]
        result[rows] = cv2.addWeighted(image[rows], 0.5, colorize(classes, palette), 0.5, 0)
        result[rows][is_outline] = 255
    return result


def comparison(
    rows: Sequence[Row],
    palette: Sequence[Sequence[int]],
    names: Sequence[str],
    titles: Sequence[str] = ("image", "ground truth", "prediction"),
) -> Image.Image:
    """A sheet of rows with a legend of the classes.

    rows: image, ground truth and predictions, a title for each, uint8 (H, W, 3) and integers (H, W). Predictions are
    black where the ground truth is ignored.
    """
    height = max(image.shape[0] for image, *_ in rows)
    width = max(*(image.shape[1] for image, *_ in rows), *map(fonts.width, titles))
    entry_width = SWATCH + max(map(fonts.width, names)) + 2 * MARGIN
    total_width = max(len(titles) * (width + MARGIN), entry_width)
    entries_per_line = total_width // entry_width
    legend_lines = -(-len(names) // entries_per_line)
    legend_top = HEADER + len(rows) * (height + MARGIN)
    sheet = Image.new("RGB", (total_width + MARGIN, legend_top + legend_lines * HEADER + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        _write(draw, MARGIN + column * (width + MARGIN), 2, title)
    for row, (image, ground_truth, *predictions) in enumerate(rows):
        judged = [np.where(ground_truth == IGNORED, IGNORED, prediction) for prediction in predictions]
        panels = [image, *(colorize(classes, palette) for classes in (ground_truth, *judged))]
        for column, pixels in enumerate(panels):
            sheet.paste(Image.fromarray(pixels), (MARGIN + column * (width + MARGIN), HEADER + row * (height + MARGIN)))
    for i, name in enumerate(names):
        x, y = MARGIN + (i % entries_per_line) * entry_width, legend_top + (i // entries_per_line) * HEADER
        draw.rectangle((x, y + 2, x + 12, y + 14), fill=tuple(palette[i]), outline="black")
        _write(draw, x + SWATCH, y + 2, name)
    return sheet


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, text: str) -> None:
    shown, font = fonts.choose(text)
    draw.text((x, y), shown, fill="black", font=font)


def save_image(path: Path, image: Image.Image, **options: int) -> None:
    """Writes a Pillow image atomically, as PNG or JPEG by its suffix, and creates its parent directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path) as partial:
        image.save(partial, {".png": "PNG", ".jpg": "JPEG"}[path.suffix], **options)


def shrunk(row: Row, max_side: int) -> Row:
    """A row no larger than `max_side` pixels: the image averaged, the classes of the nearest pixels."""
    image, *classes = row
    scale = max_side / max(image.shape[:2])
    if scale >= 1:
        return row
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    rows, columns = (((np.arange(n) + 0.5) * old / n).astype(int) for n, old in zip((height, width), image.shape))
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
    return np.asarray(small), *(x[rows[:, None], columns] for x in classes)


class ComparisonSheet:
    """Collects rows for `comparison` during an evaluation, of examples spread evenly over the split.

    Each process collects the examples that its devices hold.
    """

    def __init__(self, num_pictures: int, num_examples: int):
        self.rows: list[Row] = []
        self._wanted = set(np.linspace(0, num_examples - 1, min(num_pictures, num_examples)).astype(int).tolist())

    def add(self, entry: "EvalBatch", batch: Mapping[str, np.ndarray], result: Mapping[str, Array]) -> None:
        """`on_batch` of `evaluation.loop.evaluate`."""
        wanted = [i for i, index in enumerate(batch["index"].tolist()) if index in self._wanted]
        if not wanted:
            return
        predictions = from_devices(result["predictions"])
        for i in wanted:
            (image_height, image_width), (height, width) = batch["image_size"][i], batch["label_size"][i]
            image = Image.fromarray(batch["image"][i, :image_height, :image_width]).resize((width, height))
            self.rows.append((np.asarray(image), batch["label"][i, :height, :width], predictions[i, :height, :width]))
