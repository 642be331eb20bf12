"""The published results of the official ISNet: mIoU in percent, from its model zoo.

The zoo gives mIoU alone; class by class, nothing is published. It says of its numbers that they move by about 0.1 with
the version of PyTorch and the GPU. An earlier page of it (docs/performances/isnet/README.md, commit 04faeee) has the
same networks with other numbers for scales and flip, as in the paper: 40.16 where it now says 40.39, 80.88 instead of
81.31, 42.08 instead of 42.53; the others differ by 0.14 at most.
"""

from typing import NamedTuple

SOURCE = (
    "https://github.com/SegmentationBLWX/sssegmentation/blob/0ee7fb9b75318762f492a7efbeccf363a494a65e/docs/"
    "modelzoo/isnet/README.md"
)


class Published(NamedTuple):
    """A published result."""

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


def official_setting(dataset, backbone, name):
    """How the official code tests a recipe, single scale or tta: the fields of an evaluation's setting that matter."""
    resize, keep_ratio = {"cityscapes": ([], True), "lip": ([473, 473], False)}.get(dataset, ([2048, 512], True))
    setting = {"mode": "whole", "scales": [1.0], "flip": False, "resize": resize, "keep_ratio": keep_ratio}
    if name == "single":
        return setting
    logits = (
        dataset == "lip"
        or dataset == "coco_stuff10k"
        and backbone != "resnest101"
        or dataset == "cityscapes"
        and backbone == "resnet101"
    )
    setting |= {"flip": True, "average": "logits" if logits else "softmax"}
    if dataset == "cityscapes":
        setting |= {
            "mode": "slide",
            "stride": [341, 341],
            "crop_size": [1024, 512] if backbone == "resnet101" else [512, 1024],
        }
    if dataset != "lip":
        setting["scales"] = [0.5, 0.75, 1.0, 1.25, 1.5] + [1.75] * (dataset != "coco_stuff10k")
    return setting


def find(dataset, backbone, split, setting):
    """The `Published` result of an evaluation, None where there is none or it was not tested as officially.

    setting: the "setting" of its results.json.
    """
    row, name = RESULTS.get((dataset, backbone)), setting.get("name")
    if row is None or split != SPLITS[dataset] or name not in ("single", "tta"):
        return None
    if any(setting.get(field) != value for field, value in official_setting(dataset, backbone, name).items()):
        return None
    return Published(split, row[name == "tta"], name, SOURCE)
