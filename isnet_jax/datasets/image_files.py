"""Reading, checking and encoding one image or label file at a time."""

import functools
import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import tensorflow as tf
from PIL import Image

from isnet_jax.errors import UserError
from isnet_jax.labels import IGNORED
from isnet_jax.runtime import limits

ORIENTATION = 274  # the EXIF tag; 1 is upright
BLOCK_PIXELS = 2**18  # of a label, processed at a time
MAX_VALUES, MAX_RANGES = 1000, 20  # of illegal values, in a message


@functools.cache
def hide_accelerators() -> None:
    """Leaves accelerators to JAX; TensorFlow would take their memory. To be called before TensorFlow computes."""
    tf.config.set_visible_devices([], "GPU")


def open_image(path: Path, formats: tuple[str, ...]) -> tuple[bytes, Image.Image]:
    """The bytes of a file, and its Pillow image, of which only the header is decoded.

    `formats` are the accepted ones, by Pillow's names. Raises UserError if the file cannot be read, is in another
    format, or is too large to decode.
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
        kind = "empty" if not data else f"not a readable {' or '.join(formats)} file"
        raise UserError(f"{path} is {kind}.") from None
    except Image.DecompressionBombError:  # Pillow's own limit is higher, but may be reached first
        raise UserError(f"{path} {limits.TOO_LARGE}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from None
    except Exception as error:  # for damaged files Pillow raises struct.error, SyntaxError and others
        raise UserError(f"{path} is damaged ({error}).") from None
    return data, image


def check_image(path: Path) -> tuple[tuple[int, int], int, list[str]]:
    """Decodes a JPEG or PNG of any colour mode, as training will, to prove that it is intact.

    Returns (height, width), the EXIF orientation (1 if there is none), and a sentence for each problem. Raises
    UserError if not even the header can be read.
    """
    data, image = open_image(path, ("JPEG", "PNG"))
    size, orientation, errors = (image.height, image.width), _orientation(data, image), []
    if image.format == "PNG" and data[24] > 8:  # the bit depth in the header
        errors.append(f"{path} has more than 8 bits a channel: convert it to 8 bits.")
    try:
        # Damage shows in the entropy code: an eighth of the size proves as much as the whole.
        decode_image(data, ratio=8)
    except (tf.errors.OpError, ValueError):
        errors.append(f"{path} is damaged ({_why_undecodable(image)}).")
    return size, orientation, errors


def _orientation(data: bytes, image: Image.Image) -> int:
    if image.format == "PNG" and b"eXIf" not in data:
        return 1  # Pillow would decode the whole image to look for it
    try:
        return image.getexif().get(ORIENTATION) or 1
    except Exception:  # damaged EXIF is of no consequence here
        return 1


def decode_image(data: bytes, region: Sequence[int] | None = None, ratio: int = 1) -> np.ndarray:
    """Decodes a JPEG or PNG of any colour mode, as training does: uint8 (H, W, 3).

    With `region` = (top, left, height, width), only that part. `ratio`, one of 1, 2, 4 and 8, is the factor by which
    a whole JPEG is downscaled. Raises ValueError or one of TensorFlow's errors for an image that is damaged, too large
    or in another format.
    """
    hide_accelerators()
    data = limits.decodable(data)
    if not data.startswith(limits.JPEG):
        image = _to_numpy(tf.io.decode_png(data, channels=3))
        if region is not None:
            top, left, height, width = region
            image = image[top : top + height, left : left + width]
            if image.shape[:2] != (height, width):
                raise ValueError("the image is smaller than its label")
        return image
    if region is None:
        return _to_numpy(tf.io.decode_jpeg(data, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE"))
    return _to_numpy(tf.image.decode_and_crop_jpeg(data, region, channels=3, dct_method="INTEGER_ACCURATE"))


def decode_label(data: bytes) -> np.ndarray:
    """Decodes the label of a record, a greyscale PNG of train ids: uint8 (H, W).

    Raises ValueError or cv2.error for a label that is damaged, too large or in another format.
    """
    data = limits.decodable(data)
    label = None if data.startswith(limits.JPEG) else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if label is None:
        raise ValueError("the label is not a PNG, or is damaged")
    return label


def _to_numpy(tensor: tf.Tensor) -> np.ndarray:
    return np.asarray(memoryview(tensor))  # without a copy


def _why_undecodable(image: Image.Image) -> str:
    try:
        image.load()
    except Exception as error:
        return str(error)
    return "TensorFlow, which decodes it in training, rejects it"


def label_size(path: Path) -> tuple[int, int] | None:
    """(height, width) in the header of a PNG, or None if it cannot be read."""
    try:
        _, image = open_image(path, ("PNG",))
    except UserError:
        return None
    return image.height, image.width


def is_palette(path: Path) -> bool:
    """Whether a file is a palette PNG."""
    with path.open("rb") as file:
        header = file.read(26)
    return header.startswith(limits.PNG) and header[25:] == b"\x03"


def read_index_label(path: Path) -> np.ndarray:
    """The indices in a greyscale or palette PNG of any bit depth: integers (H, W). Palette colours do not matter.

    Raises UserError if the file cannot be read or is a colour image.
    """
    _, image = open_image(path, ("PNG",))
    if image.mode not in ("P", "L", "1", "I", "I;16"):
        raise UserError(
            f"{path} is a colour image ({image.mode}): labels must be greyscale or palette PNGs of class indices."
        )
    tiles = getattr(image, "tile", None)
    stretch = {"L;2": 85, "L;4": 17}.get(tiles[0][3]) if tiles else None  # Pillow scales these to 0..255
    try:
        index = np.array(image)  # the indices of a palette image; image.convert would look up their colours
    except Exception as error:
        raise UserError(f"{path} is damaged ({error}).") from None
    if stretch:
        index //= stretch
    return index.astype(np.uint8) if index.dtype == bool else index


def to_train_ids(label: np.ndarray, table: np.ndarray, path: Path) -> np.ndarray:
    """Maps the values of a label file, integers (H, W), to train ids: uint8 (H, W).

    `table`, int (n,), holds at each value its train id, 255 if ignored, -1 if illegal; values from n on are illegal.
    Raises UserError for illegal values, naming them and `path`.
    """
    table = np.asarray(table, np.int16)
    ids = np.empty(label.shape, np.uint8)
    illegal_values, illegal_pixels, first = np.zeros(0, label.dtype), 0, (0, 0)
    for rows in _row_blocks(label):
        block = label[rows]
        in_table = (block >= 0) & (block < len(table))
        block_ids = table[np.where(in_table, block, 0)]
        illegal = ~in_table | (block_ids < 0)
        if illegal.any():
            illegal_values = np.union1d(illegal_values, block[illegal])[:MAX_VALUES]
            if not illegal_pixels:
                row, column = np.argwhere(illegal)[0]
                first = rows.start + row, column
            illegal_pixels += illegal.sum()
        ids[rows] = block_ids
    if illegal_pixels:
        raise UserError(
            f"{path} holds values that are not labels: {_ranges(illegal_values)}, in {illegal_pixels} "
            f"pixel{'s' if illegal_pixels > 1 else ''}, the first at row {first[0]}, column {first[1]}; the legal "
            f"values are {_ranges(np.flatnonzero(table >= 0))}."
        )
    return ids


def _row_blocks(array: np.ndarray) -> list[slice]:
    """Slices of rows, each of about BLOCK_PIXELS: what is computed from a block takes little memory."""
    rows = max(1, BLOCK_PIXELS // max(1, array.shape[1]))
    return [slice(top, top + rows) for top in range(0, len(array), rows)]


def _ranges(values: np.ndarray) -> str:
    """Sorted integers as ranges: "0..2, 5" for 0, 1, 2, 5."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    text = ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs[:MAX_RANGES])
    return text + ", ..." * (len(runs) > MAX_RANGES)


def count_ids(ids: np.ndarray, num_classes: int) -> np.ndarray:
    """The number of pixels of each class and, last, of ignored pixels, in train ids uint8 (H, W): int64 (K + 1,)."""
    counts = np.zeros(256, np.int64)
    for rows in _row_blocks(ids):
        counts += np.bincount(ids[rows].ravel(), minlength=256)
    return counts[[*range(num_classes), IGNORED]]


def encode_png(pixels: np.ndarray) -> bytes:
    """An RGB image, uint8 (H, W, 3), as a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def encode_label(ids: np.ndarray) -> bytes:
    """Train ids, uint8 (H, W), as a greyscale PNG that decodes fast.

    Its rows are not filtered, unlike Pillow's: such labels are smaller, and decode in two thirds of the time.
    """
    height, width = ids.shape
    rows = np.pad(ids, ((0, 0), (1, 0)))  # each begins with its filter type, 0

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return (
        limits.PNG
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 6))
        + chunk(b"IEND", b"")
    )
