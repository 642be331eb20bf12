"""Cityscapes: street scenes of 50 cities at 2048 x 1024, 2975 training and 500 validation frames, 19 classes."""

from pathlib import Path

import numpy as np

from isnet_jax.datasets.class_tables import CLASS_TABLES
from isnet_jax.datasets.folder_builder import FolderBuilder
from isnet_jax.datasets.pairing import Pair, find_pairs, locate
from isnet_jax.labels import IGNORED


class Cityscapes(FolderBuilder):
    """Label files (labelIds) hold 0..33. Of these, 19 are classes of the benchmark, and the others become 255."""

    NAMES, PALETTE = CLASS_TABLES["cityscapes"]
    DESCRIPTION = (
        "Cityscapes with its fine annotations: frames from a car in 50 cities, labelled for semantic segmentation."
    )
    CITATION = """\
@inproceedings{cordts2016cityscapes,
  title     = {The {Cityscapes} Dataset for Semantic Urban Scene Understanding},
  author    = {Cordts, Marius and Omran, Mohamed and Ramos, Sebastian and Rehfeld, Timo and Enzweiler, Markus and
               Benenson, Rodrigo and Franke, Uwe and Roth, Stefan and Schiele, Bernt},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages     = {3213--3223},
  year      = {2016}
}"""
    HOMEPAGE = "https://www.cityscapes-dataset.com/"
    LAYOUT = "{leftImg8bit,gtFine}/{train,val}/CITY/{*_leftImg8bit.png,*_gtFine_labelIds.png}"
    TRAIN_IDS = np.full(256, -1)
    TRAIN_IDS[[*range(34), 255]] = IGNORED  # 255 stands for -1 (license plate) in 8 bits
    TRAIN_IDS[[7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]] = np.arange(19)
    COUNTS = {"train": 2975, "val": 500}

    def pairs(self, source: Path, split: str) -> list[Pair]:
        images = locate(source, "leftImg8bit", "leftImg8bit_trainvaltest/leftImg8bit")
        labels = locate(source, "gtFine", "gtFine_trainvaltest/gtFine")
        return find_pairs(
            source,
            f"{images}/{split}/*/*_leftImg8bit.png",
            f"{labels}/{split}/*/*_gtFine_labelIds.png",
            self.findings,
        )
