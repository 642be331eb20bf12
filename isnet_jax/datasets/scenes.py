"""Scenes: small drawn landscapes as a data set, which needs no source; see `drawn_scenes`."""

from typing import NamedTuple

from isnet_jax.datasets import common, image_files
from isnet_jax.datasets.class_tables import CLASS_TABLES
from isnet_jax.datasets.drawn_scenes import HEIGHT, WIDTH, draw
from isnet_jax.datasets.journal import Finding


class Scenes(common.SegmentationBuilder):
    """360 training and 60 validation scenes of 96 x 128 (height x width), the same every time."""

    NAMES, PALETTE = CLASS_TABLES["scenes"]
    DESCRIPTION = "Drawn landscapes for tests and trials: classes differ by texture, shape, surroundings, not colour."

    def items(self) -> dict[str, list["Item"]]:
        """See `SegmentationBuilder.items`."""
        return {
            split: [Item(f"{split}_{i:03d}", (number, i)) for i in range(count)]
            for number, (split, count) in enumerate((("train", 360), ("val", 60)))
        }

    def check(self, item: "Item") -> Finding:
        """Draws an item, see `SegmentationBuilder.check`."""
        image, label = draw(item.seed)
        image_png, label_png = image_files.encode_png(image), image_files.encode_label(label)
        return Finding(
            image=image_png,
            label=label_png,
            size=(HEIGHT, WIDTH),
            num_bytes=len(image_png) + len(label_png),
            counts=image_files.count_ids(label, len(self.NAMES)),
        )

    def stamp(self, item: "Item") -> str:
        """See `SegmentationBuilder.stamp`."""
        return f"{self.VERSION} {item.name}"


class Item(NamedTuple):
    """A scene to draw."""

    name: str
    seed: tuple[int, int]
