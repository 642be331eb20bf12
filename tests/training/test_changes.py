"""What a run may change when it goes on, without training: test_resumption.py has whole runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isnet_jax import config
from isnet_jax.checkpoints.manager import Checkpoints
from isnet_jax.errors import UserError
from isnet_jax.runtime import sharding
from isnet_jax.training.changes import Origin, Resumption
from isnet_jax.training.step import TrainState

WITH_CHANGES = Resumption(with_changes=True)


def make_config(**fields):
    c = config.default("resnet18")
    c.model.num_classes, c.data.name, c.train.epochs, c.train.global_batch_size = 2, "camvid", 3, 8
    c.update_from_flattened_dict(fields)
    return c


def facts(c, examples=18):
    return c.to_dict() | {"train_examples": examples}


def state_at(step, momentum=()):
    return TrainState(jnp.int32(step), {"kernel": jnp.ones((2, 3))}, {"mean": jnp.ones(3)}, momentum, None)


def template(state):
    replicated = sharding.replicated(sharding.make_mesh("data=1", devices=jax.devices()[:1]))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), state)


@pytest.fixture
def run(tmp_path):
    """The workdir of a run of 6 steps, of which 4 are done, with its best state."""
    workdir = tmp_path / "run"
    with Checkpoints(workdir, facts(make_config())) as checkpoints:
        checkpoints.save(4, state_at(4))
    for name in ("results.json", "predictions.png"):
        (workdir / name).write_text("of before")
    (workdir / "best" / "4").mkdir(parents=True)
    return workdir


def go_on(workdir, c, examples=18, resumption=WITH_CHANGES, momentum=()):
    """What a start does before it trains; the state that it resumes from."""
    origin = Origin(workdir, facts(c, examples), resumption)
    with Checkpoints(workdir, facts(c, examples), with_changes=origin.changes_workdir) as checkpoints:
        state = origin.restore(checkpoints, template(state_at(0, momentum)))
        origin.adopt(checkpoints, c, examples, state)
    return state


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_changes_are_shown_recorded_and_the_old_config_kept(run, capsys):
    """More epochs, another rate; the batch size moves the epoch, since a run counts steps."""
    before = (run / "config.json").read_text()
    c = make_config(**{"train.epochs": 12, "train.base_lr": 0.02, "train.global_batch_size": 6, "run.num_pictures": 1})
    assert go_on(run, c).step == 4
    out = capsys.readouterr().out
    table = [line.split() for line in out.splitlines()]
    for row in (
        ["train.base_lr", "0.01", "0.02"],
        ["train.epochs", "3", "12"],
        ["train.global_batch_size", "8", "6"],
        ["steps", "6", "36"],
        ["steps", "per", "epoch", "2", "3"],
        ["epoch", "3", "2"],
        ["learning", "rate", f"{(1 - 4 / 6) ** 0.9 * 0.0099 + 1e-4:.3e}", f"{(1 - 4 / 36) ** 0.9 * 0.0199 + 1e-4:.3e}"],
    ):
        assert row in table, out
    assert "goes on at step 4 of 36, in epoch 2 of 12: 32 steps are left" in out and "num_pictures" not in out
    assert json.loads((run / "config.json").read_text())["train"]["epochs"] == 12
    aside = run / "before-4"
    assert (aside / "config.json").read_text() == before and (aside / "results.json").read_text() == "of before"
    assert not (run / "results.json").exists() and (run / "best" / "4").is_dir()  # its score still compares
    go_on(run, c)  # the same command again: no change is left
    assert capsys.readouterr().out == ""


def test_best_of_another_evaluation_is_set_aside(run):
    go_on(run, make_config(**{"data.eval_split": "test"}))
    assert (run / "before-4" / "best" / "4").is_dir() and not (run / "best").exists()


def test_changes_killed_while_they_are_recorded_are_recorded_again(run, monkeypatch):
    before = content(run)
    c = make_config(**{"train.epochs": 12})
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(Checkpoints, "record_config", lambda _: (_ for _ in ()).throw(InterruptedError))
        go_on(run, c)
    go_on(run, c)
    go_on(run, make_config())  # back, and there again
    (run / "results.json").write_text("of the second")
    go_on(run, c)
    kept = content(run)
    assert {name: kept[name] for name in before if name.parts[0] == "checkpoints"}.items() <= before.items()
    assert (run / "before-4" / "results.json").read_text() == "of before"
    assert (run / "before-4-3" / "results.json").read_text() == "of the second"


@pytest.mark.parametrize("resumption", [Resumption(), WITH_CHANGES])
def test_unchanged_run_is_resumed(resumption, run):
    before = content(run)
    assert go_on(run, make_config(), resumption=resumption).step == 4
    assert content(run) == before


def test_another_config_is_refused_with_the_flag_that_accepts_it(run):
    with pytest.raises(UserError, match="train.epochs: 3 there, 5 now.*add --resume_with_changes.*another --workdir"):
        go_on(run, make_config(**{"train.epochs": 5}), resumption=Resumption())


@pytest.mark.parametrize(
    "fields, examples, message",
    [
        (
            {"model.backbone": "resnet34"},
            18,
            "model.backbone: resnet18 there, resnet34 now.*config.train.pretrained=.*run",
        ),
        ({"model.num_classes": 3}, 18, "model.num_classes: 2 there, 3 now"),
        ({"model.activation": "leaky_relu"}, 18, "model.activation: relu there, leaky_relu now"),
        ({"train.optimizer": "adamw"}, 18, "train.optimizer: sgd there, adamw now"),
        ({"train.frozen_stages": 2}, 18, "train.frozen_stages: 0 there, 2 now"),
        ({"train.ema_decay": 0.5}, 18, "train.ema_decay: 0.0 there, 0.5 now"),
        ({"train.epochs": 1}, 18, "step 4, past the last step of this config, 2: .*config.train.epochs to 2 or more"),
        ({}, 9, "past the last step of this config, 3: an epoch has 1. Set config.train.epochs to 4"),
    ],
)
def test_changes_that_no_state_follows_are_refused(fields, examples, message, run):
    before = content(run)
    with pytest.raises(UserError, match=message):
        go_on(run, make_config(**fields), examples)
    assert content(run) == before


def test_mismatch_names_the_changes(run):
    """As of an optimizer with other arrays."""
    before = content(run)
    with pytest.raises(UserError, match="one of train.momentum needs another state.*missing: opt_state/0.*pretrained="):
        go_on(run, make_config(**{"train.momentum": 0.5}), momentum=(np.ones(3, np.float32),))
    assert content(run) == before


def test_workdir_without_checkpoints_takes_any_config(tmp_path):
    with Checkpoints(tmp_path, facts(make_config())) as checkpoints:
        checkpoints.record_config()
    c = make_config(**{"model.backbone": "resnet34"})
    origin = Origin(tmp_path, facts(c), WITH_CHANGES)
    with Checkpoints(tmp_path, facts(c), with_changes=origin.changes_workdir) as checkpoints:
        origin.adopt(checkpoints, c, 18, state_at(0))
        assert checkpoints.steps() == []
    assert json.loads((tmp_path / "config.json").read_text())["model"]["backbone"] == "resnet34"


def test_run_begins_in_an_empty_workdir_even_with_changes_allowed(tmp_path):
    c = make_config()
    origin = Origin(tmp_path / "new", facts(c), WITH_CHANGES)
    with Checkpoints(tmp_path / "new", facts(c), with_changes=origin.changes_workdir) as checkpoints:
        assert origin.restore(checkpoints, state_at(0)) is None
        origin.adopt(checkpoints, c, 18, state_at(0))
    assert json.loads((tmp_path / "new" / "config.json").read_text())["model"] == c.model.to_dict()


def test_new_workdir_goes_on_from_another_run(run, tmp_path, capsys):
    """Which stays as it is; the same command then resumes the new one, and too few epochs leave nothing behind."""
    before, resumption = content(run), Resumption(source=str(run))
    with pytest.raises(UserError, match="past the last step"):
        go_on(tmp_path / "new", make_config(**{"train.epochs": 1}), resumption=resumption)
    c = make_config(**{"train.epochs": 5})
    for _ in range(2):
        assert go_on(tmp_path / "new", c, resumption=resumption).step == 4
        assert (tmp_path / "new" / "checkpoints" / "4").is_dir() and not (tmp_path / "new" / "before-4").exists()
    assert capsys.readouterr().out.count("goes on at step 4 of 10") == 1
    assert content(run) == before
    with pytest.raises(UserError, match="train.epochs: 5 there, 6 now.*--resume_with_changes"):
        go_on(tmp_path / "new", make_config(**{"train.epochs": 6}), resumption=resumption)


def test_source_must_be_a_run(run, tmp_path):
    with pytest.raises(UserError, match="nothing holds no config.json"):
        go_on(tmp_path / "new", make_config(), resumption=Resumption(source=str(tmp_path / "nothing")))
    for path in (run / "best").iterdir():
        path.rmdir()
    with pytest.raises(UserError, match="holds no best checkpoint"):
        go_on(tmp_path / "new", make_config(), resumption=Resumption(source=str(run), best=True))
    converted = json.loads((run / "config.json").read_text()) | {"converted_from": "x.pth"}
    (run / "config.json").write_text(json.dumps(converted))
    with pytest.raises(UserError, match="converted weights.*config.train.pretrained="):
        go_on(tmp_path / "new", make_config(), resumption=Resumption(source=str(run)))
