"""The result of a survey: the items of each split and their statistics."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from isnet_jax.datasets.journal import Finding


class SplitStatistics:
    """Sums over the checked images of a split."""

    def __init__(self, num_classes: int):
        self.num_images = 0
        self.num_palettes = 0  # labels that are palette images read by their indices
        self.num_by_color = 0  # labels that are read by their colours
        self.num_turned = 0  # images that are turned as EXIF says
        self.num_binary = 0  # labels of one class and ignored pixels
        self.num_mixed = 0  # labels of several classes and ignored pixels
        self.num_bytes = 0  # of the records
        self.sizes: list[tuple[int, int]] = []  # (height, width) of each image
        self.pixels = np.zeros(num_classes + 1, np.int64)  # of each class and, last, ignored ones
        self.images_with_class = np.zeros(num_classes, np.int64)

    def add(self, finding: Finding) -> None:
        """Counts a finding without errors."""
        self.num_images += 1
        self.num_palettes += finding.palette
        self.num_by_color += finding.by_color
        self.num_turned += finding.turned
        num_classes = int(np.count_nonzero(finding.counts[:-1]))
        self.num_binary += bool(finding.counts[-1] and num_classes == 1)
        self.num_mixed += bool(finding.counts[-1] and num_classes > 1)
        self.num_bytes += finding.num_bytes
        self.sizes.append(finding.size)
        self.pixels += finding.counts
        self.images_with_class += finding.counts[:-1] > 0

    def table(self, split: str, names: Sequence[str]) -> str:
        """An aligned text table of the classes: share of the labelled pixels, images in which they occur."""
        num_labelled, width = max(self.pixels[:-1].sum(), 1), max(map(len, names))
        lines = [
            f"{split}: {self.num_images} images, {100 * self.pixels[-1] / max(self.pixels.sum(), 1):.2f} % of the "
            "pixels ignored; of the others",
            f"  id  {'class':<{width}}  share %   images",
        ]
        lines += [
            f"{i:4d}  {name:<{width}}  {100 * pixels / num_labelled:7.2f} {images:8d}"
            for i, (name, pixels, images) in enumerate(zip(names, self.pixels, self.images_with_class))
        ]
        return "\n".join(lines)


class Survey(NamedTuple):
    """A data set in which no problems were found."""

    class_names: tuple[str, ...]
    items: dict[str, list[Any]]  # by split
    statistics: dict[str, SplitStatistics]  # by split

    def tables(self) -> str:
        """The table of each split."""
        return "\n\n".join(split.table(name, self.class_names) for name, split in self.statistics.items())
