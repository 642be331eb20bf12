"""The main job and its commands, as a user runs them, on a small folder in CamVid's layout."""

import ast
import functools
import json
import re
import runpy
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from small_run import assert_same_weights, overrides, run, run_inside, small_config, unwrapped, weights_at

from isnet_jax import cli, config, create_model
from isnet_jax.checkpoints import torch_names
from isnet_jax.checkpoints.manager import load_variables, read_config, save_variables
from isnet_jax.errors import UserError
from isnet_jax.runtime import sharding
from isnet_jax.training.loop import train_and_evaluate

pytestmark = pytest.mark.usefixtures("tiny_network", "one_device")


@pytest.fixture(scope="module")
def finished(camvid, tiny_network, one_device, tmp_path_factory):
    """A run of 6 steps (2 an epoch), with a moving average; it prepares its data set itself."""
    workdir = tmp_path_factory.mktemp("run") / "small"
    unprepared = camvid[0], tmp_path_factory.mktemp("data")
    result = train_and_evaluate(small_config(unprepared, **{"train.ema_decay": 0.5}), workdir)
    return workdir, result


def test_run_writes_scores_picture_logs_and_checkpoints(finished):
    workdir, results = finished
    result = results["weights"]
    record = json.loads((workdir / "results.json").read_text())
    assert record["step"] == 6 and set(record) == {"step", "weights", "ema"}
    assert record["weights"]["miou"] == pytest.approx(100 * result["miou"], abs=1e-3)
    labelled = sum(
        int((np.array(Image.open(path)) < 11).sum())
        for path in sorted((Path(str(small_source(workdir))) / "val" / "labels").iterdir())
    )
    assert np.sum(record["weights"]["confusion"]) == labelled  # every labelled pixel of the split, once
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss/total" in row] == [1, 2, 3, 4, 5, 6]
    assert {row["step"] for row in rows if "weights/miou" in row} == {4, 6}
    assert {row["step"] for row in rows if "ema/miou" in row} == {4, 6}
    for row in rows:
        if "weights/miou" in row:
            assert 0 < row["weights/loss"] < 10 and len([name for name in row if name.startswith("iou/")]) == 11
    assert rows[-1]["weights/loss"] == pytest.approx(result["loss"]) == record["weights"]["loss"]
    events = b"".join(path.read_bytes() for path in (workdir / "tensorboard").iterdir())
    assert events.count(b"\x89PNG") == 2  # a sheet for each evaluation
    assert Image.open(workdir / "predictions.png").size[0] > 3 * 64


def small_source(workdir):
    return read_config(workdir)["data"]["source"]


def test_resumed_run_equals_uninterrupted_bit_for_bit(finished, camvid, tmp_path):
    """From a checkpoint in mid-epoch: weights, momentum, statistics, moving average and step."""
    whole, _ = finished
    resumed = tmp_path / "resumed"
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "6")
    assert sorted(path.name for path in (resumed / "checkpoints").iterdir()) == ["3"]
    train_and_evaluate(small_config(camvid, **{"train.ema_decay": 0.5}), resumed)
    assert_same_weights(whole, resumed, 6)
    expected = weights_at(whole, 6)
    before = weights_at(whole, 3)
    assert any((before[name] != expected[name]).any() for name in expected)


def test_finished_run_is_evaluated_again_not_trained(finished, camvid, tmp_path, capsys):
    workdir = tmp_path / "again"
    shutil.copytree(finished[0], workdir)
    results = train_and_evaluate(small_config(camvid, **{"train.ema_decay": 0.5}), workdir)
    for kind in ("weights", "ema"):
        np.testing.assert_array_equal(results[kind]["confusion"], finished[1][kind]["confusion"])
    assert "  lr " not in capsys.readouterr().out  # which lines of training have


def test_workdir_refuses_another_config(finished, camvid):
    with pytest.raises(UserError, match="another config .*train.base_lr: 0.01 there, 0.02 now.*--workdir"):
        train_and_evaluate(small_config(camvid, **{"train.ema_decay": 0.5, "train.base_lr": 0.02}), finished[0])
    with pytest.raises(UserError, match="model.backbone: resnet18 there, resnet34 now"):
        train_and_evaluate(small_config(camvid, **{"train.ema_decay": 0.5, "model.backbone": "resnet34"}), finished[0])


def test_training_starts_from_pretrained_weights(finished, camvid, tmp_path):
    """A converted directory, or a run's, with a learning rate of 0: the weights come out as they went in."""
    workdir = tmp_path / "tuned"
    c = small_config(camvid, **{"train.base_lr": 0.0, "train.min_lr": 0.0, "train.epochs": 1})
    c.train.pretrained = str(finished[0])
    train_and_evaluate(c, workdir)
    template = torch_names.variable_shapes(create_model(c.model))
    old, new = (load_variables(path, template)["params"] for path in (finished[0], workdir))
    jax.tree.map(np.testing.assert_array_equal, new, old)


