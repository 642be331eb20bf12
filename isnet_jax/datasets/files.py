"""Image and label files: reading, checking and writing them, one at a time."""

import io
import struct
import zlib

import cv2
import numpy as np
import tensorflow as tf
from PIL import Image

from isnet_jax import limits
from isnet_jax.errors import UserError

IGNORED = 255  # the train id of pixels that count neither in the loss nor in the score
ORIENTATION = 274  # the EXIF tag; 1 is upright
BLOCK_PIXELS = 2**18  # of a label, looked at together
MOST_VALUES, MOST_RANGES = 1000, 20  # of wrong values in a message

tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's


def open_image(path, formats):
    """Reads a file, and its header.

    Args:
      path: Path.
      formats: the formats to accept, Pillow's names.

    Returns:
      The file's bytes, and a Pillow image that is not decoded yet.

    Raises:
      UserError: the file cannot be read, is of another format, or too large to be decoded.
    """
    data = None
    try:
        data = limits.read(path)
        image = limits.open_image(io.BytesIO(data), formats)
        if data.startswith(limits.JPEG):
            limits.check_scans(data)
    except limits.TooLarge as error:
        raise UserError(f"{path} {error}.") from None
    except Image.UnidentifiedImageError:
        kind = "empty" if not data else f"no readable {' or '.join(formats)} file"
        raise UserError(f"{path} is {kind}.") from None
    except Image.DecompressionBombError:  # Pillow's own limit is higher, but it may be what stops us
        raise UserError(f"{path} {limits.TOO_LARGE}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from None
    except Exception as error:  # Pillow raises a wide mix on damaged files, struct.error and SyntaxError among them
        raise UserError(f"{path} is damaged ({error}).") from None
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
    data, image = open_image(path, ("JPEG", "PNG"))
    size, orientation, errors = (image.height, image.width), _orientation(data, image), []
    png = image.format == "PNG"
    if png and data[24] > 8:  # the bit depth in the header
        errors.append(f"{path} has more than 8 bits a channel: convert it to 8 bits.")
    try:
        # Damage shows in the entropy code: an eighth of the size proves as much as the whole.
        decode_image(data, ratio=8)
    except (tf.errors.OpError, ValueError):
        errors.append(f"{path} is damaged ({_complaint(image)}).")
    return size, orientation, errors


def _orientation(data, image):
    if image.format == "PNG" and b"eXIf" not in data:
        return 1  # to look for it, Pillow would decode the whole image
    try:
        return image.getexif().get(ORIENTATION) or 1
    except Exception:  # damaged EXIF tells nothing, and nothing here needs it
        return 1


def decode_image(data, part=None, ratio=1):
    """Decodes an image as training does.

    Args:
      data: an encoded JPEG or PNG, of any colour mode.
      part: (top, left, height, width), what alone is wanted; None means the whole.
      ratio: 1, 2, 4 or 8, by which a JPEG is made smaller; for the whole alone.

    Returns:
      uint8 [height, width, 3].

    Raises:
      ValueError or one of TensorFlow's errors: it is damaged, too large or of another format.
    """
    data = limits.decodable(data)
    if not data.startswith(limits.JPEG):
        image = _pixels(tf.io.decode_png(data, channels=3))
        if part is not None:
            top, left, height, width = part
            image = image[top : top + height, left : left + width]
            if image.shape[:2] != (height, width):
                raise ValueError("the image is smaller than its label")
        return image
    if part is None:
        return _pixels(tf.io.decode_jpeg(data, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE"))
    return _pixels(tf.image.decode_and_crop_jpeg(data, part, channels=3, dct_method="INTEGER_ACCURATE"))


def decode_label(data):
    """Decodes the label of a record, a grey PNG of train ids.

    Returns:
      uint8 [height, width].

    Raises:
      ValueError or cv2.error: it is damaged, too large or of another format.
    """
    data = limits.decodable(data)
    label = None if data.startswith(limits.JPEG) else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if label is None:
        raise ValueError("the label is no PNG, or damaged")
    return label


def _pixels(tensor):
    return np.asarray(memoryview(tensor))  # without a copy


def _complaint(image):
    try:
        image.load()
    except Exception as error:
        return error
    return "TensorFlow, which decodes it in training, refuses it"


def label_size(path):
    """Returns (height, width) as the header of a PNG says, or None."""
    try:
        return open_image(path, ("PNG",))[1].size[::-1]
    except UserError:
        return None


def is_palette(path):
    """Returns whether a file is a palette PNG."""
    with path.open("rb") as file:
        header = file.read(26)
    return header[:8] == b"\x89PNG\r\n\x1a\n" and header[25:] == b"\x03"


def read_index_label(path):
    """Reads a PNG whose pixels are indices: grey or palette (whose colours do not matter) of any bit depth.

    Returns:
      The indices [height, width], an integer dtype.

    Raises:
      UserError: the file cannot be read, or is of a colour type.
    """
    _, image = open_image(path, ("PNG",))
    if image.mode not in ("P", "L", "1", "I", "I;16"):
        raise UserError(
            f"{path} is a colour image ({image.mode}), where a grey or palette PNG of class indices is expected."
        )
    stretched = {"L;2": 85, "L;4": 17}.get(image.tile[0][3] if image.tile else None)  # by Pillow, over 0..255
    try:
        index = np.array(image)  # of a palette image, the indices; image.convert would make colours of them
    except Exception as error:
        raise UserError(f"{path} is damaged ({error}).") from None
    if stretched:
        index //= stretched
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
    table = np.asarray(table, np.int16)
    ids, values, pixels, first = np.empty(label.shape, np.uint8), np.zeros(0, label.dtype), 0, None
    for rows in _blocks(label):
        part = label[rows]
        inside = (part >= 0) & (part < len(table))
        found = table[np.where(inside, part, 0)]
        wrong = ~inside | (found < 0)
        if wrong.any():
            values = np.union1d(values, part[wrong])[:MOST_VALUES]
            first = first or (rows.start + np.argwhere(wrong)[0][0], np.argwhere(wrong)[0][1])
            pixels += wrong.sum()
        ids[rows] = found
    if pixels:
        raise UserError(
            f"{path} holds values that are no labels: {_ranges(values)}, in {pixels} "
            f"pixel{'s' if pixels > 1 else ''}, the first at row {first[0]}, column {first[1]}; the labels "
            f"allowed are {_ranges(np.flatnonzero(table >= 0))}."
        )
    return ids


def _blocks(array):
    """Returns slices of rows, of so few pixels each that what is computed from them takes little memory."""
    rows = max(1, BLOCK_PIXELS // max(1, array.shape[1]))
    return [slice(top, top + rows) for top in range(0, len(array), rows)]


def _ranges(values):
    """Writes sorted integers as ranges: [0, 1, 2, 5] as '0..2, 5'."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    text = ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs[:MOST_RANGES])
    return text + ", ..." * (len(runs) > MOST_RANGES)


def count_ids(ids, num_classes):
    """Returns the pixels of each class and, last, those ignored: int64 [num_classes + 1], of train ids uint8."""
    counts = sum((np.bincount(ids[rows].ravel(), minlength=256) for rows in _blocks(ids)), np.zeros(256, np.int64))
    return counts[[*range(num_classes), IGNORED]]


def encode_png(pixels):
    """Returns uint8 [height, width, 3] as the bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def encode_label(ids):
    """Returns uint8 [height, width] as the bytes of a grey PNG that decodes fast.

    Its rows are not filtered, as Pillow would do: on labels that decodes in two thirds of the time, and is smaller.
    """
    height, width = ids.shape
    rows = np.pad(ids, ((0, 0), (1, 0)))  # each begins with the number of its filter, 0

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows, 6))
        + chunk(b"IEND", b"")
    )
