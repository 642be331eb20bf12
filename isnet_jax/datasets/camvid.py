"""CamVid: street scenes from a car, 367 training, 101 validation and 233 test frames, 11 classes."""

from pathlib import Path

import numpy as np

from isnet_jax.datasets.class_tables import CLASS_TABLES
from isnet_jax.datasets.folder_builder import FolderBuilder
from isnet_jax.datasets.pairing import Pair, find_pairs, locate
from isnet_jax.labels import IGNORED


class Camvid(FolderBuilder):
    """Label files hold 0..10, and 11 for unlabelled pixels, which becomes 255."""

    NAMES, PALETTE = CLASS_TABLES["camvid"]
    DESCRIPTION = (
        "CamVid, frames of video from a driving car labelled for semantic segmentation, in the common form "
        "with 11 classes at 480 x 360."
    )
    CITATION = """\
@article{brostow2009semantic,
  title   = {Semantic object classes in video: A high-definition ground truth database},
  author  = {Brostow, Gabriel J. and Fauqueur, Julien and Cipolla, Roberto},
  journal = {Pattern Recognition Letters},
  volume  = {30},
  number  = {2},
  pages   = {88--97},
  year    = {2009}
}"""
    HOMEPAGE = "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/"
    LAYOUT = (
        "{train,val,test}/{images/NAME.jpg or .png,labels/NAME.png}, or as SegNet has it: {train,val,test}/NAME.png "
        "and {train,val,test}annot/NAME.png"
    )
    TRAIN_IDS = np.append(np.arange(len(NAMES)), IGNORED)
    COUNTS = {"train": 367, "val": 101, "test": 233}

    def pairs(self, source: Path, split: str) -> list[Pair]:
        labels = locate(source, f"{split}/labels", f"{split}annot")
        images = split if labels == f"{split}annot" else f"{split}/images"
        return find_pairs(source, images, labels, self.findings)
