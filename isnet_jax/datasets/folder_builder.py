"""The builder of data sets that come as folders of images and labels."""

import abc
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tqdm

from isnet_jax.datasets import decoding, image_files, label_files, label_values
from isnet_jax.datasets.common import SegmentationBuilder
from isnet_jax.datasets.image_files import CheckedImage
from isnet_jax.datasets.journal import Finding
from isnet_jax.datasets.label_files import LabelImage
from isnet_jax.datasets.label_values import COLORS, VALUES
from isnet_jax.datasets.pairing import Findings, Pair
from isnet_jax.datasets.problems import FileProblem
from isnet_jax.errors import UserError
from isnet_jax.runtime import limits
from isnet_jax.runtime.threads import map_in_order

MAX_TRIED = 500  # labels from which it is found out what they are read by


class FolderBuilder(SegmentationBuilder):
    """A data set of image files, and of label files that hold a value or a colour for each pixel."""

    TRAIN_IDS: np.ndarray  # int (n,): the train id of each value in a label file, 255 if ignored, -1 if illegal
    IDS_OF_COLORS: Mapping[int, int] = {}  # {0xrrggbb: train id}; if empty, labels are read by their values

    reads_by = VALUES  # or COLORS; set by `items`
    compares_palettes = False  # whether palettes must agree: nothing else says that indices mean the same in all labels

    @property
    def all_splits(self) -> tuple[str, ...]:
        """The splits that the source may hold."""
        return tuple(self.COUNTS)

    def items(self) -> dict[str, list[Pair]]:
        """See `SegmentationBuilder.items`."""
        assert self.source is not None
        items = {split: self.pairs(Path(self.source), split) for split in self.splits or self.all_splits}
        if self.IDS_OF_COLORS:
            self.reads_by = self._find_out_what_to_read([pair for pairs in items.values() for pair in pairs])
        return items

    @abc.abstractmethod
    def pairs(self, source: Path, split: str) -> list[Pair]:
        """The pairs of a split in the folder `source`; adds to `self.findings`."""

    def has_split(self, split: str) -> bool:
        """Whether the source holds files of a split."""
        findings, self.findings = self.findings, Findings()
        try:
            return self.source is not None and bool(self.pairs(Path(self.source), split))
        finally:
            self.findings = findings

    def read_label(self, path: Path) -> LabelImage:
        """The content of a label file; raises UserError."""
        return label_files.read_label(path)

    def check(self, pair: Pair) -> Finding:
        """Reads both files and reports all that is wrong with them, see `SegmentationBuilder.check`."""
        errors: list[UserError] = []
        size, image, label, ids = None, None, None, None
        try:
            image = image_files.check_image(pair.image)
            size = image.size
        except UserError as error:
            errors.append(error)
            size = image_files.read_size(pair.image)
        orientation = image.orientation if image else 1
        try:
            label = self.read_label(pair.label)
            ids = self._to_train_ids(label, pair.label)
        except UserError as error:
            errors.append(error)
        label_size = label_files.label_size(pair.label) if label is None else label.shape
        if size and label_size and self._size(size, orientation) != label_size:
            errors.append(self._size_problem(pair, size, label_size, orientation))
        if errors or image is None or ids is None or label is None:
            return Finding(errors=tuple(errors))
        counts = image_files.count_ids(ids, len(self.NAMES))
        png = image_files.encode_label(ids)
        is_palette = label.palette is not None and self.reads_by == VALUES
        return Finding(
            warnings=tuple(self._warnings(pair, image, counts)),
            label=png,
            size=self._size(image.size, orientation),
            counts=counts,
            colors=label_values.used_palette(label) if is_palette and self.compares_palettes else (),
            palette=is_palette,
            by_color=self.reads_by == COLORS,
            turned=self.UPRIGHT and orientation != 1,
            num_bytes=len(png) + image.num_bytes,
        )

    def _size(self, stored: tuple[int, int], orientation: int) -> tuple[int, int]:
        """The (height, width) of an image in training."""
        return stored[::-1] if self.UPRIGHT and orientation >= 5 else stored

    def _find_out_what_to_read(self, pairs: Sequence[Pair]) -> str:
        """VALUES or COLORS: by the first label, of some from the whole data set, that can only be read by one."""
        number, has_colors = min(len(pairs), MAX_TRIED), False

        def read(pair: Pair) -> tuple[str | None, bool]:
            try:
                label = self.read_label(pair.label)
            except UserError:  # `check` reports it
                return None, False
            return label_values.evidence(label, self.TRAIN_IDS, self.IDS_OF_COLORS), label.values is None

        tried = map_in_order(read, [pairs[i * len(pairs) // number] for i in range(number)])
        for found, has_only_colors in tqdm.tqdm(
            tried, "values or colours", number, False, unit=" labels", disable=None
        ):
            if found:
                return found
            has_colors |= has_only_colors
        # Where both agree, as far as one sees, `_to_train_ids` refuses a label in which they do not.
        return COLORS if has_colors else VALUES

    def _to_train_ids(self, label: LabelImage, path: Path) -> np.ndarray:
        """The train ids of a label, uint8 (H, W); raises FileProblem."""
        if self.reads_by == COLORS:
            return label_values.colors_to_ids(label, self.IDS_OF_COLORS, path)
        if label.values is None:
            raise label_values.color_image_problem(label, path)
        ids = label_values.values_to_ids(label.values, self.TRAIN_IDS, path)
        if label.palette is not None and self.IDS_OF_COLORS:
            by_color = label_values.legal_ids(label, COLORS, self.TRAIN_IDS, self.IDS_OF_COLORS)
            if by_color is not None and not np.array_equal(by_color, ids):
                raise FileProblem(
                    path, "gives the colours of config.data.folder.palette other indices than its classes have."
                )
        return ids

    def _size_problem(self, pair: Pair, size: tuple[int, int], label_size: tuple[int, int], orientation: int):
        height, width = self._size(size, orientation)
        text = (
            f"is {height} x {width} (height x width), but its label {pair.label} is {label_size[0]} x {label_size[1]}."
        )
        if orientation != 1 and self.UPRIGHT and size == label_size:
            text += (
                f" The label fits the image as it is stored, without its EXIF orientation {orientation}: if that is so "
                "of all labels, write c.data.folder.exif = False."
            )
        elif orientation != 1 and size == label_size[::-1]:
            text += (
                f" The likely cause is the EXIF orientation {orientation} of the image, which was applied before the "
                "image was labelled: apply it to the pixels, and remove the tag."
            )
        elif orientation != 1:
            text += f" The EXIF orientation of the image is {orientation}, which may be the cause."
        return FileProblem(pair.image, text, "sizes differ")

    def _warnings(self, pair: Pair, image: CheckedImage, counts: np.ndarray) -> list[FileProblem]:
        warnings, orientation = [], image.orientation
        if image.is_dark:
            text = (
                "is nearly black in 8 bits, since its 16 bits hold numbers of 12 at most: scale them to the full range."
            )
            warnings.append(FileProblem(pair.image, text))
        if orientation != 1 and not self.UPRIGHT:
            text = (
                f"has the EXIF orientation {orientation}, and its stored size is that of its label: the record keeps "
                "the pixels as stored, like the label."
            )
            warnings.append(FileProblem(pair.image, text))
        if not counts[:-1].any():
            warnings.append(FileProblem(pair.label, "ignores every pixel: nothing can be learnt from it."))
        return warnings

    def cost(self, pair: Pair) -> int:
        """See `SegmentationBuilder.cost`: from the header of the image, 0 if it cannot be read."""
        try:
            limits.check_file(pair.image)
            with pair.image.open("rb") as file, limits.open_image(file, decoding.FORMATS) as image:
                return image.width * image.height
        except Exception:  # `check` reports it
            return 0

    def stamp(self, pair: Pair) -> str:
        """See `SegmentationBuilder.stamp`: depends on both files, on the classes, and on how they are read."""
        rules = [list(self.NAMES), _digest(self.TRAIN_IDS), sorted(self.IDS_OF_COLORS.items()), self.reads_by]
        return json.dumps([str(self.VERSION), *rules, self.UPRIGHT, _file_stamps(pair)])

    def split_stamp(self, pairs: Sequence[Pair]) -> str:
        """See `SegmentationBuilder.split_stamp`."""
        return hashlib.sha256(json.dumps([_file_stamps(pair) for pair in pairs]).encode()).hexdigest()

    def image(self, pair: Pair) -> bytes:
        """See `SegmentationBuilder.image`."""
        return image_files.record_image(pair.image, self.UPRIGHT)


def _file_stamps(pair: Pair) -> list:
    stats = [path.stat() for path in (pair.image, pair.label)]
    return [str(pair.image), str(pair.label), *[(stat.st_size, stat.st_mtime_ns) for stat in stats]]


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.asarray(array, np.int64).tobytes()).hexdigest()
