"""The official test settings and published results, against the recipes in configs/."""

import json
import runpy

import pytest
from paths import ROOT

from isnet_jax.config import inference_settings
from isnet_jax.evaluation import published
from isnet_jax.evaluation.checkpoint import evaluation_facts


class DataStub:
    """What `evaluation_facts` reads of `input.data.Data`."""

    evaluation, class_names, palette = (), (), ()


def recipe(dataset, backbone):
    """The config of the official recipe."""
    path = ROOT / f"configs/{dataset.removesuffix('10k')}.py"
    return runpy.run_path(str(path))["get_config"](backbone)


def recipe_setting(config, name):
    """The setting that results.json records for an evaluation with this config."""
    return evaluation_facts(config, DataStub, inference_settings(config, name == "tta"), name)["setting"]


def test_results_cover_every_official_recipe():
    assert len(published.RESULTS) == 12
    assert set(published.RESULTS) == {
        (dataset, backbone)
        for dataset in ("ade20k", "coco_stuff10k", "cityscapes", "lip")
        for backbone in ("resnet50", "resnet101", "resnest101")
    }


@pytest.mark.parametrize("name", ["single", "tta"])
@pytest.mark.parametrize("dataset, backbone", published.RESULTS)
def test_official_setting_equals_the_recipe(dataset, backbone, name):
    config = recipe(dataset, backbone)
    setting, official = recipe_setting(config, name), published.official_setting(dataset, backbone, name)
    assert config.data.name == dataset and config.data.eval_split == published.BENCHMARKS[dataset].split
    assert {field: setting[field] for field in official} == official
    assert set(official) >= {"mode", "scales", "flip", "resize", "keep_ratio"} | (
        {"average"} if name == "tta" else set()
    )
    if official["mode"] == "slide":
        assert {"crop_size", "stride"} <= set(official)


@pytest.mark.parametrize("dataset, backbone", published.RESULTS)
def test_find_returns_the_result_of_the_official_test_only(dataset, backbone):
    config = recipe(dataset, backbone)
    split, model = config.data.eval_split, config.model.to_dict()
    for name, miou in zip(("single", "tta"), published.RESULTS[dataset, backbone]):
        setting = json.loads(json.dumps(recipe_setting(config, name)))
        assert published.find(dataset, model, split, setting)[:2] == (miou, name)
        for change in ({"shortcut": not model["shortcut"]}, {"activation": "other"}, {"image_level_context": False}):
            assert published.find(dataset, model | change, split, setting) is None
        for changes in {"resize": [96, 64]}, {"scales": [1.0, 2.0]}, {"mode": "other"}, {"name": "other"}:
            assert published.find(dataset, model, split, setting | changes) is None
        assert published.find(dataset, model, "train", setting) is None
        assert published.find("camvid", model, "val", setting) is None
        for other in {}, {**model, "image_level_context": False}, {**model, "semantic_level_context": False}:
            assert published.find(dataset, other, split, setting) is None
