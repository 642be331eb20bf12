"""Samples of the official data sets, in the trees and formats that they come in.

`generate` writes a few small images under the paths of the real samples, which may lie beside the repository.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io
from data_sets import write_palette_label
from paths import SHARED
from PIL import Image

REAL = SHARED / "data"


class SampleTrees(NamedTuple):
    """A folder of sample trees."""

    root: Path
    is_real: bool


def generate(root: Path) -> None:
    """Writes all sample trees."""
    rng = np.random.default_rng(0)
    _generate_ade20k(root / "ADEChallengeData2016", rng)
    _generate_ade20k_orphan(root / "extras/ade20k/orphan_annotation", rng)
    _generate_cityscapes(root / "mmseg_pseudo/pseudo_cityscapes_dataset", rng)
    _generate_coco_stuff(root / "cocostuff_samples", rng)
    _generate_lip(root / "lip_samples", rng)
    _generate_camvid(root / "camvid", rng)
    _generate_folders(root / "mmseg_pseudo/pseudo_dataset", rng)


def _write_image(path: Path, rng: np.random.Generator, size: tuple[int, int], mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(256, size=(*size, 3), dtype=np.uint8)).convert(mode).save(path)


def _shuffled(rng: np.random.Generator, size: tuple[int, int], values: Iterable[int]) -> np.ndarray:
    """A label uint8 (H, W) in which each of the values occurs."""
    label = np.resize(np.array([*values], np.uint8), size)
    return rng.permutation(label.ravel()).reshape(size)


def _write_label(path: Path, label: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label).save(path)


def _generate_ade20k(root: Path, rng: np.random.Generator) -> None:
    for folder, names in (
        ("training", ["ADE_train_00000001", "ADE_train_00016869"]),
        ("validation", ["ADE_val_00000001", "ADE_val_00000002", "ADE_val_00000003"]),
    ):
        for i, name in enumerate(names):
            size = 24 + i, 37 - i
            _write_image(root / f"images/{folder}/{name}.jpg", rng, size)
            _write_label(root / f"annotations/{folder}/{name}.png", _shuffled(rng, size, range(151)))
    for name in "objectInfo150.txt", "sceneCategories.txt":
        (root / name).write_text("not read\n")


def _generate_ade20k_orphan(root: Path, rng: np.random.Generator) -> None:
    _write_label(root / "ADE_train_00000970.png", _shuffled(rng, (24, 37), range(151)))


def _generate_cityscapes(root: Path, rng: np.random.Generator) -> None:
    frame = "val/frankfurt/frankfurt_000000_000294"
    _write_image(root / f"leftImg8bit/{frame}_leftImg8bit.png", rng, (32, 64))
    values = _shuffled(rng, (32, 64), [*range(34), 255])
    _write_label(root / f"gtFine/{frame}_gtFine_labelIds.png", values)
    _write_label(root / f"gtFine/{frame}_gtFine_labelTrainIds.png", values % 19)  # not read
    _write_label(root / f"gtFine/{frame}_gtFine_instanceIds.png", values.astype(np.uint16) * 1000)  # not read


def _generate_coco_stuff(root: Path, rng: np.random.Generator) -> None:
    """The same labels in the trees of COCO-Stuff 164k and 10k, where 1 is added and 0 marks unlabelled pixels."""
    matrices, lists = root / "derived_10k_style/annotations", root / "derived_10k_style/imageLists"
    for folder in matrices, lists:
        folder.mkdir(parents=True)
    for folder, list_file, ids in (
        ("train2017", "train.txt", ["000000017914", "000000029286", "000000138805"]),
        ("val2017", "test.txt", ["000000000139", "000000000785"]),
    ):
        (lists / list_file).write_text("".join(f"{name}\n" for name in ids))
        for i, name in enumerate(ids):
            size = 20 + i, 31
            values = _shuffled(rng, size, [*range(182), 255])
            _write_image(root / f"images/{folder}/{name}.jpg", rng, size)
            _write_label(root / f"annotations/{folder}/{name}.png", values)
            content = {
                "S": np.where(values == 255, 0, values + 1).astype(np.uint8),
                "names": np.array(["unlabeled", "person"], object),
                "captions": "a photo",
            }
            scipy.io.savemat(matrices / f"{name}.mat", content, do_compression=True)


def _generate_lip(root: Path, rng: np.random.Generator) -> None:
    for split, name, mode in ("train", "684_2150041", "RGB"), ("val", "86_185913", "L"):
        size = 37, 13
        _write_image(root / f"{split}_images/{name}.jpg", rng, size, mode)
        _write_label(root / f"{split}_segmentations/{name}.png", _shuffled(rng, size, range(20)))
        (root / f"{split}_id.txt").write_text(f"{name}\n")


def _generate_camvid(root: Path, rng: np.random.Generator) -> None:
    for split in "train", "val", "test":
        (root / split / "labels").mkdir(parents=True)
        for i in range(4):
            name = f"0001TP_{i:06d}"
            _write_image(root / f"{split}/images/{name}.jpg", rng, (36, 48))
            write_palette_label(root / f"{split}/labels/{name}.png", _shuffled(rng, (36, 48), range(12)))


def _generate_folders(root: Path, rng: np.random.Generator) -> None:
    (root / "gts").mkdir(parents=True)
    for i in range(5):
        _write_image(root / f"imgs/{i:05d}_img.jpg", rng, (16, 32))
        write_palette_label(root / f"gts/{i:05d}_gt.png", _shuffled(rng, (16, 32), range(4)), depth=4)
