"""Tests of checkpoints.pretrained: which weights a run starts from, and which are new."""

import functools

import jax
import numpy as np
import pytest
from cases import network, random_variables

from isnet_jax import config, create_model
from isnet_jax.checkpoints import safetensors_file
from isnet_jax.checkpoints.manager import save_variables
from isnet_jax.checkpoints.pretrained import CLASSIFIERS, load_network, load_pretrained, write_state_dict
from isnet_jax.checkpoints.torch_names import official_names, to_torch
from isnet_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("tiny_network")
FIELDS = {"backbone": "resnet18", "shortcut": True}


@functools.cache
def of_classes(num_classes, **fields):
    """A network and the variables that a checkpoint of it holds."""
    return network(**FIELDS | fields, num_classes=num_classes)


@pytest.fixture(params=["safetensors", "directory"])
def write(request, tmp_path):
    """Writes a network's variables as a checkpoint; returns its path."""

    def write(model, variables):
        path = tmp_path / f"isnet.{request.param}"
        if request.param == "safetensors":
            write_state_dict(path, to_torch(variables, model))
        else:
            c = config.default(model.backbone)
            c.model.num_classes = model.num_classes
            save_variables(path, c, variables, "x.pth")
        return path

    return write


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_whole_network_is_loaded(write, capsys):
    model, variables = of_classes(5)
    initial = random_variables(model, seed=1)
    path = write(model, variables)
    assert_equal(load_pretrained(path, model, initial), variables)
    count = len(jax.tree.leaves(variables))
    assert capsys.readouterr().out == f"{path}: loaded {count} of {count} arrays\n"


def test_other_classes_start_anew(write, capsys):
    """All but the classifiers comes from the checkpoint; the classifiers keep their random weights."""
    (theirs, variables), (model, _) = of_classes(7), of_classes(5)
    initial = random_variables(model, seed=1)
    path = write(theirs, variables)
    found = load_pretrained(path, model, initial)
    for name, tree in found["params"].items():
        assert_equal(tree, (initial if name in CLASSIFIERS else variables)["params"][name])
    assert_equal(found["batch_stats"], variables["batch_stats"])
    count = len(jax.tree.leaves(variables))
    new = f"{', '.join(sorted(CLASSIFIERS))} (7 classes there, 5 here)"
    assert capsys.readouterr().out == f"{path}: loaded {count - 6} of {count} arrays; new: {new}\n"
    with pytest.raises(UserError, match="num_classes"):  # to evaluate, it must fit
        load_network(path, model)


@pytest.mark.parametrize(
    "fields, pattern", [({"backbone": "resnet34"}, "layer3.5"), ({"shortcut": False}, "not in the network: .*shortcut")]
)
def test_other_differences_are_refused(write, fields, pattern):
    path = write(*of_classes(7))
    model, initial = of_classes(5, **fields)
    with pytest.raises(UserError, match=pattern):
        load_pretrained(path, model, initial)


def test_classifiers_of_different_classes_are_refused(tmp_path):
    model, variables = of_classes(5)
    state_dict = to_torch(variables, model)
    state_dict["auxiliary_decoder.4.bias"] = np.zeros(9, np.float32)
    safetensors_file.write(tmp_path / "a.safetensors", state_dict)
    with pytest.raises(UserError, match=r"auxiliary_decoder.4.bias \(9,\) instead of \(5,\)"):
        load_pretrained(tmp_path / "a.safetensors", model, variables)


def test_backbone_is_loaded_and_the_rest_is_new(tmp_path, capsys):
    model, variables = of_classes(5)
    initial = random_variables(model, seed=1)
    state_dict = {
        name.replace("backbone_net.", "backbone."): array
        for name, array in to_torch(variables, model).items()
        if name.startswith("backbone_net.")
    }
    path = tmp_path / "a.safetensors"
    others = {"head.fc.weight": np.ones((10, 64)), "decode_head.conv_seg.bias": np.ones(9)}  # mmsegmentation's
    safetensors_file.write(path, state_dict | others)
    found = load_pretrained(path, model, initial)
    assert_equal(found["params"]["backbone"], variables["params"]["backbone"])
    assert_equal(found["params"]["bottleneck"], initial["params"]["bottleneck"])
    assert f"loaded {len(state_dict)} of " in (out := capsys.readouterr().out)
    assert "only the backbone is taken, not decode_head, head\n" in out
    assert "new: auxiliary_classifier, auxiliary_head, bottleneck, image_level_context, " in out


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions_become_float32(tmp_path, dtype):
    model, variables = of_classes(5)
    state_dict = {
        name: array.astype(np.dtype(dtype)) if array.dtype == np.float32 else array
        for name, array in to_torch(variables, model).items()
    }
    safetensors_file.write(tmp_path / "a.safetensors", state_dict)
    for load in (load_network, lambda path, model: load_pretrained(path, model, variables)):
        found = load(tmp_path / "a.safetensors", model)
        assert_equal(jax.tree.map(lambda x: x.dtype, found), jax.tree.map(lambda x: x.dtype, variables))
        kernel = found["params"]["stage1_classifier"]["kernel"]
        wanted = state_dict["decoder_stage1.4.weight"].astype(np.float32).transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(kernel, wanted)


@pytest.mark.parametrize(
    "theirs, ours, pattern",
    [
        ("resnet50b", "resnet50", "single 7x7 convolution.*config.model.backbone=resnet50b, or"),
        ("resnet50d", "resnet50", "shortcuts are pooled.*config.model.backbone=resnet50d, or"),
        ("resnet50", "resnet50d", "three 3x3 convolutions .mmcls.*config.model.backbone=resnet50, or"),
        ("resnet50", "resnet50b", "config.model.backbone=resnet50, or"),
        ("resnet50b", "resnet18", "config.model.backbone=resnet50b or resnet101b, or"),
        ("resnet101d", "resnet50d", "not in the network: .*layer3.22"),
        ("resnest50", "resnet50", "not in the network: .*conv2.fc1"),
    ],
)
def test_backbone_of_another_kind_is_refused_with_the_name_to_write(tmp_path, theirs, ours, pattern):
    names = official_names(create_model({"backbone": theirs, "num_classes": 5}))
    state_dict = {
        name.removeprefix("backbone_net."): np.zeros(shape, np.float32)
        for name, (_, shape) in names.items()
        if name.startswith("backbone_net.")
    }
    safetensors_file.write(tmp_path / "a.safetensors", state_dict)
    with pytest.raises(UserError, match=pattern):
        load_pretrained(tmp_path / "a.safetensors", create_model({"backbone": ours, "num_classes": 5}), {})
