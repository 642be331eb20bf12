"""COCO-Stuff: COCO images labelled with things and stuff, in its first release of 10k images and its full one of 164k.

Both have 182 classes, of which 171 occur: COCO has no segmentations of the other 11, which are things.
"""

from pathlib import Path

import numpy as np

from isnet_jax.datasets import tables
from isnet_jax.datasets.folder_builder import FolderBuilder
from isnet_jax.datasets.label_files import LabelImage
from isnet_jax.datasets.mat import read_mat
from isnet_jax.datasets.pairing import Pair, find_pairs, locate
from isnet_jax.labels import IGNORED

NAMES = tables.names("""
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, street sign,
    stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, hat, backpack,
    umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
    baseball glove, skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon, bowl,
    banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,
    mirror, dining table, window, desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven,
    toaster, sink, refrigerator, blender, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, hair brush,
    banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other,
    ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence,
    floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other,
    grass, gravel, ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin,
    net, paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock,
    roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw,
    structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other,
    wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood""")
PALETTE = tables.distinct_colors(range(len(NAMES)))
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

    NAMES, PALETTE, CITATION = NAMES, PALETTE, CITATION
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

    NAMES, PALETTE, CITATION = NAMES, PALETTE, CITATION
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
