"""Tests of checkpoints.manager; those of damaged checkpoints and full disks are in tests/system/test_faults.py."""

import json

import numpy as np
import pytest

from isnet_jax import config
from isnet_jax.checkpoints import manager
from isnet_jax.checkpoints.manager import Checkpoints, load_variables, save_variables
from isnet_jax.errors import UserError
from isnet_jax.runtime import interrupts

VARIABLES = {"params": {"kernel": np.ones((2, 3), np.float32)}, "batch_stats": {"mean": np.zeros(3, np.float32)}}


def save(directory):
    save_variables(directory, config.default("resnet18"), VARIABLES, "weights.pth")


def test_checkpoints_are_complete_when_the_context_exits(tmp_path):
    with Checkpoints(tmp_path, {"name": "run"}) as checkpoints:
        checkpoints.save(1, VARIABLES)
    np.testing.assert_equal(load_variables(tmp_path, VARIABLES), VARIABLES)


def test_checkpoints_keep_the_newest(tmp_path):
    with Checkpoints(tmp_path, {"name": "run"}, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, VARIABLES)
        checkpoints.wait()
        assert checkpoints.steps() == [3, 2]


@pytest.mark.parametrize("name", ["a\\b", "gs:/b", "caf\udce9"])
def test_workdirs_that_libraries_would_misread_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="do not take for a name: rename that folder, or choose another --output"):
        save(tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    "name", ["run [1]", "run*", "**", "what?", "a run", "lauf ü 路 🚗", "a]b", "%s {x} 'y'", "x" * 255]
)
def test_workdirs_may_have_any_other_name(tmp_path, name):
    save(tmp_path / name)
    np.testing.assert_equal(load_variables(tmp_path / name, VARIABLES), VARIABLES)


def test_checkpoints_refuse_a_workdir_without_config(tmp_path):
    save(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="holds checkpoints but no config.json.*Choose another --workdir"):
        Checkpoints(tmp_path, {"name": "run"})


def test_save_variables_refuses_a_second_checkpoint(tmp_path):
    save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["converted_from"] == "weights.pth"
    with pytest.raises(UserError, match="already holds checkpoints; choose another --output"):
        save(tmp_path)


def test_load_variables_leaves_interrupts_to_the_caller(tmp_path, monkeypatch):
    """An interrupt that Orbax turns into its own error is no damage, and becomes KeyboardInterrupt again."""
    save(tmp_path)

    def restore(*_):
        raise ValueError("interrupted in a callback")

    monkeypatch.setattr(manager, "_restore_fields", restore)
    with pytest.raises(UserError, match="is damaged: interrupted in a callback"):
        load_variables(tmp_path, VARIABLES)
    monkeypatch.setattr(interrupts, "stop_requested", lambda: True)
    with pytest.raises(ValueError, match="interrupted in a callback"):
        load_variables(tmp_path, VARIABLES)
