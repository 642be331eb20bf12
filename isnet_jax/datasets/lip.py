"""LIP ("look into person"): 30462 training and 10000 validation images of one person each, 20 classes."""

from pathlib import Path

import numpy as np

from isnet_jax.datasets.class_tables import CLASS_TABLES
from isnet_jax.datasets.folder_builder import FolderBuilder
from isnet_jax.datasets.pairing import Pair, find_pairs, locate
from isnet_jax.labels import IGNORED

FOLDERS = (
    "",
    "TrainVal_images/",
    "TrainVal_parsing_annotations/",
)  # of the archives; unpacking tools may nest them twice


class Lip(FolderBuilder):
    """Label files hold 0..19, of which 0 is the background, a class too. Left and right are the person's own."""

    NAMES, PALETTE = CLASS_TABLES["lip"]
    DESCRIPTION = "LIP, persons cut out of COCO images, labelled with clothes and parts of the body."
    CITATION = """\
@inproceedings{gong2017look,
  title     = {Look into Person: Self-Supervised Structure-Sensitive Learning and a New Benchmark for Human Parsing},
  author    = {Gong, Ke and Liang, Xiaodan and Zhang, Dongyu and Shen, Xiaohui and Lin, Liang},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages     = {6757--6765},
  year      = {2017}
}"""
    HOMEPAGE = "http://sysu-hcp.net/lip/"
    LAYOUT = (
        "{train,val}_images/NAME.jpg and {train,val}_segmentations/NAME.png, as they are or in TrainVal_images "
        "and TrainVal_parsing_annotations"
    )
    TRAIN_IDS = np.r_[:20, [-1] * 235, IGNORED]
    COUNTS = {"train": 30462, "val": 10000}

    def pairs(self, source: Path, split: str) -> list[Pair]:
        def find(name: str) -> str:
            return locate(source, *(f"{folder * times}{name}" for folder in FOLDERS for times in (1, 2)))

        list_file = find(f"{split}_id.txt")  # some download sites leave it out: all files count
        return find_pairs(
            source,
            find(f"{split}_images"),
            find(f"{split}_segmentations"),
            self.findings,
            list_file if (source / list_file).is_file() else None,
        )
