"""The label rules, class names and palettes of the official data sets."""

import hashlib
import json
import runpy

import pytest
from data_sets import CITYSCAPES_TRAIN_IDS, OFFICIAL, builder_class
from paths import ROOT

RULES = {  # by the protocols: value in a label file -> train id, 255 if ignored, None if illegal
    "ade20k": lambda v: 255 if v == 0 else v - 1 if v <= 150 else None,
    "cityscapes": lambda v: CITYSCAPES_TRAIN_IDS.get(v, 255) if v <= 33 or v == 255 else None,
    "coco_stuff10k": lambda v: 255 if v in (0, 255) else v - 1 if v <= 182 else None,
    "coco_stuff164k": lambda v: v if v <= 181 or v == 255 else None,
    "lip": lambda v: v if v <= 19 or v == 255 else None,
}
COUNTS = {
    "ade20k": {"train": 20210, "val": 2000},
    "cityscapes": {"train": 2975, "val": 500},
    "coco_stuff10k": {"train": 9000, "test": 1000},
    "coco_stuff164k": {"train": 118287, "val": 5000},
    "lip": {"train": 30462, "val": 10000},
    "camvid": {"train": 367, "val": 101, "test": 233},
}
CLASS_DIGESTS = {  # of the official names and, but for CamVid, their colors
    "ade20k": "f8f1fbe2e61e446c",
    "cityscapes": "6d241d4404fe54e5",
    "lip": "28f6041be0fbcb70",
    "coco_stuff10k": "93395fee51dcfaea",
    "camvid": "33db1ef37283f614",
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_train_ids_follow_the_protocol(name):
    table = builder_class(name).TRAIN_IDS
    assert len(table) <= 256
    for value in range(256):
        train_id = table[value] if value < len(table) else -1
        assert train_id == (-1 if RULES[name](value) is None else RULES[name](value)), value


def test_cityscapes_train_ids_equal_the_official_scripts():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels")
    table = builder_class("cityscapes").TRAIN_IDS
    official = {label.id % 256: label.trainId % 256 for label in labels.labels}  # -1 in 8 bits is 255
    assert official == {value: train_id for value, train_id in enumerate(table) if train_id >= 0}


@pytest.mark.parametrize("name", COUNTS)
def test_builder_describes_itself(name):
    cls = builder_class(name)
    assert cls.name == name and COUNTS[name] == cls.COUNTS
    assert cls.CITATION.count("{") == cls.CITATION.count("}") and cls.HOMEPAGE.startswith("http")
    assert len(cls.PALETTE) == len(cls.NAMES) == len(set(cls.NAMES))


@pytest.mark.parametrize("name", COUNTS)
def test_builder_has_the_official_classes(name):
    cls = builder_class(name)
    content = [list(cls.NAMES)] + ([] if name == "camvid" else [[list(color) for color in cls.PALETTE]])
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    assert digest[:16] == CLASS_DIGESTS[name.replace("164k", "10k")]


@pytest.mark.parametrize("name", ["ade20k", "camvid", "cityscapes", "coco_stuff", "lip"])
def test_configs_fit_their_data_sets(name):
    c = runpy.run_path(str(ROOT / f"configs/{name}.py"))["get_config"]()
    cls = builder_class(c.data.name)
    assert c.model.num_classes == len(cls.NAMES) and {c.data.train_split, c.data.eval_split} <= set(cls.COUNTS)
