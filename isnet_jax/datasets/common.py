"""What all data sets share: the record layout, and the builders' base class."""

import abc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from isnet_jax.datasets.journal import Finding, Journal
from isnet_jax.datasets.pairing import Findings
from isnet_jax.datasets.statistics import Survey
from isnet_jax.datasets.tables import Color
from isnet_jax.errors import UserError
from isnet_jax.runtime import limits
from isnet_jax.runtime.threads import map_in_order

# Decoders for builder.as_data_source that leave image and label encoded.
ENCODED = {"image": tfds.decode.SkipDecoding(), "label": tfds.decode.SkipDecoding()}
MAX_PIXELS = 2 * limits.MAX_PIXELS  # of the images in memory at a time, unless one alone has more
SHARD_BYTES = 2**27  # approximately; a shard is held in memory while it is written


class SegmentationBuilder(tfds.core.ShardBasedBuilder):
    """Writes records {image, label, height, width, name} to array_record files, in a fixed order.

      image: a JPEG or PNG of any colour mode: the original, with its end marker, or the pixels of another format. It is
        to be turned as its EXIF orientation says if metadata["upright"] is true.
      label: an 8-bit greyscale PNG of the image's size with train ids 0..K-1, and 255 where ignored.
      height, width: int32, of both.
      name: the name of the item.

    info.metadata holds "names" (K strings), "palette" (K lists [r, g, b]), "source" (the absolute path of the original
    files, "" if there are none), "examples" ({split: [[name, height, width], ...]}), "pixels" ({split: [of each class
    and, last, ignored ones]}), "stamps" ({split: a digest of its original files}) and "upright". A subclass sets the
    constants and defines `items`, `check` and `stamp`, and `image` unless its findings hold the images.
    """

    VERSION = tfds.core.Version("1.0.0")
    NAMES: tuple[str, ...]  # of the K classes
    PALETTE: tuple[Color, ...]  # of the K classes
    DESCRIPTION: str
    CITATION = ""
    HOMEPAGE = ""
    COUNTS: dict[str, int] = {}  # the official number of examples of each split, if there is one
    LAYOUT = ""  # of the source folder, for messages; "" if the data set needs no source
    UPRIGHT = False  # whether EXIF orientation is applied; the official code reads images as they are stored

    def __init__(self, *, source: Path | None = None, **kwargs: Any):
        self.source = source
        self.splits: tuple[str, ...] | None = None  # those to prepare, or all
        self.findings = Findings()  # of `items`
        super().__init__(**kwargs)

    @abc.abstractmethod
    def items(self) -> dict[str, list[Any]]:
        """{split: items}, an item with a `name` for each record; adds to `self.findings`."""

    @abc.abstractmethod
    def check(self, item: Any) -> Finding:
        """Reads or generates an item, and returns all that is wrong with it, or else its record. Runs in threads."""

    @abc.abstractmethod
    def stamp(self, item: Any) -> str:
        """A text that changes whenever the result of `check` might; raises OSError."""

    def image(self, item: Any) -> bytes:
        """The encoded image of an item, b"" if it is in the finding.

        Raises OSError, UserError, ValueError and Pillow's errors if its file is no longer as it was checked.
        """
        return b""

    def require_same_fields(self) -> None:
        """Raises UserError if the data set was prepared with other fields of the config than now."""

    def cost(self, item: Any) -> int:
        """The pixels that `check` or `image` hold in memory."""
        return 0

    def advice(self, problems: Sequence[UserError | str]) -> str:
        """How a config would accept what has `problems`, "" if there is no way."""
        return ""

    def doubts(self, survey: Survey) -> tuple[list[str], list[str]]:
        """Problems and warnings that no single file shows."""
        return [], []

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
            names=list(self.NAMES),
            palette=[list(color) for color in self.PALETTE],
            source=str(self.source or ""),
            upright=self.UPRIGHT,
        )
        return _DatasetInfo(
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
        self.info.metadata["pixels"] = {split: part.pixels.tolist() for split, part in survey.statistics.items()}
        self.info.metadata["stamps"] = {split: self.split_stamp(items) for split, items in survey.items.items()}
        self.download_and_prepare(
            file_format="array_record", download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )

    def split_stamp(self, items: Sequence[Any]) -> str:
        """A text that changes with any of the original files of a split; "" if there are none; raises OSError."""
        return ""

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list[Callable]]:
        survey, journal, advance = self._to_write

        def iterate(items: Sequence[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
            for key, record in enumerate(
                map_in_order(lambda item: self._record(item, journal), items, self.cost, MAX_PIXELS)
            ):
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
        except Exception:  # of any kind: the file, which was intact, is not
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


class _DatasetInfo(tfds.core.DatasetInfo):
    """Asks no server for what is not prepared; TFDS would leave an empty temporary folder each time."""

    def initialize_from_bucket(self) -> None:
        pass


class _ExampleWriter(tfds.core.writer.ExampleWriter):
    """Writes the features of a record in a fixed order, so that equal data sets have equal bytes."""

    def write(self, path: Any, examples: Iterator[tuple[Any, bytes]]) -> Any:
        def in_fixed_order(example: bytes) -> bytes:
            return tf.train.Example.FromString(example).SerializeToString(deterministic=True)

        return super().write(path, ((key, in_fixed_order(example)) for key, example in examples))
