"""Pictures a person can judge: image, truth and prediction side by side."""

import numpy as np
from PIL import Image, ImageDraw

from isnet_jax.losses import IGNORED
from isnet_jax.sharding import from_devices

MARGIN, HEADER = 6, 18


def colorize(classes, palette):
    """classes (H, W), integers -> RGB uint8 (H, W, 3); values without a colour (255, ignored) are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    return table[classes]


def comparison(rows, palette, names, titles=("image", "truth", "prediction")):
    """Sheet of rows (image (H, W, 3) uint8, truth (H, W), prediction (H, W)) with a legend -> PIL image."""
    height = max(image.shape[0] for image, _, _ in rows)
    width = max(image.shape[1] for image, _, _ in rows)
    per_line = max(1, (3 * (width + MARGIN)) // 150)
    lines = -(-len(names) // per_line)
    sheet = Image.new(
        "RGB",
        (3 * (width + MARGIN) + MARGIN, HEADER + len(rows) * (height + MARGIN) + lines * HEADER + MARGIN),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((MARGIN + column * (width + MARGIN), 3), title, fill="black")
    for row, (image, truth, prediction) in enumerate(rows):
        shown = np.where(truth == IGNORED, IGNORED, prediction)  # what is ignored is not judged
        for column, pixels in enumerate((image, colorize(truth, palette), colorize(shown, palette))):
            sheet.paste(Image.fromarray(pixels), (MARGIN + column * (width + MARGIN), HEADER + row * (height + MARGIN)))
    top = HEADER + len(rows) * (height + MARGIN)
    for i, name in enumerate(names):
        x, y = MARGIN + (i % per_line) * 150, top + (i // per_line) * HEADER
        draw.rectangle((x, y + 2, x + 12, y + 14), fill=tuple(palette[i]), outline="black")
        draw.text((x + 18, y + 3), name, fill="black")
    return sheet


class ComparisonSheet:
    """Collects rows for `comparison` during an evaluation: examples spread evenly over the split.

    Of several processes, each collects those that it holds.
    """

    def __init__(self, num_pictures, num_examples):
        self.rows = []
        self._wanted = set(np.linspace(0, num_examples - 1, min(num_pictures, num_examples)).astype(int).tolist())

    def add(self, entry, batch, result):
        """`on_batch` of `evaluation.evaluate`."""
        wanted = [i for i, index in enumerate(batch["index"].tolist()) if index in self._wanted]
        predictions = from_devices(result["predictions"]) if wanted else None
        for i in wanted:
            (image_height, image_width), (height, width) = batch["image_size"][i], batch["label_size"][i]
            image = Image.fromarray(batch["image"][i, :image_height, :image_width]).resize((width, height))
            self.rows.append((np.asarray(image), batch["label"][i, :height, :width], predictions[i, :height, :width]))
