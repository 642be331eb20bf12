"""What the conversion writes: label images, links to the images, and the config. Files are replaced atomically."""

import errno
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from isnet_jax.datasets import decoding, tables
from isnet_jax.errors import UserError
from isnet_jax.labels import IGNORED
from isnet_jax.runtime import files

MAX_NAME_BYTES = 200  # of a file name, without what is appended to it
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES, errno.EINVAL)

CONFIG = '''"""Classes and folders of annotated images, as python -m isnet_jax.prepare --from={kind} wrote them.

python -m isnet_jax.main --config=DIR/config.py --config.data.source=DIR, where DIR is the folder of this file.
"""

from isnet_jax import config


def get_config(backbone="resnet50"):
    c = config.default(backbone)
    c.model.num_classes = {num_classes}
    c.data.name = "folder"
    c.data.folder.name = {name}
    c.data.folder.classes = (  # label values 0, 1, ...; 255 is ignored
{classes}
    )
    c.data.folder.palette = (
{palette}
    )
    c.data.folder.splits = {{
{splits}
    }}
{chosen}{exif}    # Fit these sizes to your images, whose median is {width} x {height} (width x height).
    c.augment.resize = (2048, 512)  # (long, short) side before the random scale; () keeps the sizes
    c.augment.crop_size = (512, 512)  # (height, width)
    c.test.resize = (2048, 512)  # (long, short), or () for the original sizes
    c.train.epochs = 50
    return c
'''


def file_names(names: Iterable[str]) -> list[str]:
    """A plain file name without suffix for each image, all different: folders are joined to it by "_"."""
    used: set[str] = set()
    result = []
    for name in names:
        parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..")]
        text = "_".join(parts)
        if text.lower().endswith(decoding.SUFFIXES):
            text = text.rpartition(".")[0]
        text = text.encode(errors="replace")[-MAX_NAME_BYTES:].decode(errors="ignore")
        text = re.sub(r"^\.+|[\0-\x1f\x7f*]", "_", text) or "image"
        unique, number = text, 1
        while unique in used:
            number += 1
            unique = f"{text}_{number}"
        used.add(unique)
        assert files.is_plain_filename(unique)
        result.append(unique)
    return result


def check_output(source: Path, output: Path) -> None:
    """Raises UserError if the output lies in the source, or the source in it."""
    if output.is_relative_to(source) or source.is_relative_to(output):
        raise UserError(
            f"The output {output} and the source {source} lie in each other: nothing is written into the source. "
            "Choose another --output."
        )
    if output.exists() and not output.is_dir():
        raise UserError(f"The output {output} is a file: choose another --output.")


def check_foreign_files(output: Path, expected: set[Path]) -> None:
    """Raises UserError if files lie among the images and labels that are not `expected`, paths below the output."""
    present = [
        Path(folder, name)
        for kind in ("images", "labels")
        for folder, _, names in os.walk(output / kind)
        for name in names
        if not name.endswith(".partial")
    ]
    foreign = [str(path) for path in present if path.relative_to(output) not in expected]
    if foreign:
        raise UserError(
            f"{output} holds {len(foreign)} images or labels that these annotations do not lead to "
            f"({', '.join(foreign[:3])}{', ...' if foreign[3:] else ''}): they would count as data. Delete the folder, "
            "or choose another --output."
        )


def write_label(path: Path, label: np.ndarray, palette: Sequence[tables.Color]) -> None:
    """Writes classes uint8 (H, W) as an 8-bit palette PNG; ignored pixels get a colour that no class has."""
    image = Image.fromarray(label, "L")
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = palette
    colors[IGNORED] = next(color for color in tables.distinct_colors(range(255, -1, -1)) if color not in palette)
    image.putpalette(colors.tobytes())
    with files.atomic_write(path) as partial:
        image.save(partial, "PNG")


def write_image(path: Path, image: Path | bytes) -> None:
    """Links to an image file; copies it where the file system has no symbolic links. Writes an encoded image."""
    with files.atomic_write(path) as partial:
        if isinstance(image, bytes):
            partial.write_bytes(image)
            return
        try:
            partial.symlink_to(image.resolve())
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            shutil.copyfile(image, partial)


def config_text(
    kind: str,
    name: str,
    classes: Sequence[str],
    palette: Sequence[tables.Color],
    splits: Sequence[str],
    size: tuple[int, int],
    exif: bool,
) -> str:
    """The config file; `size` is the median (height, width)."""
    chosen = ""
    if "train" not in splits:
        chosen += f"    c.data.train_split = {_literal(splits[0])}\n"
    if "val" not in splits:
        chosen += f"    c.data.eval_split = {_literal('test' if 'test' in splits else splits[0])}\n"
    return CONFIG.format(
        kind=kind,
        num_classes=len(classes),
        name=_literal(re.sub("[^A-Za-z0-9_-]+", "_", name)[:100] or "annotations"),
        classes="\n".join(f"        {_literal(name)}," for name in classes),
        palette="\n".join(f"        {tuple(color)}," for color in palette),
        splits="\n".join(
            f"        {_literal(split)}: ({', '.join(map(_literal, places(split)))})," for split in splits
        ),
        chosen=chosen,
        exif="" if exif else "    c.data.folder.exif = False  # the labels fit the images as they are stored\n",
        height=size[0],
        width=size[1],
    )


def _literal(text: str) -> str:
    """A text as Python source, in double quotes where these need no escapes."""
    return f'"{text}"' if text.isprintable() and not set(text) & set('"\\') else repr(text)


def places(split: str) -> tuple[str, str]:
    """The folders of images and labels of a split."""
    return f"images/{split}", f"labels/{split}"
