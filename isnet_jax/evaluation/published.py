"""What the official ISNet publishes: its test settings, and mIoU in percent from its model zoo.

The zoo publishes mIoU alone, no scores by class. It says that its numbers vary by about 0.1 with the version of PyTorch
and the GPU. An earlier page (docs/performances/isnet/README.md, commit 04faeee) lists other numbers for scales and flip
of the same networks, which are also those of the paper: 40.16 instead of 40.39, 80.88 instead of 81.31 and 42.08
instead of 42.53; the others differ by at most 0.14.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from isnet_jax.models.isnet import CONTEXT_MODULES

SOURCE = (
    "https://github.com/SegmentationBLWX/sssegmentation/blob/0ee7fb9b75318762f492a7efbeccf363a494a65e/docs/"
    "modelzoo/isnet/README.md"
)
NETWORK = {"activation": "relu", "shortcut": False, **dict.fromkeys(CONTEXT_MODULES, True)}  # fields of config.model
SCALES = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


class Benchmark(NamedTuple):
    """The official test of one data set; settings are as results.json has them."""

    split: str
    size: dict[str, Any]  # how images are resized
    tta: dict[str, Any]  # the test with scales and flip
    tta_exceptions: dict[str, dict[str, Any]]  # by backbone
    miou: dict[str, tuple[float, float]]  # by backbone: single scale, and scales and flip
    network: dict[str, Any] = NETWORK


BENCHMARKS = {
    "ade20k": Benchmark(
        split="val",
        size={"resize": [2048, 512], "keep_ratio": True},
        tta={"scales": SCALES, "average": "softmax"},
        tta_exceptions={},
        miou={"resnet50": (44.22, 45.03), "resnet101": (45.92, 47.29), "resnest101": (46.65, 47.56)},
    ),
    "coco_stuff10k": Benchmark(
        split="test",
        size={"resize": [2048, 512], "keep_ratio": True},
        tta={"scales": SCALES[:-1], "average": "logits"},
        tta_exceptions={"resnest101": {"average": "softmax"}},
        miou={"resnet50": (38.06, 40.39), "resnet101": (40.53, 41.74), "resnest101": (41.55, 42.53)},
    ),
    "cityscapes": Benchmark(
        split="val",
        size={"resize": [], "keep_ratio": True},
        tta={"scales": SCALES, "average": "softmax", "mode": "slide", "crop_size": [512, 1024], "stride": [341, 341]},
        tta_exceptions={"resnet101": {"average": "logits", "crop_size": [1024, 512]}},
        miou={"resnet50": (79.32, 81.31), "resnet101": (80.56, 81.96), "resnest101": (78.78, 81.33)},
    ),
    "lip": Benchmark(
        split="val",
        size={"resize": [473, 473], "keep_ratio": False},
        tta={"scales": [1.0], "average": "logits"},  # flip only
        tta_exceptions={},
        miou={"resnet50": (53.14, 53.41), "resnet101": (54.96, 55.41), "resnest101": (56.52, 56.81)},
        network=NETWORK | {"activation": "leaky_relu", "shortcut": True},
    ),
}
RESULTS = {  # (data set, backbone): mIoU at a single scale, and with scales and flip
    (dataset, backbone): miou for dataset, benchmark in BENCHMARKS.items() for backbone, miou in benchmark.miou.items()
}

TITLES = {
    "ade20k": "ADE20K val",
    "coco_stuff10k": "COCO-Stuff 10k test",
    "cityscapes": "Cityscapes val",
    "lip": "LIP val",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "resnest101": "ResNeSt-101",
}


class Published(NamedTuple):
    """A published result."""

    miou: float  # in percent
    setting: str  # single or tta
    source: str


def official_setting(dataset: str, backbone: str, name: str) -> dict[str, Any]:
    """The official test of a recipe, `name` single or tta: the fields of an evaluation's setting that affect scores.

    A single scale needs no `average`: softmax and logits have the same argmax.
    """
    benchmark = BENCHMARKS[dataset]
    setting = {"mode": "whole", "scales": [1.0], "flip": False, **benchmark.size}
    if name == "tta":
        setting |= {"flip": True, **benchmark.tta, **benchmark.tta_exceptions.get(backbone, {})}
    return setting


def find(dataset: str, model: Mapping[str, Any], split: str, setting: Mapping[str, Any]) -> Published | None:
    """The published result to compare an evaluation with; None unless network and test are the official ones.

    model: `config.model`, or what is known of it; setting: the "setting" of results.json.
    """
    backbone, name = model.get("backbone", ""), setting.get("name")
    if (dataset, backbone) not in RESULTS or name not in ("single", "tta"):
        return None
    benchmark, official = BENCHMARKS[dataset], official_setting(dataset, backbone, name)
    if any(model.get(field, value) != value for field, value in benchmark.network.items()):
        return None
    if split != benchmark.split or any(setting.get(field) != value for field, value in official.items()):
        return None
    return Published(RESULTS[dataset, backbone][name == "tta"], name, SOURCE)


def table_row(dataset: str, backbone: str, measured: Mapping[str, float]) -> str:
    """A row of README's table of recipes, in Markdown: published and measured mIoU, single scale / scales and flip.

    measured: mIoU in percent by setting, "single" and "tta"; what is missing is a dash.
    """
    cells = [f"{measured[name]:.2f}" if name in measured else "-" for name in ("single", "tta")]
    single, tta = RESULTS[dataset, backbone]
    return f"| {TITLES[dataset]}, {TITLES[backbone]} | {single:.2f} / {tta:.2f} | {' / '.join(cells)} |"
