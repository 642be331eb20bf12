"""The official recipes, named DATASET-BACKBONE, as in ade20k-resnet50."""

import runpy

from ml_collections import ConfigDict

from benchmarks.paths import ROOT

RECIPES = [
    f"{dataset}-{backbone}"
    for dataset in ("ade20k", "coco_stuff", "cityscapes", "lip")
    for backbone in ("resnet50", "resnet101", "resnest101")
]


def load_config(recipe: str) -> ConfigDict:
    """The config of a recipe, or of its data set with another backbone."""
    dataset, backbone = recipe.split("-")
    return runpy.run_path(str(ROOT / "configs" / f"{dataset}.py"))["get_config"](backbone)
