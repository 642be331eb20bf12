"""Reading label files: greyscale, palette and colour images as numbers and colours."""

import io
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from isnet_jax.datasets import decoding, image_files
from isnet_jax.datasets.problems import FileProblem
from isnet_jax.runtime import limits

FORMATS = ("PNG", "TIFF", "BMP")
SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
SUBFILE = 254  # the TIFF tag; 1: a smaller version of another image
NUMBER_MODES = ("L", "1", "I", "I;16", "I;16B", "I;16L", "F")  # of Pillow


class LabelImage(NamedTuple):
    """The content of a label file. A greyscale value is also a colour, and a palette index has one."""

    values: np.ndarray | None  # integers (H, W): greyscale values or palette indices; None for other colour images
    palette: np.ndarray | None = None  # int64 (n,): the colour of each value, 0xrrggbb; None without a palette
    colors: np.ndarray | None = None  # int32 (H, W): 0xrrggbb of a colour image whose channels differ
    white: int = 255  # the greyscale value that is white

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        array = self.colors if self.values is None else self.values
        assert array is not None
        return array.shape  # type: ignore[return-value]


def read_label(path: Path) -> LabelImage:
    """Reads a PNG, TIFF or BMP of any bit depth; alpha is dropped. Raises FileProblem."""
    data, image = image_files.open_image(path, (*FORMATS, "JPEG"))
    if data.startswith(limits.JPEG):
        raise FileProblem(
            path, "is a JPEG, whose compression changes the values of classes: write labels as PNG files."
        )
    stretch = _stretch(image)
    if image.format == "TIFF" and _has_second_page(data):
        raise FileProblem(path, "has several pages: write one image, with a value for each class.")
    if image.format == "TIFF" and len(decoding.bits(image)) > 1 and max(decoding.bits(image)) > 8:
        raise FileProblem(path, "is a colour TIFF of more than 8 bits a channel: write a greyscale one.")
    try:
        if data.startswith(limits.PNG) and data[24] == 16 and data[25] != 0:  # Pillow would drop the lower 8 bits
            return _from_channels(_read_deep_png(data), path)
        pixels = np.asarray(image)  # the indices of a palette image; image.convert would look up their colours
    except FileProblem:
        raise
    except Exception as error:
        raise FileProblem(path, decoding.why_unreadable(error, FORMATS)) from None
    if image.mode in ("P", "PA"):
        palette = np.array(image.getpalette("RGB"), np.int64).reshape(-1, 3) @ [2**16, 2**8, 1]
        return LabelImage(pixels if pixels.ndim == 2 else pixels[..., 0], palette)
    if image.mode in NUMBER_MODES:
        values = _whole_numbers(pixels, path)
        white = {"1": 1, "L": 255 // stretch}.get(image.mode, 2**16 - 1)
        return LabelImage(values // stretch if stretch > 1 else values, white=white)
    if image.mode not in ("LA", "RGB", "RGBA", "RGBX"):
        raise FileProblem(path, f"has the colour mode {image.mode}: labels must be greyscale, palette or RGB images.")
    return _from_channels(pixels, path)


def _from_channels(pixels: np.ndarray, path: Path) -> LabelImage:
    """The label of pixels (H, W, 2), grey and alpha, or (H, W, 3 or 4), RGB and maybe alpha."""
    red, channels = pixels[..., 0], pixels.shape[2]
    is_grey = channels == 2 or all((red == pixels[..., i]).all() for i in (1, 2))
    if is_grey and channels in (2, 4) and np.ptp(red) == 0 and np.ptp(pixels[..., -1]) > 0:
        raise FileProblem(path, "has one colour, and differs in its alpha channel only: write masks as greyscale PNGs.")
    if is_grey:
        return LabelImage(red, white=int(np.iinfo(red.dtype).max))
    colors = np.empty(red.shape, np.int32)
    for rows in image_files.row_blocks(colors):
        block = pixels[rows, :, :3] >> (8 if pixels.dtype == np.uint16 else 0)
        colors[rows] = block.astype(np.int32) @ np.array([2**16, 2**8, 1], np.int32)
    return LabelImage(None, colors=colors)


def _read_deep_png(data: bytes) -> np.ndarray:
    """A colour PNG of 16 bits a channel: uint16 (H, W, 3), RGB."""
    pixels = cv2.imdecode(np.frombuffer(limits.decodable(data), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3:
        raise ValueError("its pixels cannot be decoded")
    return pixels[..., 2::-1]


def _stretch(image: Image.Image) -> int:
    """The factor by which Pillow scales values of 2 or 4 bits to 0..255."""
    tiles = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    return {"L;2": 85, "L;4": 17}.get(args if isinstance(args, str) else args[0], 1) if args else 1


def _has_second_page(data: bytes) -> bool:
    """Whether a TIFF holds more than an image and smaller versions of it."""
    try:
        with limits.open_image(io.BytesIO(data), ("TIFF",)) as image:
            image.seek(1)
            return not getattr(image, "tag_v2", {}).get(SUBFILE, 0) & 1
    except Exception:  # there is none, or it is damaged and of no consequence
        return False


def _whole_numbers(values: np.ndarray, path: Path) -> np.ndarray:
    if values.dtype.kind != "f":
        return values.astype(np.uint8) if values.dtype == bool else values
    if not (np.isfinite(values).all() and (values == values.round()).all() and (abs(values) < 2**31).all()):
        raise FileProblem(path, "holds numbers that are not whole: labels must hold the values of classes.")
    return values.astype(np.int32)


def label_size(path: Path) -> tuple[int, int] | None:
    """(height, width) in the header of a label file, or None if it cannot be read."""
    try:
        _, image = image_files.open_image(path, FORMATS)
    except FileProblem:
        return None
    return image.height, image.width
