"""What all data sets share: one record layout, and one careful way from a folder of pairs to records."""

import abc
import collections
import concurrent.futures
import io
import itertools
import os
import warnings
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from PIL import Image

from isnet_jax.errors import UserError

IGNORED = 255  # the train id of pixels that count neither in the loss nor in the score
MAX_PIXELS = 100_000_000  # larger files are refused before anything is decoded
MAX_PROBLEMS = 20  # so many are told in full

# For builder.as_data_source: leaves image and label encoded.
ENCODED = {'image': tfds.decode.SkipDecoding(), 'label': tfds.decode.SkipDecoding()}

tfds.core.utils.gcs_utils._is_gcs_disabled = True  # nothing here may reach for the network
warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # MAX_PIXELS takes its place


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder):
    """Writes records {image, label, height, width, name} in array_record files, in a fixed order.

      image: an encoded JPEG or PNG, byte for byte the original file: of any colour mode, EXIF not applied.
      label: an 8-bit grey PNG of the image's size with train ids 0..K-1, and 255 where ignored.
      height, width: int32, of both.
      name: the file's stem.

    info.metadata holds 'names' (K strings), 'palette' (K lists [r, g, b]) and 'source' (the absolute path it
    was prepared from, '' if there is none). A subclass sets the constants and defines `items` and `record`.
    """

    VERSION = tfds.core.Version('1.0.0')
    NAMES: tuple  # K strings
    PALETTE: tuple  # K triples of 0..255
    DESCRIPTION: str
    CITATION = ''
    HOMEPAGE = ''
    COUNTS = {}  # the official number of examples of each split, where there is one
    LAYOUT = ''  # what a source folder must look like; '' where the data set needs no source

    def __init__(self, *, source=None, **kwargs):
        self.source = source
        super().__init__(**kwargs)

    @abc.abstractmethod
    def items(self):
        """Returns {split: [item, ...]}, one item for a record; adds what is amiss to the list self.problems."""

    @abc.abstractmethod
    def record(self, item):
        """Returns the record of an item, a dict as above; raises UserError with one sentence if it cannot."""

    def _info(self):
        features = tfds.features.FeaturesDict({
            'image': tfds.features.Image(shape=(None, None, 3)),
            'label': tfds.features.Image(shape=(None, None, 1), encoding_format='png'),
            'height': np.int32,
            'width': np.int32,
            'name': tfds.features.Text(),
        })
        metadata = tfds.core.MetadataDict(
            names=list(self.NAMES), palette=[list(color) for color in self.PALETTE], source=str(self.source or ''))
        return tfds.core.DatasetInfo(
            builder=self, features=features, metadata=metadata, description=self.DESCRIPTION,
            citation=self.CITATION, homepage=self.HOMEPAGE, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        self.problems = []
        items = self.items()
        # One stream runs through all splits, so that a problem in the first still gets the last one checked.
        stream = self._stream(list(itertools.chain.from_iterable(items.values())))
        return {split: self._generate_examples(stream, len(items[split])) for split in items}

    def _generate_examples(self, stream, count):
        """Yields (index, record) for the next `count` of the stream; on a problem checks all the rest, raises."""
        for key, record in enumerate(itertools.islice(stream, count)):
            if self.problems:
                break
            yield key, record
        if self.problems:
            collections.deque(stream, maxlen=0)
            raise UserError(self._report())

    def _stream(self, items):
        """Yields each item's record, or None after adding to self.problems, working ahead in threads."""
        workers = min(16, os.cpu_count())
        with (concurrent.futures.ThreadPoolExecutor(workers) as pool,
              tqdm.tqdm(total=len(items), desc=f'preparing {self.name}', unit=' images', disable=None) as bar):
            remaining, running = iter(items), collections.deque()
            while True:
                # A bounded number ahead: finished records wait in memory.
                for item in itertools.islice(remaining, 4 * workers - len(running)):
                    running.append(pool.submit(self._try_record, item))
                if not running:
                    return
                record, problem = running.popleft().result()
                if problem:
                    self.problems.append(problem)
                bar.update()
                yield record

    def _try_record(self, item):
        """Returns (record, None), or (None, what is wrong)."""
        try:
            return self.record(item), None
        except UserError as error:
            return None, str(error)

    def _report(self):
        count = len(self.problems)
        told = ' '.join(f'({i}) {problem}' for i, problem in enumerate(self.problems[:MAX_PROBLEMS], 1))
        rest = f' ... and {count - MAX_PROBLEMS} more.' if count > MAX_PROBLEMS else ''
        noun = 'problem' if count == 1 else 'problems'
        return (f'{self.source} cannot be prepared as {self.name}: {count} {noun}: {told}{rest} Mend the files '
                f'(the layout is {self.LAYOUT}) and run again; nothing has been kept of this attempt.')

    # TFDS announces and sums up on standard output; one progress bar says enough.
    def _log_download_bytes(self):
        pass

    def _log_download_done(self):
        pass


class FolderBuilder(SegmentationBuilder):
    """A data set of image files and label files, which hold an integer for each pixel."""

    TRAIN_IDS: np.ndarray  # int [n], file value -> train id or 255 (ignored), -1 for a value that may not occur

    def items(self):
        """Returns {split: [Pair, ...]}, see `SegmentationBuilder.items`."""
        return self.pairs(Path(self.source))

    @abc.abstractmethod
    def pairs(self, source):
        """Returns {split: [Pair, ...]} of the tree `source`, Path; adds what is amiss to the list self.problems."""

    def read_label(self, path):
        """Returns the integers in a label file [height, width]; raises UserError."""
        return read_index_label(path)

    def record(self, pair):
        """Reads and checks a Pair, see `SegmentationBuilder.record`."""
        data, image = read_image(pair.image, ('JPEG', 'PNG'))
        if image.mode.startswith(('I', 'F')):
            raise UserError(f'{pair.image} has more than 8 bits a channel: convert it to 8 bits.')
        label = self.read_label(pair.label)
        height, width = label.shape
        if image.size != (width, height):
            raise UserError(f'{pair.image} is {image.height} x {image.width} (height x width), but its label '
                            f'{pair.label} is {height} x {width}.')
        check_decodes(data, pair.image)
        ids = to_train_ids(label, self.TRAIN_IDS, pair.label)
        return {'image': data, 'label': encode_png(ids), 'height': height, 'width': width, 'name': pair.name}


def read_image(path, formats):
    """Reads a file and decodes it in full, which proves it whole.

    Args:
      path: Path.
      formats: the formats to accept, Pillow's names.

    Returns:
      The file's bytes, and a loaded Pillow image of whatever mode.

    Raises:
      UserError: the file cannot be read or decoded, or has more than MAX_PIXELS.
    """
    try:
        data = path.read_bytes()
        image = Image.open(io.BytesIO(data), formats=formats)  # reads the header only
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        image.load()
    except Image.UnidentifiedImageError:
        kind = 'empty' if not data else f'no readable {" or ".join(formats)} file'
        raise UserError(f'{path} is {kind}.') from None
    except Image.DecompressionBombError:  # Pillow's own limit is higher, but it may be what stops us
        raise UserError(f'{path} has more than {MAX_PIXELS // 10**6} megapixels, the most accepted.') from None
    except Exception as error:  # Pillow raises a wide mix on damaged files, struct.error and SyntaxError among them
        raise UserError(f'{path} is damaged or unreadable ({error}).') from None
    return data, image


def check_decodes(data, path):
    """Raises UserError unless the decoder that training uses takes the image; it is stricter than Pillow."""
    import tensorflow as tf

    from isnet_jax import augment
    try:
        augment.decode_image(data)
    except tf.errors.InvalidArgumentError as error:
        raise UserError(f'{path} is damaged ({error.message.splitlines()[0]}).') from None


def read_index_label(path):
    """Reads a PNG whose pixels are indices: grey or palette (whose colours do not matter) of any bit depth.

    Returns:
      The indices [height, width], an integer dtype.

    Raises:
      UserError: the file cannot be read, or is of a colour type.
    """
    data, image = read_image(path, ('PNG',))
    if image.mode not in ('P', 'L', '1', 'I', 'I;16'):
        raise UserError(f'{path} is a colour image ({image.mode}), where a grey or palette PNG of class indices is '
                        'expected.')
    index = np.array(image)  # of a palette image, the indices; image.convert would make colours of them
    depth = data[24]  # of the PNG header
    if image.mode == 'L' and depth < 8:
        index //= 255 // (2**depth - 1)  # Pillow stretches fewer bits over 0..255
    return index.astype(np.uint8) if index.dtype == bool else index


def to_train_ids(label, table, path):
    """Maps the values in a label file to train ids.

    Args:
      label: integers [height, width].
      table: int [n], value -> train id or 255, -1 where the value may not occur.
      path: the file, for the message.

    Returns:
      uint8 [height, width].

    Raises:
      UserError: a value may not occur.
    """
    inside = (label >= 0) & (label < len(table))
    ids = np.full(label.shape, -1, np.int16)
    ids[inside] = table[label[inside]]
    if (ids < 0).any():
        row, col = np.argwhere(ids < 0)[0]
        raise UserError(f'{path} holds the label {label[row, col]} at row {row}, column {col} (the first of '
                        f'{(ids < 0).sum()} pixels out of range), but the labels allowed are '
                        f'{_ranges(np.flatnonzero(table >= 0))}.')
    return ids.astype(np.uint8)


def encode_png(pixels):
    """Returns uint8 [height, width] or [height, width, 3] as the bytes of a grey or colour PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    return file.getvalue()


def open_or_prepare(builder_class, data_dir, source):
    """Does the work of `isnet_jax.datasets.load` for a subclass of SegmentationBuilder."""
    name = builder_class.name
    if source and not builder_class.LAYOUT:
        raise UserError(f'config.data.source is {source}, but the data set {name} needs no source: leave it empty.')
    source = Path(source).expanduser().resolve() if source else None
    data_dir = os.path.expanduser(data_dir) if data_dir else None
    builder = _open(builder_class, data_dir, source)
    if not builder.data_path.exists():
        if builder_class.LAYOUT and not source:
            raise UserError(f'The data set {name} is not prepared in {builder.data_path}: set config.data.source=DIR '
                            f'to the folder that holds it ({builder_class.LAYOUT}), or TFDS_DATA_DIR to where it is '
                            'prepared.')
        _prepare(builder)
        builder = _open(builder_class, data_dir, source)
    prepared_from = builder.info.metadata['source']
    if source and str(source) != prepared_from:
        raise UserError(f'{builder.data_path} has been prepared from {prepared_from}, but config.data.source is now '
                        f'{source}: leave it empty to use what is there, delete {builder.data_path} to prepare anew, '
                        'or choose another data_dir.')
    return builder


def _open(builder_class, data_dir, source):
    """Returns a builder, prepared or not; raises UserError if what is there is damaged or foreign."""
    try:
        builder = builder_class(data_dir=data_dir, source=source)
        if builder.data_path.exists():
            if list(builder.info.metadata['names']) != list(builder_class.NAMES):  # [] loads what is stored, get not
                raise ValueError('it holds other classes')
            for path in [path for split in builder.info.splits.values() for path in split.filepaths] or ['no split']:
                if not os.path.exists(path):
                    raise ValueError(f'{path} is missing')
    except Exception as error:  # TFDS raises AssertionError, json errors and its own
        place = os.path.join(data_dir or tfds.core.constants.DATA_DIR, builder_class.name)
        raise UserError(f'What is in {place} is no complete data set {builder_class.name} of this program ({error}): '
                        'delete it to prepare anew, or choose another data_dir.') from None
    return builder


def _prepare(builder):
    """Writes the data set under a temporary name and renames it at the end; raises UserError."""
    if builder.source and not builder.source.is_dir():
        raise UserError(f'config.data.source is {builder.source}, which is no folder: give the folder that holds '
                        f'{builder.LAYOUT}.')
    shows_progress = tfds.core.utils.tqdm_utils._active
    tfds.disable_progress_bar()  # four bars of TFDS; ours is enough
    try:
        builder.download_and_prepare(
            file_format='array_record', download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except OSError as error:
        if not builder.data_path.exists():  # else another process has prepared it meanwhile
            raise UserError(f'Cannot write the data set {builder.name} to {builder.data_path} ({error}): mend that or '
                            'choose another data_dir.') from None
    finally:
        tfds.display_progress_bar(shows_progress)


def _ranges(values):
    """Writes sorted integers as ranges: [0, 1, 2, 5] as '0..2, 5'."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ', '.join(f'{run[0]}..{run[-1]}' if len(run) > 1 else f'{run[0]}' for run in runs)
