"""Tests of checkpoints.conversion: files, directories and other numbers of classes."""

import jax
import numpy as np
import pytest
from cases import network

from isnet_jax import config
from isnet_jax.checkpoints import state_dicts
from isnet_jax.checkpoints.conversion import convert_checkpoint
from isnet_jax.checkpoints.manager import Checkpoints, read_config, save_variables
from isnet_jax.checkpoints.pretrained import CLASSIFIERS, load_network
from isnet_jax.checkpoints.torch_names import to_torch
from isnet_jax.errors import UserError
from isnet_jax.models.isnet import create_model

pytestmark = pytest.mark.usefixtures("tiny_network")


def test_convert_writes_safetensors_and_reads_them_back(tmp_path, capsys):
    """Directory -> file with the official names -> directory: bit by bit, but for classifiers of other classes."""
    model, variables = network("resnet18")
    c = config.default("resnet18")
    c.model.num_classes = 5
    save_variables(tmp_path / "run", c, variables, "x.pth")
    convert_checkpoint(c, str(tmp_path / "run"), str(tmp_path / "isnet.safetensors"))
    written, official = state_dicts.read(tmp_path / "isnet.safetensors"), to_torch(variables, model)
    assert set(written) == set(official)
    for name, array in official.items():
        np.testing.assert_array_equal(written[name], array)
    for field, value, message in (("activation", "leaky_relu", "activation=relu"), ("num_classes", 9, "classifier")):
        other = c.copy_and_resolve_references()
        other.model[field] = value
        with pytest.raises(UserError, match=message):  # a file would not tell
            convert_checkpoint(other, str(tmp_path / "run"), str(tmp_path / "other.safetensors"))
    c.model.num_classes = 9
    convert_checkpoint(c, str(tmp_path / "isnet.safetensors"), str(tmp_path / "nine"))
    assert "stage2_classifier (5 classes there, 9 here)" in capsys.readouterr().out
    assert set(read_config(tmp_path / "nine")["untrained_modules"]) == set(CLASSIFIERS)
    nine = load_network(tmp_path / "nine", create_model(c.model))
    for name, tree in nine["params"].items():
        if name not in CLASSIFIERS:
            jax.tree.map(np.testing.assert_array_equal, tree, variables["params"][name])


def test_a_run_is_converted_by_its_own_config(tmp_path):
    """Its weights, or with `ema` their moving averages; a file of either starts a training."""
    _, variables = network("resnet18")
    averages = jax.tree.map(lambda x: -x, variables)
    c = config.default("resnet18")
    c.model.num_classes = 5
    with Checkpoints(tmp_path / "run", c.to_dict()) as checkpoints:
        checkpoints.save(3, {**variables, "ema": averages, "step": np.int32(3)})
    for name, ema, expected in ("weights", False, variables), ("averages", True, averages):
        path = tmp_path / f"{name}.safetensors"
        converted = convert_checkpoint(None, str(tmp_path / "run"), str(path), ema)
        assert converted.config.model.num_classes == 5 and not converted.untrained
        jax.tree.map(np.testing.assert_array_equal, load_network(path, create_model(c.model)), expected)
    with pytest.raises(UserError, match="weights.safetensors is a file.*add --config=FILE"):
        convert_checkpoint(None, str(tmp_path / "weights.safetensors"), str(tmp_path / "back"))
    with pytest.raises(
        UserError, match="--ema converts the moving averages of a run: give --input=DIR and --output=FILE"
    ):
        convert_checkpoint(None, str(tmp_path / "run"), str(tmp_path / "directory"), ema=True)


def test_convert_reports_what_does_not_exist(tmp_path):
    c = config.default("resnet18")
    c.model.num_classes = 5
    with pytest.raises(UserError, match="--input=.*none.pth does not exist; give the directory of a run"):
        convert_checkpoint(c, str(tmp_path / "none.pth"), str(tmp_path / "x"))