def test_run_with_every_option_resumes_bit_for_bit(finished, camvid, tmp_path, capsys):
    """It says what is unusual, records the weights of the classes, and leaves the frozen stages as they were loaded."""
    options = {
        "train.pretrained": str(finished[0]),
        "train.ema_decay": 0.5,
        "train.optimizer": "adamw",
        "train.schedule": "cosine",
        "train.warmup_steps": 2,
        "train.clip_norm": 1.0,
        "train.head_lr_factor": 10.0,
        "train.decay_norms_and_biases": False,
        "train.frozen_stages": 2,
        "train.freeze_batch_norm": True,
        "loss.balance_classes": True,
        "loss.label_smoothing": 0.1,
        "loss.ohem_threshold": 0.7,
        "loss.ohem_min_kept": 100,
        "loss.dice_weight": 1.0,
    }
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    config = small_config(camvid)
    config.update_from_flattened_dict(options)
    train_and_evaluate(config, whole)
    printed = capsys.readouterr().out
    assert "M frozen: stem, layer1)" in printed and "class weights: sky " in printed
    assert "leave off: loss.balance_classes=True, " in printed and "train.freeze_batch_norm=True\n" in printed
    counts = [
        np.bincount(np.array(Image.open(path)).ravel(), minlength=12)
        for path in sorted((Path(str(camvid[0])) / "train" / "labels").iterdir())
    ]
    shares = np.sum(counts, 0)[:11] / np.sum(counts, 0)[:11].sum()
    assert read_config(whole)["class_weights"] == pytest.approx(1 / np.log(1.02 + shares), rel=1e-12)

    before, after = weights_at(finished[0], 6), weights_at(whole, 6)
    for name, value in before.items():
        if re.match(r"\['(params|batch_stats)'\]\['backbone'\]\['(stem|layer1)", name):
            np.testing.assert_array_equal(after[name], value)
            np.testing.assert_array_equal(after[f"['ema']{name}"], value)
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "6")
    train_and_evaluate(config, resumed)
    assert_same_weights(whole, resumed, 6)


def test_main_command_trains_evaluates_and_resumes(camvid, tmp_path):
    arguments = ["--config=tests/tiny_camvid.py:resnet18", f"--workdir={tmp_path}/w", *overrides(camvid)]
    code, out, err = run(*arguments, "--config.train.epochs=1")
    assert code == 0, err
    assert err == ""  # quiet: no library noise
    assert "18 training and 5 evaluation images, 2 steps of 8" in out
    assert "step 2/2  loss" in out and "ETA" in out and "pixel accuracy" in out
    assert f"{tmp_path}/w/predictions.png" in out
    code, out, err = run(*arguments, "--config.train.epochs=1", devices=2)  # another number of devices, too
    assert code == 0 and "resuming from step 2" in out, err


MISTAKES = {
    "no config": ([], 2, "--config=FILE is missing"),
    "no such file": (["--config=configs/ade.py"], 1, "configs/ade.py' does not exist"),
    "unknown backbone": (["--config=configs/ade20k.py:resnet51"], 1, "resnet51.*resnet18, resnet34, resnet50"),
    "mistyped section": (["--config=configs/camvid.py", "--config.trian.epochs=3"], 1, "'trian'; did you mean 'train'"),
    "mistyped field": (
        ["--config=configs/camvid.py", "--config.train.epoch=3"],
        1,
        "config.train has no field 'epoch'; did you mean 'epochs'",
    ),
    "wrong type": (
        ["--config=configs/camvid.py", "--config.train.epochs=many"],
        1,
        "is 'many'; it must be a whole number",
    ),
    "impossible value": (
        ["--config=configs/camvid.py", "--config.train.momentum=1.5"],
        1,
        "config.train.momentum is 1.5",
    ),
    "unknown flag": (["--config=configs/camvid.py", "--wrokdir=x"], 2, "no flag --wrokdir"),
    "stray word": (["--config=configs/camvid.py", "train"], 2, "argument without a flag: train"),
    "two configs": (["--config=configs/camvid.py", "--config=configs/quickstart.py"], 2, "given twice"),
    "no data": (["--config=configs/camvid.py", "--config.data.data_dir=/nonexistent"], 1, "config.data.source=DIR"),
    "no folder": (["--config=configs/camvid.py", "--config.data.source=/nonexistent"], 1, "/nonexistent"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_main_reports_a_mistake_in_one_paragraph(mistake, tmp_path):
    arguments, expected_code, pattern = MISTAKES[mistake]
    start = run if mistake == "mistyped field" else run_inside  # one of them as a user sees it
    code, out, err = start(*arguments)
    assert code == expected_code
    assert err.startswith("error: ") and "Traceback" not in err
    assert re.search(pattern, unwrapped(err)), err


@pytest.mark.parametrize(
    "field, value, pattern",
    [
        ("model.num_classes", 12, "num_classes is 12, but .* camvid has 11"),
        ("data.eval_split", "validation", "no split 'validation'.*train, val, test"),
        ("data.name", "camvd", "no data set 'camvd'"),
        ("train.global_batch_size", 64, "18 examples, fewer than config.train.global_batch_size"),
        ("train.global_batch_size", 9, "9, which 2 devices do not share evenly"),
        ("train.pretrained", "/nonexistent.pth", "/nonexistent.pth"),
        ("train.warmup_steps", 6, "warmup_steps is 6, but the run has 6 steps"),
        ("train.freeze_batch_norm", True, "starts from random weights. Give --config.train.pretrained"),
    ],
)
def test_run_reports_mistakes_found_with_the_data(camvid, tmp_path, field, value, pattern, monkeypatch):
    monkeypatch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, devices=jax.devices()[:2]))
    with pytest.raises(UserError, match=pattern):
        train_and_evaluate(small_config(camvid, **{field: value}), tmp_path / "w")
    assert not (tmp_path / "w" / "config.json").exists()  # the corrected config may have the same workdir


