"""ADE20K as in the scene parsing challenge of 2016: 20210 training and 2000 validation images, 150 classes."""

from pathlib import Path

import numpy as np

from isnet_jax.datasets.class_tables import CLASS_TABLES
from isnet_jax.datasets.folder_builder import FolderBuilder
from isnet_jax.datasets.pairing import Pair, find_pairs, locate
from isnet_jax.labels import IGNORED


class Ade20k(FolderBuilder):
    """Label files hold 1..150, which become 0..149, and 0 for everything else, which becomes 255."""

    NAMES, PALETTE = CLASS_TABLES["ade20k"]
    DESCRIPTION = "ADE20K, scenes indoors and outdoors, with the 150 classes of the MIT scene parsing benchmark."
    CITATION = """\
@inproceedings{zhou2017scene,
  title     = {Scene Parsing through {ADE20K} Dataset},
  author    = {Zhou, Bolei and Zhao, Hang and Puig, Xavier and Fidler, Sanja and Barriuso, Adela and Torralba, Antonio},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages     = {633--641},
  year      = {2017}
}"""
    HOMEPAGE = "http://sceneparsing.csail.mit.edu/"
    LAYOUT = "ADEChallengeData2016/{images,annotations}/{training,validation}/NAME.{jpg,png}"
    TRAIN_IDS = np.r_[IGNORED, :150]
    COUNTS = {"train": 20210, "val": 2000}

    def pairs(self, source: Path, split: str) -> list[Pair]:
        source = source / locate(source, "ADEChallengeData2016", "")
        folder = {"train": "training", "val": "validation"}[split]
        return find_pairs(source, f"images/{folder}", f"annotations/{folder}", self.findings)
