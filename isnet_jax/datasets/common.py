"""What all data sets share: the record layout, and the builders' base classes."""

import abc
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from isnet_jax.datasets import image_files
from isnet_jax.datasets.journal import Finding, Journal
from isnet_jax.datasets.pairing import Pair
from isnet_jax.datasets.statistics import Survey
from isnet_jax.datasets.tables import Color
from isnet_jax.errors import UserError
from isnet_jax.runtime.threads import map_in_order

# Decoders for builder.as_data_source that leave image and label encoded.
ENCODED = {"image": tfds.decode.SkipDecoding(), "label": tfds.decode.SkipDecoding()}
SHARD_BYTES = 2**27  # approximately; a shard is held in memory while it is written


class SegmentationBuilder(tfds.core.ShardBasedBuilder):
    """Writes records {image, label, height, width, name} to array_record files, in a fixed order.

      image: the original JPEG or PNG, byte for byte, of any colour mode; EXIF is not applied.
      label: an 8-bit greyscale PNG of the image's size with train ids 0..K-1, and 255 where ignored.
      height, width: int32, of both.
      name: the name of the item.

    info.metadata holds "names" (K strings), "palette" (K lists [r, g, b]), "source" (the absolute path of the original
    files, "" if there are none) and "examples" ({split: [[name, height, width], ...]}). A subclass sets the constants
    and defines `items`, `check` and `stamp`, and `image` unless its findings hold the images.
    """

    VERSION = tfds.core.Version("1.0.0")
    NAMES: tuple[str, ...]  # of the K classes
    PALETTE: tuple[Color, ...]  # of the K classes
    DESCRIPTION: str
    CITATION = ""
    HOMEPAGE = ""
    COUNTS: dict[str, int] = {}  # the official number of examples of each split, if there is one
    LAYOUT = ""  # of the source folder, for messages; "" if the data set needs no source

    problems: list[str]  # sentences that `items` adds; any of them stops the preparation
    warnings: list[str]  # sentences that `items` adds

    def __init__(self, *, source: Path | None = None, **kwargs: Any):
        self.source = source
        tfds.core.utils.gcs_utils._is_gcs_disabled = True  # nothing here may access the network
        super().__init__(**kwargs)

    @abc.abstractmethod
    def items(self) -> dict[str, list[Any]]:
        """{split: items}, an item with a `name` for each record; adds to `self.problems` and `self.warnings`."""

    @abc.abstractmethod
    def check(self, item: Any) -> Finding:
        """Reads or generates an item, and returns all that is wrong with it, or else its record. Runs in threads."""

    @abc.abstractmethod
    def stamp(self, item: Any) -> str:
        """A text that changes whenever the result of `check` might; raises OSError."""

    def image(self, item: Any) -> bytes:
        """The encoded image of an item, b"" if it is in the finding; raises OSError."""
        return b""

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                "height": np.int32,
                "width": np.int32,
                "name": tfds.features.Text(),
            }
        )
        metadata = tfds.core.MetadataDict(
            names=list(self.NAMES), palette=[list(color) for color in self.PALETTE], source=str(self.source or "")
        )
        return tfds.core.DatasetInfo(
            builder=self,
            features=features,
            metadata=metadata,
            description=self.DESCRIPTION,
            citation=self.CITATION,
            homepage=self.HOMEPAGE,
            disable_shuffling=True,
        )

    def write(self, survey: Survey, journal: Journal, advance: Callable[[], Any]) -> None:
        """Writes the surveyed items as records; the folder has a temporary name until it is complete.

        The journal holds the findings of the survey. `advance` is called after each record. Raises UserError if files
        have changed since they were checked, and OSError.
        """
        self._to_write = survey, journal, advance
        self.info.metadata["examples"] = {
            split: [
                [item.name, int(height), int(width)]
                for item, (height, width) in zip(items, survey.statistics[split].sizes)
            ]
            for split, items in survey.items.items()
        }
        self.download_and_prepare(
            file_format="array_record", download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list[Callable]]:
        survey, journal, advance = self._to_write

        def iterate(items: Sequence[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
            for key, record in enumerate(map_in_order(lambda item: self._record(item, journal), items)):
                yield key, record
                advance()

        def shards(items: Sequence[Any], num_bytes: int) -> list[Callable]:
            count = min(len(items), 1 + num_bytes // SHARD_BYTES)
            ends = [len(items) * i // count for i in range(count + 1)]
            return [lambda start=start, end=end: iterate(items[start:end]) for start, end in zip(ends, ends[1:])]

        return {split: shards(items, survey.statistics[split].num_bytes) for split, items in survey.items.items()}

    def _record(self, item: Any, journal: Journal) -> dict[str, Any]:
        try:
            image = self.image(item)
            finding = journal.get(self.stamp(item))  # stamped after reading: the change of a file read shows
        except OSError:
            finding = None
        if finding is None:
            raise UserError(
                f"The files of {item.name} in {self.source} have changed while the data set was being prepared: run "
                "the command again when nothing writes to them any more."
            )
        height, width = finding.size
        return {
            "image": image or finding.image,
            "label": finding.label,
            "height": height,
            "width": width,
            "name": item.name,
        }

    def _example_writer(self) -> "_ExampleWriter":
        return _ExampleWriter(self.info.file_format)

    # TFDS prints announcements and a summary to standard output; the progress bar is enough.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass


class _ExampleWriter(tfds.core.writer.ExampleWriter):
    """Writes the features of a record in a fixed order, so that equal data sets have equal bytes."""

    def write(self, path: Any, examples: Iterator[tuple[Any, bytes]]) -> Any:
        def in_fixed_order(example: bytes) -> bytes:
            return tf.train.Example.FromString(example).SerializeToString(deterministic=True)

        return super().write(path, ((key, in_fixed_order(example)) for key, example in examples))


class FolderBuilder(SegmentationBuilder):
    """A data set of image files and of label files that hold an integer for each pixel."""

    TRAIN_IDS: np.ndarray  # int (n,): the train id of each value in a label file, 255 if ignored, -1 if illegal

    def items(self) -> dict[str, list[Pair]]:
        """See `SegmentationBuilder.items`."""
        assert self.source is not None
        return self.pairs(Path(self.source))

    @abc.abstractmethod
    def pairs(self, source: Path) -> dict[str, list[Pair]]:
        """The pairs of each split in the folder `source`; adds to `self.problems` and `self.warnings`."""

    def read_label(self, path: Path) -> np.ndarray:
        """The integers in a label file (H, W); raises UserError."""
        return image_files.read_index_label(path)

    def check(self, pair: Pair) -> Finding:
        """Reads both files and reports all that is wrong with them, see `SegmentationBuilder.check`."""
        errors: list[str] = []
        warnings: list[str] = []
        size, orientation, label, ids = None, 1, None, None
        try:
            size, orientation, errors = image_files.check_image(pair.image)
        except UserError as error:
            errors.append(str(error))
        try:
            label = self.read_label(pair.label)
            ids = image_files.to_train_ids(label, self.TRAIN_IDS, pair.label)
        except UserError as error:
            errors.append(str(error))
        label_size = image_files.label_size(pair.label) if label is None else label.shape
        if size and label_size and size != label_size:
            errors.append(
                f"{pair.image} is {size[0]} x {size[1]} (height x width), but its label {pair.label} is "
                f"{label_size[0]} x {label_size[1]}.{_exif_advice(size, label_size, orientation)}"
            )
        elif orientation != 1:
            warnings.append(
                f"{pair.image} has the EXIF orientation {orientation}, and its stored size is that of its label: "
                "the record keeps the pixels as stored, like the label."
            )
        if errors or size is None or ids is None:
            return Finding(errors=tuple(errors), warnings=tuple(warnings))
        counts = image_files.count_ids(ids, len(self.NAMES))
        if not counts[:-1].any():
            warnings.append(f"{pair.label} ignores every pixel: nothing can be learnt from it.")
        png = image_files.encode_label(ids)
        return Finding(
            warnings=tuple(warnings),
            label=png,
            size=size,
            counts=counts,
            palette=image_files.is_palette(pair.label),
            num_bytes=len(png) + pair.image.stat().st_size,
        )

    def stamp(self, pair: Pair) -> str:
        """See `SegmentationBuilder.stamp`: depends on both files, and on the classes."""
        stats = [path.stat() for path in (pair.image, pair.label)]
        return json.dumps(
            [
                str(self.VERSION),
                list(self.NAMES),
                _digest(self.TRAIN_IDS),
                str(pair.image),
                str(pair.label),
                *[(stat.st_size, stat.st_mtime_ns) for stat in stats],
            ]
        )

    def image(self, pair: Pair) -> bytes:
        """See `SegmentationBuilder.image`."""
        return pair.image.read_bytes()


def _exif_advice(size: Sequence[int], label_size: Sequence[int], orientation: int) -> str:
    """A sentence on how EXIF may explain that the sizes differ, "" if it cannot."""
    if orientation == 1:
        return ""
    if size == label_size[::-1]:
        return (
            f" The likely cause is the EXIF orientation {orientation} of the image, which was applied before the "
            "image was labelled: apply it to the pixels, and remove the tag."
        )
    return f" The EXIF orientation of the image is {orientation}, which may be the cause."


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.asarray(array, np.int64).tobytes()).hexdigest()