@pytest.mark.parametrize(
    "argument, message",
    [
        ("loss.balance_classes=yes", "config.loss.balance_classes is 'yes'; it must be True or False."),
        ("loss.dice_weight=a=1: b", "config.loss.dice_weight is 'a=1: b'; it must be a number."),
    ],
)
def test_values_of_another_type_are_named(argument, message):
    code, out, err = run_inside("--config=configs/quickstart.py", f"--config.{argument}", "--print_config")
    assert (code, out, unwrapped(err)) == (1, "", f"error: {message}")


def test_home_directories_and_missing_flags(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = "--config=configs/camvid.py", "--input=~/isnet.pth"
    code, _, err = run_inside(*arguments, "--output=~/out", module="convert")
    assert code == 1 and f"--input={tmp_path}/isnet.pth does not exist" in unwrapped(err)
    code, _, err = run_inside(*arguments, module="convert")
    assert code == 2 and err.startswith("error: --output is missing\n\n")


@pytest.mark.parametrize(
    "line, pattern",
    [
        ("    return config.default().modle", "line 4.*Did you mean .*model"),
        ("    c = config.default(); c.train.epoch = 5; return c", "line 4.*epoch"),
        ("    c = config.default()", "must return what isnet_jax.config.default"),
        ("    return (", "line 4.*never closed"),
    ],
)
def test_load_config_reports_the_line_of_a_mistake(line, pattern, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"from isnet_jax import config\n\ndef get_config():\n{line}\n")
    with pytest.raises(UserError, match=pattern):
        cli.load_config(str(path))


def test_load_variables_refuses_another_network(finished, camvid):
    """By classes, depth and shortcut; nothing is left half-loaded."""
    for field, value, pattern in (
        ("num_classes", 12, r"auxiliary_classifier/bias \(11,\) instead of \(12,\)"),
        ("backbone", "resnet34", "missing: .*layer3_5"),
        ("shortcut", True, "missing: .*shortcut/conv/kernel"),
    ):
        fields = dict(small_config(camvid).model) | {field: value}
        with pytest.raises(UserError, match=f"another network.*{pattern}"):
            load_variables(finished[0], torch_names.variable_shapes(create_model(fields)))


def test_run_reports_unusable_workdirs(finished, camvid, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for text in ("{", "[]"):
        (broken / "config.json").write_text(text)
        with pytest.raises(UserError, match="config.json is damaged"):
            train_and_evaluate(small_config(camvid), broken)
    with pytest.raises(UserError, match="holds no config.json"):
        load_variables(tmp_path, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .*choose another --workdir"):
        train_and_evaluate(small_config(camvid), tmp_path / "file")
    c = small_config(camvid)
    save_variables(tmp_path / "converted", c, {"params": {"x": np.zeros(2)}, "batch_stats": {}}, "x.pth")
    with pytest.raises(UserError, match="converted checkpoint.*--config.train.pretrained"):
        train_and_evaluate(c, tmp_path / "converted")


def test_convert_round_trip(finished, tmp_path):
    """A run's weights to an official .pth, back to a directory, and what `torch.load` sees in between."""
    torch = pytest.importorskip("torch")
    arguments = ["--config=tests/tiny_camvid.py:resnet18"]
    code, _, err = run(*arguments, f"--input={finished[0]}", f"--output={tmp_path}/x.pth", module="convert")
    assert code == 0 and err == "", err
    code, out, err = run(*arguments, f"--input={tmp_path}/x.pth", f"--output={tmp_path}/back", module="convert")
    assert code == 0 and err == "" and "resnet18 ISNet, 11 classes" in out, err
    template = torch_names.variable_shapes(create_model({"backbone": "resnet18", "num_classes": 11}))
    run_variables, back = (load_variables(path, template) for path in (finished[0], tmp_path / "back"))
    jax.tree.map(np.testing.assert_array_equal, back, run_variables)
    official = torch.load(tmp_path / "x.pth", weights_only=True)["model"]
    kernel = np.asarray(run_variables["params"]["bottleneck"]["conv"]["kernel"])
    np.testing.assert_array_equal(official["bottleneck.0.weight"].numpy(), kernel.transpose(3, 2, 0, 1))
    (tmp_path / "cut.pth").write_bytes((tmp_path / "x.pth").read_bytes()[:100_000])
    for name, pattern in (("cut.pth", "cut.pth"), ("none.pth", "does not exist")):
        code, _, err = run(*arguments, f"--input={tmp_path}/{name}", f"--output={tmp_path}/y", module="convert")
        assert code == 1 and re.search(pattern, unwrapped(err)) and "Traceback" not in err


@pytest.mark.parametrize("module", ["main", "predict"])
def test_print_config_prints_every_field_and_ends(module):
    """Whatever flags the command requires otherwise; values come back as Python."""
    code, out, err = run_inside(
        "--config=configs/camvid.py:resnet34", "--config.train.epochs=3", "--print_config", module=module
    )
    assert (code, err) == (0, "")
    printed = {field: ast.literal_eval(value) for field, value in (line.split(" = ", 1) for line in out.splitlines())}
    assert (printed["model.backbone"], printed["train.epochs"], printed["data.folder.splits"]) == ("resnet34", 3, {})
    c = config.default()
    c.model.num_classes = 11
    c.update_from_flattened_dict({name: value for name, value in printed.items() if name != "data.folder.splits"})
    config.check(c)
    code, out, err = run_inside("--config=configs/camvid.py", "--config.seed=-1", "--print_config")
    assert code == 1 and out == "" and "config.seed is -1" in err
    assert run_inside("--print_config", module="predict")[0] == 2


RECIPES = {  # crop, batch, epochs, base lr, min lr, weight decay, classes: the table of the official recipes
    ("ade20k", "resnet50"): ((512, 512), 16, 130, 0.01, 1e-4, 5e-4, 150),
    ("ade20k", "resnet101"): ((512, 512), 16, 130, 0.01, 1e-4, 5e-4, 150),
    ("ade20k", "resnest101"): ((512, 512), 16, 180, 0.004, 1e-4, 5e-4, 150),
    ("coco_stuff", "resnet50"): ((512, 512), 16, 110, 0.001, 1e-5, 1e-4, 182),
    ("coco_stuff", "resnet101"): ((512, 512), 16, 110, 0.001, 1e-5, 1e-4, 182),
    ("coco_stuff", "resnest101"): ((512, 512), 32, 150, 0.001, 1e-4, 1e-4, 182),
    ("cityscapes", "resnet50"): ((512, 1024), 16, 440, 0.01, 1e-4, 5e-4, 19),
    ("cityscapes", "resnet101"): ((512, 1024), 16, 440, 0.01, 1e-4, 5e-4, 19),
    ("cityscapes", "resnest101"): ((512, 1024), 16, 440, 0.01, 1e-4, 5e-4, 19),
    ("lip", "resnet50"): ((473, 473), 32, 150, 0.01, 1e-4, 5e-4, 20),
    ("lip", "resnet101"): ((473, 473), 32, 150, 0.01, 1e-4, 5e-4, 20),
    ("lip", "resnest101"): ((473, 473), 40, 150, 0.007, 7e-5, 5e-4, 20),
}


@pytest.mark.parametrize("name, backbone", RECIPES)
def test_recipes_equal_the_official_table(name, backbone):
    c = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"](backbone)
    config.check(c)
    t = c.train
    assert (
        c.augment.crop_size,
        t.global_batch_size,
        t.epochs,
        t.base_lr,
        t.min_lr,
        t.weight_decay,
        c.model.num_classes,
    ) == RECIPES[name, backbone]
    assert c.model.backbone == backbone and c.model.shortcut == (name == "lip")
    assert c.model.activation == ("leaky_relu" if name == "lip" else "relu")
    assert (t.momentum, t.power, t.ema_decay, c.model.dropout) == (0.9, 0.9, 0, 0.1)
