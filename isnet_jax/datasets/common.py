"""What all data sets share: one record layout, and what a builder must say of itself."""

import abc
import hashlib
import json
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from isnet_jax.datasets import files
from isnet_jax.datasets.files import IGNORED  # noqa: F401  builders find it here
from isnet_jax.datasets.journal import Finding
from isnet_jax.datasets.survey import in_order
from isnet_jax.errors import UserError

# For builder.as_data_source: leaves image and label encoded.
ENCODED = {"image": tfds.decode.SkipDecoding(), "label": tfds.decode.SkipDecoding()}
SHARD_BYTES = 2**27  # about; so much is in memory while a shard is written

tfds.core.utils.gcs_utils._is_gcs_disabled = True  # nothing here may reach for the network


class SegmentationBuilder(tfds.core.ShardBasedBuilder):
    """Writes records {image, label, height, width, name} in array_record files, in a fixed order.

      image: an encoded JPEG or PNG, byte for byte the original file: of any colour mode, EXIF not applied.
      label: an 8-bit grey PNG of the image's size with train ids 0..K-1, and 255 where ignored.
      height, width: int32, of both.
      name: the item's.

    info.metadata holds 'names' (K strings), 'palette' (K lists [r, g, b]), 'source' (the absolute path it was
    prepared from, '' if there is none) and 'examples', {split: a list of [name, height, width] of each}. A
    subclass sets the constants and defines `items`, `check`, `stamp` and, unless its findings hold the images, `image`.
    """

    VERSION = tfds.core.Version("1.0.0")
    NAMES: tuple  # K strings
    PALETTE: tuple  # K triples of 0..255
    DESCRIPTION: str
    CITATION = ""
    HOMEPAGE = ""
    COUNTS: dict[str, int] = {}  # the official number of examples of each split, where there is one
    LAYOUT = ""  # what a source folder must look like; '' where the data set needs no source

    def __init__(self, *, source=None, **kwargs):
        self.source = source
        super().__init__(**kwargs)

    @abc.abstractmethod
    def items(self):
        """Returns {split: [item, ...]}, an item with a `name` for each record.

        What is amiss it adds to the lists self.problems (these stop the preparation) and self.warnings.
        """

    @abc.abstractmethod
    def check(self, item):
        """Reads an item, or makes it; returns its Finding. Runs in threads."""

    @abc.abstractmethod
    def stamp(self, item):
        """Returns a text that changes whenever what `check` finds might; raises OSError."""

    def image(self, item):
        """Returns the item's encoded image; b'' if it is in the Finding. Raises OSError."""
        return b""

    def _info(self):
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

    def write(self, survey, journal, advance):
        """Writes what has been surveyed, under a temporary name until it is whole.

        Args:
          survey: Survey.
          journal: the Journal that holds its findings.
          advance: called after each record.

        Raises:
          UserError: files have changed since they were checked.
          OSError: records cannot be written.
        """
        self._written = survey, journal, advance
        self.info.metadata["examples"] = {
            split: [
                [item.name, int(height), int(width)] for item, (height, width) in zip(items, survey.census[split].sizes)
            ]
            for split, items in survey.items.items()
        }
        self.download_and_prepare(
            file_format="array_record", download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )

    def _shard_iterators_per_split(self, dl_manager):
        survey, journal, advance = self._written

        def record(item):
            try:
                image = self.image(item)
                finding = journal.get(self.stamp(item))  # after reading: the stamp is of what was read, or of later
            except OSError:
                finding = None
            if finding is None:
                raise UserError(
                    f"The files of {item.name} in {self.source} have changed while the data set was being "
                    "prepared: run again when they are at rest."
                )
            height, width = finding.size
            return {
                "image": image or finding.image,
                "label": finding.label,
                "height": height,
                "width": width,
                "name": item.name,
            }

        def shard(items):
            for key, example in enumerate(in_order(record, items)):
                yield key, example
                advance()

        def shards(items, num_bytes):
            count = min(len(items), 1 + num_bytes // SHARD_BYTES)
            ends = [len(items) * i // count for i in range(count + 1)]
            return [lambda start=start, end=end: shard(items[start:end]) for start, end in zip(ends, ends[1:])]

        return {split: shards(items, survey.census[split].num_bytes) for split, items in survey.items.items()}

    def _example_writer(self):
        return _ExampleWriter(self.info.file_format)

    # TFDS announces and sums up on standard output; one progress bar says enough.
    def _log_download_bytes(self):
        pass

    def _log_download_done(self):
        pass


class _ExampleWriter(tfds.core.writer.ExampleWriter):
    """Puts the features of a record in one order, so that the same data set always has the same bytes."""

    def write(self, path, examples):
        def in_one_order(example):
            return tf.train.Example.FromString(example).SerializeToString(deterministic=True)

        return super().write(path, ((key, in_one_order(example)) for key, example in examples))


class FolderBuilder(SegmentationBuilder):
    """A data set of image files and label files, which hold an integer for each pixel."""

    TRAIN_IDS: np.ndarray  # int [n], file value -> train id or 255 (ignored), -1 for a value that may not occur

    def items(self):
        """Returns {split: [Pair, ...]}, see `SegmentationBuilder.items`."""
        return self.pairs(Path(self.source))

    @abc.abstractmethod
    def pairs(self, source):
        """Returns {split: [Pair, ...]} of the tree `source`, Path; see `SegmentationBuilder.items`."""

    def read_label(self, path):
        """Returns the integers in a label file [height, width]; raises UserError."""
        return files.read_index_label(path)

    def check(self, pair):
        """Reads a Pair and looks for all that may be wrong, see `SegmentationBuilder.check`."""
        errors, warnings, size, orientation, label, ids = [], [], None, 1, None, None
        try:
            size, orientation, errors = files.check_image(pair.image)
        except UserError as error:
            errors.append(str(error))
        try:
            label = self.read_label(pair.label)
            ids = files.to_train_ids(label, self.TRAIN_IDS, pair.label)
        except UserError as error:
            errors.append(str(error))
        label_size = files.label_size(pair.label) if label is None else label.shape
        if size and label_size and size != label_size:
            errors.append(
                f"{pair.image} is {size[0]} x {size[1]} (height x width), but its label {pair.label} is "
                f"{label_size[0]} x {label_size[1]}.{_cause(size, label_size, orientation)}"
            )
        elif orientation != 1:
            warnings.append(
                f"{pair.image} has the EXIF orientation {orientation}, and as it is stored it has the size "
                "of its label: the record keeps the pixels as stored, as the label is."
            )
        if errors:
            return Finding(errors=tuple(errors), warnings=tuple(warnings))
        counts = files.count_ids(ids, len(self.NAMES))
        if not counts[:-1].any():
            warnings.append(f"{pair.label} ignores every pixel: nothing can be learnt from it.")
        png = files.encode_label(ids)
        return Finding(
            warnings=tuple(warnings),
            label=png,
            size=size,
            counts=counts,
            palette=files.is_palette(pair.label),
            num_bytes=len(png) + pair.image.stat().st_size,
        )

    def stamp(self, pair):
        """See `SegmentationBuilder.stamp`: of both files, and of the classes."""
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

    def image(self, pair):
        """See `SegmentationBuilder.image`."""
        return pair.image.read_bytes()


def _cause(size, label_size, orientation):
    """Returns a sentence on what EXIF has to do with sizes that differ, '' if nothing."""
    if orientation == 1:
        return ""
    if size == label_size[::-1]:
        return (
            f" The likely cause is the EXIF orientation {orientation} of the image, by which it was turned before "
            "it was labelled: turn its pixels so, and remove the tag."
        )
    return f" The EXIF orientation of the image is {orientation}, which may be the cause."


def _digest(array):
    return hashlib.sha256(np.asarray(array, np.int64).tobytes()).hexdigest()
