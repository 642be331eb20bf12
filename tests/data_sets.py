"""Trees of image and label files to prepare, and checks of the records and the refusals that come of them."""

import contextlib
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from isnet_jax import datasets
from isnet_jax.errors import UserError

OFFICIAL = "ade20k", "cityscapes", "coco_stuff10k", "coco_stuff164k", "lip"
CAMVID_SPLITS = "train", "val", "test"
CITYSCAPES_TRAIN_IDS = dict(zip((7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33), range(19)))  # others: ignored


def write_pair(
    source: Path,
    split: str,
    name: str,
    mode: str = "RGB",
    suffix: str = ".jpg",
    size: tuple[int, int] = (30, 20),
    label_size: tuple[int, int] = (30, 20),
    label: np.ndarray | None = None,
    **options: Any,
) -> tuple[Path, Path]:
    """Writes a pair of a CamVid tree, by default noise and the labels 0..11 in turn; sizes are (width, height).

    `options` are Pillow's, for the image. Returns both paths.
    """
    images, labels = source / split / "images", source / split / "labels"
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(exist_ok=True)
    rng = np.random.default_rng([*name.encode()])
    noise = Image.fromarray(rng.integers(256, size=(*size[::-1], 3), dtype=np.uint8))
    noise.convert(mode).save(images / f"{name}{suffix}", **options)
    if label is None:
        label = (np.arange(label_size[0] * label_size[1]) % 12).reshape(label_size[::-1])
    Image.fromarray(label.astype(np.uint8)).save(labels / f"{name}.png")
    return images / f"{name}{suffix}", labels / f"{name}.png"


def write_palette_label(path: Path, index: np.ndarray, depth: int = 8) -> None:
    """Writes a palette PNG whose colours are unrelated to its indices."""
    label = Image.fromarray(index.astype(np.uint8)).convert("L")
    label.putpalette([(37 * i) % 256 for i in range(768)])  # "L" becomes "P", the indices stay
    label.save(path, bits=depth)


def write_uniform(tree: Path, images: Iterable[str] = (), labels: Iterable[str] = (), value: int = 1) -> None:
    """Writes black images of 4 x 5 and labels full of `value`, as PNG or .mat files."""
    for place in images:
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4)).save(tree / place)
    for place in labels:
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        label = np.full((4, 5), value, np.uint8)
        if place.endswith(".mat"):
            scipy.io.savemat(tree / place, {"S": label})
        else:
            Image.fromarray(label).save(tree / place)


def write_smallest_tree(name: str, tree: Path) -> Path:
    """Writes the smallest tree of an official data set, with a pair a in the first split and b in the second."""
    if name == "ade20k":
        write_uniform(
            tree,
            ["images/training/a.jpg", "images/validation/b.jpg"],
            ["annotations/training/a.png", "annotations/validation/b.png"],
        )
    elif name == "cityscapes":
        write_uniform(
            tree,
            ["leftImg8bit/train/ulm/a_leftImg8bit.png", "leftImg8bit/val/bonn/b_leftImg8bit.png"],
            ["gtFine/train/ulm/a_gtFine_labelIds.png", "gtFine/val/bonn/b_gtFine_labelIds.png"],
        )
    elif name == "coco_stuff10k":
        write_uniform(tree, ["images/a.jpg", "images/b.jpg"], ["annotations/a.mat", "annotations/b.mat"])
        (tree / "imageLists").mkdir()
        (tree / "imageLists/train.txt").write_text("a\n")
        (tree / "imageLists/test.txt").write_text("b\n")
    elif name == "coco_stuff164k":
        write_uniform(
            tree,
            ["images/train2017/a.jpg", "images/val2017/b.jpg"],
            ["annotations/train2017/a.png", "annotations/val2017/b.png"],
        )
    else:
        write_uniform(
            tree,
            ["train_images/a.jpg", "val_images/b.jpg"],
            ["train_segmentations/a.png", "val_segmentations/b.png"],
        )
        (tree / "train_id.txt").write_text("a\n")
        (tree / "val_id.txt").write_text("b\n")
    return tree


def link(tree: Mapping[Path, Path]) -> None:
    """Makes symbolic links, {place: original}."""
    for place, original in tree.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(original)


def contents(folder: Path) -> dict[str, bytes]:
    """The content of every file in a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_png(path: Path) -> np.ndarray:
    """The pixels of an image file, or the indices of a palette PNG."""
    return np.array(Image.open(path))


def decode(data: bytes) -> np.ndarray:
    """The pixels of an encoded image, by Pillow."""
    return np.array(Image.open(io.BytesIO(data)))


def records(builder: Any, split: str) -> Any:
    """The records of a split, with image and label encoded."""
    from isnet_jax.datasets import common

    return builder.as_data_source(split, decoders=common.ENCODED)


def labels(builder: Any, split: str) -> dict[str, np.ndarray]:
    """{name: label} of the records."""
    return {record["name"].decode(): decode(record["label"]) for record in records(builder, split)}


def check_split(builder: Any, split: str, images: Mapping[str, Path], expected: Mapping[str, np.ndarray]) -> None:
    """Asserts that a split holds exactly the `images`, {name: path}, and the `expected` {name: train ids}."""
    assert [record["name"].decode() for record in records(builder, split)] == sorted(images)
    for record in records(builder, split):
        name, label = record["name"].decode(), decode(record["label"])
        np.testing.assert_array_equal(label, expected[name])
        assert label.dtype == np.uint8 and record["image"] == images[name].read_bytes()
        assert (record["height"], record["width"]) == label.shape


def expanded(stderr: str) -> list[str]:
    """The lines of a report, with the findings of a listing in place of the line that names it."""
    lines = []
    for line in stderr.splitlines():
        listing = re.search(r"; (\S+\.txt) lists all", line)
        if not listing:
            lines.append(line)
            continue
        severity = line.partition(":")[0]
        kept = [text for text in Path(listing[1]).read_text().splitlines() if f"{severity}: {text}" not in lines]
        lines += [f"{severity}: {text}" for text in kept]
    return lines


def refusal(name: str, tree: Path, *parts: Any, **options: Any) -> str:
    """The message of the UserError that preparing the tree raises.

    Asserts that the `parts` occur in it, or in what was reported before it. `options` are those of `datasets.load`.
    """
    reported = io.StringIO()
    with pytest.raises(UserError) as error, contextlib.redirect_stderr(reported):
        datasets.load(name, tree.parent / "data", tree, **options)
    text = f"{reported.getvalue()}{error.value}"
    for part in parts:
        assert str(part) in text, text
    return str(error.value)


def builder_class(name: str) -> Any:
    """The builder's class of a data set."""
    module, _, class_name = datasets.CLASSES[name].partition(".")
    return getattr(__import__(f"isnet_jax.datasets.{module}", fromlist=[class_name]), class_name)
