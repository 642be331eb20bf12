"""The published results of the official ISNet: mIoU in percent, from its model zoo.

The zoo gives mIoU alone; class by class, nothing is published. It says of its numbers that they move by about 0.1 with
the version of PyTorch and the GPU. An earlier page of it (docs/performances/isnet/README.md, commit 04faeee) has the
same networks with other numbers for scales and flip, as in the paper: 40.16 where it now says 40.39, 80.88 instead of
81.31, 42.08 instead of 42.53; the others differ by 0.14 at most.
"""
from typing import NamedTuple

SOURCE = ("https://github.com/SegmentationBLWX/sssegmentation/blob/0ee7fb9b75318762f492a7efbeccf363a494a65e/docs/"
          "modelzoo/isnet/README.md")


class Published(NamedTuple):
    split: str  # that was evaluated
    miou: float  # in percent
    setting: str  # single or tta
    source: str


SPLITS = {"ade20k": "val", "coco_stuff10k": "test", "cityscapes": "val", "lip": "val"}
RESULTS = {  # (data set, backbone): (single scale, scales and flip; of LIP flip only)
    ("ade20k", "resnet50"): (44.22, 45.03),
    ("ade20k", "resnet101"): (45.92, 47.29),
    ("ade20k", "resnest101"): (46.65, 47.56),
    ("coco_stuff10k", "resnet50"): (38.06, 40.39),
    ("coco_stuff10k", "resnet101"): (40.53, 41.74),
    ("coco_stuff10k", "resnest101"): (41.55, 42.53),
    ("cityscapes", "resnet50"): (79.32, 81.31),
    ("cityscapes", "resnet101"): (80.56, 81.96),
    ("cityscapes", "resnest101"): (78.78, 81.33),
    ("lip", "resnet50"): (53.14, 53.41),
    ("lip", "resnet101"): (54.96, 55.41),
    ("lip", "resnest101"): (56.52, 56.81),
}


def find(dataset, backbone, setting):
    """The `Published` result of a data set, backbone and setting (single or tta), None where there is none."""
    row = RESULTS.get((dataset, backbone))
    if row is None or setting not in ("single", "tta"):
        return None
    return Published(SPLITS[dataset], row[setting == "tta"], setting, SOURCE)
