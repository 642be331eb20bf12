"""Small valid image files of every kind that a reader accepts."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from containers import join_png, split_png
from PIL import Image, PngImagePlugin, features

ORIENTATION, MAKER = 274, 271  # EXIF tags


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """An RGB image of coarse blocks with fine noise on them."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3)).repeat(4, 0).repeat(4, 1)[:height, :width]
    return Image.fromarray(np.clip(coarse + rng.integers(-9, 9, coarse.shape), 0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image in one of Pillow's formats."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def run_length_bmp() -> bytes:
    """An 8-bit run-length encoded BMP with runs, literals, ends of lines and a jump."""
    data = b"".join(b"\x05\x01\x00\x04\x02\x03\x04\x05\x00\x00" for _ in range(8)) + b"\0\2\3\1\x04\x07\0\1"
    bmp = encode(noise(10, 12).convert("P"), "BMP")
    start = int.from_bytes(bmp[10:14], "little")
    return bmp[:30] + b"\1\0\0\0" + len(data).to_bytes(4, "little") + bmp[38:start] + data


def jpegs() -> Iterator[bytes]:
    """JPEGs: with metadata, progressive, grey with restart markers, CMYK, and of two frames (MPO)."""
    photo, exif = noise(22, 29), Image.Exif()
    exif[ORIENTATION], exif[MAKER] = 6, "maker"
    yield encode(photo, "JPEG", quality=90, exif=exif, icc_profile=bytes(300), comment=b"hello")
    yield encode(photo, "JPEG", progressive=True, subsampling=0)
    yield encode(photo.convert("L"), "JPEG", restart_marker_blocks=1)
    yield encode(photo.convert("CMYK"), "JPEG")
    yield encode(photo, "MPO", save_all=True, append_images=[noise(22, 29, 1)])


def pngs() -> Iterator[bytes]:
    """PNGs: with metadata before and behind the pixels, then one of each mode, and an animated one."""
    photo, exif, info = noise(13, 18), Image.Exif(), PngImagePlugin.PngInfo()
    exif[ORIENTATION] = 3
    info.add_text("a", "b" * 50, zip=True)
    info.add_itxt("c", "d" * 50, zip=True)
    with_metadata = encode(photo, "PNG", exif=exif, pnginfo=info, icc_profile=bytes(300), dpi=(72, 72))
    yield with_metadata
    *chunks, end = split_png(with_metadata)
    yield join_png([chunk for chunk in chunks if chunk[0] != b"eXIf"] + [(b"eXIf", bytes(exif.tobytes())), end])
    yield encode(photo.convert("P"), "PNG", transparency=3)
    yield encode(photo.convert("L"), "PNG")
    yield encode(photo.convert("P", palette=Image.Palette.ADAPTIVE, colors=4), "PNG", bits=2)
    yield encode(photo.convert("1"), "PNG")
    yield encode(photo.convert("RGBA"), "PNG")
    yield encode(Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 250), "PNG")
    yield encode(photo, "PNG", save_all=True, append_images=[noise(13, 18, 1)])


def tiffs() -> Iterator[bytes]:
    """TIFFs: of each mode and compression that data sets have, some turned, one of two pages."""
    photo, exif = noise(15, 21), Image.Exif()
    exif[ORIENTATION] = 8
    yield encode(photo, "TIFF", exif=exif)
    yield encode(photo.convert("P"), "TIFF", compression="tiff_lzw")
    yield encode(photo.convert("L"), "TIFF", compression="tiff_adobe_deflate")
    yield encode(photo.convert("1"), "TIFF", compression="packbits")
    yield encode(photo, "TIFF", compression="jpeg")
    yield encode(Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 250), "TIFF")
    yield encode(photo.convert("F"), "TIFF")
    yield encode(photo, "TIFF", save_all=True, append_images=[noise(15, 21, 1)])


def others() -> Iterator[bytes]:
    """GIFs, still and animated, and an AVIF where Pillow writes one."""
    photo = noise(15, 21)
    yield encode(photo, "GIF")
    yield encode(photo, "GIF", save_all=True, append_images=[noise(15, 21, 1)])
    if features.check("avif"):
        yield encode(photo, "AVIF")


def webps_and_bmps() -> Iterator[bytes]:
    """WebPs: lossy, lossless, animated; BMPs of 24, 8 and 1 bits, and a run-length encoded one."""
    photo = noise(17, 23)
    yield encode(photo, "WEBP", exif=Image.Exif(), icc_profile=bytes(30), xmp=b'tiff:Orientation="6"')
    yield encode(photo.convert("RGBA"), "WEBP", lossless=True)
    yield encode(photo, "WEBP", save_all=True, append_images=[noise(17, 23, 1)])
    yield encode(photo, "BMP")
    yield encode(photo.convert("P"), "BMP")
    yield encode(photo.convert("1"), "BMP")
    yield run_length_bmp()
