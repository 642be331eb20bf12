"""COCO-Stuff: COCO images labelled with things and stuff, in its first release of 10k images and its full one of 164k.

Both have 182 classes, of which 171 occur: COCO has no segmentations of the other 11, which are things.
"""

from pathlib import Path

import numpy as np

from isnet_jax.datasets.class_tables import CLASS_TABLES
from isnet_jax.datasets.folder_builder import FolderBuilder
from isnet_jax.datasets.label_files import LabelImage
from isnet_jax.datasets.mat import read_mat
from isnet_jax.datasets.pairing import Pair, find_pairs, locate
from isnet_jax.labels import IGNORED

CITATION = """\
@inproceedings{caesar2018cvpr,
  title     = {{COCO-Stuff}: Thing and stuff classes in context},
  author    = {Caesar, Holger and Uijlings, Jasper and Ferrari, Vittorio},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages     = {1209--1218},
  year      = {2018}
}"""


class CocoStuff10k(FolderBuilder):
    """Label files (.mat, key S) hold 1..182, which become 0..181; 0 and 255 (unlabelled) become 255."""

    NAMES, PALETTE = CLASS_TABLES["coco_stuff10k"]
    CITATION = CITATION
    DESCRIPTION = "COCO-Stuff 10k v1.1, everyday scenes labelled with things and stuff."
    HOMEPAGE = "https://github.com/nightrome/cocostuff10k"
    LAYOUT = "images/NAME.jpg, annotations/NAME.mat and imageLists/{train,test}.txt"
    TRAIN_IDS = np.r_[IGNORED, :182, [-1] * 72, IGNORED]
    COUNTS = {"train": 9000, "test": 1000}

    def pairs(self, source: Path, split: str) -> list[Pair]:
        return find_pairs(source, "images", "annotations", self.findings, f"imageLists/{split}.txt", (".mat",))

    def read_label(self, path: Path) -> LabelImage:
        return LabelImage(read_mat(path, "S"))


class CocoStuff164k(FolderBuilder):
    """Label files (stuffthingmaps) hold 0..181, and 255 for unlabelled pixels."""

    NAMES, PALETTE = CLASS_TABLES["coco_stuff164k"]
    CITATION = CITATION
    DESCRIPTION = "COCO-Stuff 164k, the training and validation images of COCO 2017 labelled with things and stuff."
    HOMEPAGE = "https://github.com/nightrome/cocostuff"
    LAYOUT = "{images,annotations}/{train2017,val2017}/NAME.{jpg,png}"
    TRAIN_IDS = np.r_[:182, [-1] * 73, IGNORED]
    COUNTS = {"train": 118287, "val": 5000}

    def pairs(self, source: Path, split: str) -> list[Pair]:
        folder = f"{split}2017"
        return find_pairs(
            source,
            locate(source, f"images/{folder}", folder),
            locate(
                source, f"annotations/{folder}", f"stuffthingmaps/{folder}", f"stuffthingmaps_trainval2017/{folder}"
            ),
            self.findings,
        )
