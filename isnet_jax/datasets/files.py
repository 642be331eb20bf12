"""Image and label files: reading, checking and writing them, one at a time."""

import io
import struct
import warnings
import zlib

import numpy as np
import tensorflow as tf
from PIL import Image

from isnet_jax.errors import UserError

IGNORED = 255  # the train id of pixels that count neither in the loss nor in the score
MAX_PIXELS = 100_000_000  # larger files are refused before anything is decoded
ORIENTATION = 274  # the EXIF tag; 1 is upright

warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # MAX_PIXELS takes its place
tf.config.set_visible_devices([], 'GPU')  # the accelerator is JAX's


def open_image(path, formats):
    """Reads a file, and its header.

    Args:
      path: Path.
      formats: the formats to accept, Pillow's names.

    Returns:
      The file's bytes, and a Pillow image that is not decoded yet.

    Raises:
      UserError: the file cannot be read, is of another format, or has more than MAX_PIXELS.
    """
    try:
        data = path.read_bytes()
        image = Image.open(io.BytesIO(data), formats=formats)
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
    except Image.UnidentifiedImageError:
        kind = 'empty' if not data else f'no readable {" or ".join(formats)} file'
        raise UserError(f'{path} is {kind}.') from None
    except Image.DecompressionBombError:  # Pillow's own limit is higher, but it may be what stops us
        raise UserError(f'{path} has more than {MAX_PIXELS // 10**6} megapixels, the most accepted.') from None
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror or error}).') from None
    except Exception as error:  # Pillow raises a wide mix on damaged files, struct.error and SyntaxError among them
        raise UserError(f'{path} is damaged ({error}).') from None
    return data, image


def check_image(path):
    """Decodes an image file as training will, which proves it whole.

    Args:
      path: Path of a JPEG or PNG of any colour mode.

    Returns:
      (height, width); the EXIF orientation, 1 if there is none; a list of what else is wrong, one sentence each.

    Raises:
      UserError: not even the header can be read.
    """
    data, image = open_image(path, ('JPEG', 'PNG'))
    size, orientation, errors = (image.height, image.width), _orientation(data, image), []
    png = image.format == 'PNG'
    if png and data[24] > 8:  # the bit depth in the header
        errors.append(f'{path} has more than 8 bits a channel: convert it to 8 bits.')
    try:
        # Damage shows in the entropy code: an eighth of the size proves as much as the whole.
        tf.io.decode_png(data, channels=3) if png else tf.io.decode_jpeg(data, channels=3, ratio=8)
    except tf.errors.InvalidArgumentError:
        errors.append(f'{path} is damaged ({_complaint(image)}).')
    return size, orientation, errors


def _orientation(data, image):
    if image.format == 'PNG' and b'eXIf' not in data:
        return 1  # to look for it, Pillow would decode the whole image
    try:
        return image.getexif().get(ORIENTATION) or 1
    except Exception:  # damaged EXIF tells nothing, and nothing here needs it
        return 1


def _complaint(image):
    try:
        image.load()
    except Exception as error:
        return error
    return 'TensorFlow, which decodes it in training, refuses it'


def label_size(path):
    """Returns (height, width) as the header of a PNG says, or None."""
    try:
        return open_image(path, ('PNG',))[1].size[::-1]
    except UserError:
        return None


def is_palette(path):
    """Returns whether a file is a palette PNG."""
    with path.open('rb') as file:
        header = file.read(26)
    return header[:8] == b'\x89PNG\r\n\x1a\n' and header[25:] == b'\x03'


def read_index_label(path):
    """Reads a PNG whose pixels are indices: grey or palette (whose colours do not matter) of any bit depth.

    Returns:
      The indices [height, width], an integer dtype.

    Raises:
      UserError: the file cannot be read, or is of a colour type.
    """
    data, image = open_image(path, ('PNG',))
    if image.mode not in ('P', 'L', '1', 'I', 'I;16'):
        raise UserError(f'{path} is a colour image ({image.mode}), where a grey or palette PNG of class indices is '
                        'expected.')
    try:
        index = np.array(image)  # of a palette image, the indices; image.convert would make colours of them
    except Exception as error:
        raise UserError(f'{path} is damaged ({error}).') from None
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
    ids = np.asarray(table, np.int16)[np.where(inside, label, 0)]
    wrong = ~inside | (ids < 0)
    if wrong.any():
        row, col = np.argwhere(wrong)[0]
        raise UserError(f'{path} holds values that are no labels: {_ranges(np.unique(label[wrong]))}, in '
                        f'{wrong.sum()} pixel{"s" if wrong.sum() > 1 else ""}, the first at row {row}, column {col}; '
                        f'the labels allowed are {_ranges(np.flatnonzero(np.asarray(table) >= 0))}.')
    return ids.astype(np.uint8)


def _ranges(values):
    """Writes sorted integers as ranges: [0, 1, 2, 5] as '0..2, 5'."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ', '.join(f'{run[0]}..{run[-1]}' if len(run) > 1 else f'{run[0]}' for run in runs)


def count_ids(ids, num_classes):
    """Returns the pixels of each class and, last, those ignored: int64 [num_classes + 1], of train ids uint8."""
    counts = np.bincount(ids.ravel(), minlength=256)
    return counts[[*range(num_classes), IGNORED]]


def encode_png(pixels):
    """Returns uint8 [height, width, 3] as the bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    return file.getvalue()


def encode_label(ids):
    """Returns uint8 [height, width] as the bytes of a grey PNG that decodes fast.

    Its rows are not filtered, as Pillow would do: on labels that decodes in two thirds of the time, and is smaller.
    """
    height, width = ids.shape
    rows = np.pad(ids, ((0, 0), (1, 0)))  # each begins with the number of its filter, 0

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(rows, 6)) + chunk(b'IEND', b''))
