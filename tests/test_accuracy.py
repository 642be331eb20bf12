"""The comparison of trained accuracy with PyTorch (benchmarks/accuracy): its data, its PyTorch half, its records."""

import json
import re

import jax
import numpy as np
import pytest
from cases import network
from paths import ROOT
from test_benchmarks import run

from benchmarks.accuracy import backbone, drawn_people, records, report
from benchmarks.accuracy.runs import Experiment, Run
from isnet_jax.checkpoints.manager import save_variables
from isnet_jax.checkpoints.pretrained import load_pretrained
from isnet_jax.config import default
from isnet_jax.input import photometry
from isnet_jax.training.optimizer import make_schedule


def test_drawn_people_have_left_limbs_where_the_face_says():
    for seed in range(20):
        image, label = drawn_people.draw(np.random.default_rng(seed))
        assert image.shape == (*label.shape, 3) == (128, 96, 3)
        columns = {name: np.nonzero(label == i)[1] for i, name in enumerate(drawn_people.CLASSES)}
        is_facing = len(columns["face"]) > 0
        for limb in ("leg", "shoe"):
            left, right = columns[f"left {limb}"].mean(), columns[f"right {limb}"].mean()
            assert (left > right) == is_facing, (seed, limb)
    assert [sorted(drawn_people.CLASSES[i].split()[0] for i in pair) for pair in drawn_people.FLIP_PAIRS] == [
        ["left", "right"]
    ] * 3


def test_difference_of_means_has_the_interval_of_welch():
    found = records.difference([41.0, 42.0, 43.5], [41.5, 42.5, 42.0])
    assert found.mean == pytest.approx(0.1667, abs=1e-3)
    assert found.low < found.mean < found.high and found.low == pytest.approx(-2.55, abs=0.05)
    assert records.difference([41.0], [42.0]) is None
    text = records.comparison({"ours": [41.0, 42.0, 43.5], "torch": [41.5, 42.5, 42.0]})
    assert "difference of the means +0.17 points" in text and len(text.splitlines()) == 4


def test_page_shows_every_record():
    text = (ROOT / "docs/accuracy.md").read_text()
    for data, entry in records.load().items():
        for line in f"{report.setting(entry['config'])}\n{report.results_table(entry)}".splitlines():
            assert line.strip() in text, f"{data}: run python -m benchmarks.accuracy.report"
    for picture in re.findall(r"\]\((images/.*?)\)", text):
        assert (ROOT / "docs" / picture).exists()


def test_report_writes_what_was_measured_so_far(tmp_path, monkeypatch):
    record = {"kind": "ours", "seed": 0, "miou": 41.25, "losses": [2.0, 1.0], "commands": ["train"], "versions": {}}
    curves = {"ours": [1.0, 2.0], "torch": [1.0, 2.1], "largest": 0.05, "diverged": 2}
    results = {
        "camvid": {"ours": [41.25], "runs": {"ours-0": record}},
        "people": {"divergence": {"float32": curves, "float64": curves | {"diverged": None}, "exact": [1.0, 2.0]}},
    }
    page = tmp_path / "accuracy.md"
    page.write_text((ROOT / "docs/accuracy.md").read_text())
    monkeypatch.setattr(records, "load", lambda: results)
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "IMAGES", tmp_path)
    report.main(tmp_path)
    text = page.read_text()
    assert "41.25" in text and "losses agree within 0.1% for 1 of 2 steps; they differ by 0.0e+00 at the first" in text
    assert (tmp_path / "accuracy.png").exists()


def test_records_of_another_config_are_dropped(tmp_path, monkeypatch):
    """And a folder with runs of another config is refused."""
    monkeypatch.setattr(Run, "record", lambda run: {"kind": run.kind, "seed": run.seed, "miou": 40.0 + run.seed})
    experiment, file = Experiment("camvid", tmp_path / "camvid", tmp_path, {}), tmp_path / "results.json"
    experiment.claim()
    experiment.claim()
    for kind, seed in (("ours", 1), ("ours", 0), ("neither", 0)):
        records.add(file, Run(experiment, kind, seed))
    entry = records.load(file)["camvid"]
    assert entry["ours"] == [40.0, 41.0] and entry["ablation"] == {"both": [40.0, 41.0], "neither": [40.0]}
    recorded = [records.is_recorded(file, Run(experiment, *run)) for run in (("ours", 1), ("ours", 2), ("torch", 1))]
    assert recorded == [True, False, False]
    other = experiment._replace(changes={"train.epochs": 2})
    assert not records.is_recorded(file, Run(other, "ours", 1))
    records.add(file, Run(other, "ours", 2))
    assert records.load(file)["camvid"]["ours"] == [42.0]
    with pytest.raises(RuntimeError, match="holds runs of another config"):
        other.claim()


def test_runs_start_from_the_backbone_alone(tmp_path, tiny_network):
    model, variables = network("resnet18")
    c = default("resnet18")
    c.model.num_classes = model.num_classes
    save_variables(tmp_path / "scenes-0", c, variables, "x.pth")
    backbone.write_backbone(tmp_path / "scenes-0", tmp_path / "backbone.safetensors")
    loaded = load_pretrained(tmp_path / "backbone.safetensors", model, jax.tree.map(np.zeros_like, variables))
    for collection, modules in variables.items():
        for name, tree in modules.items():
            expected = tree if name == "backbone" else jax.tree.map(np.zeros_like, tree)
            jax.tree.map(np.testing.assert_array_equal, loaded[collection][name], expected)


@pytest.fixture
def batches(tmp_path, torch):
    """An export of three steps, written by hand, for a ResNet-18 with 4 classes; a window leaves a border out."""
    from benchmarks import torch_isnet

    config = default("resnet18")
    config.model.num_classes, config.model.dropout = 4, 0.3
    torch.manual_seed(0)
    rng, folder = np.random.default_rng(0), tmp_path / "batches"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "total_steps": 3}))
    torch.save(torch_isnet.ISNet("resnet18", 4).state_dict(), folder / "init.pth")
    np.save(folder / "image.npy", rng.integers(0, 256, (3, 2, 32, 40, 3)).astype(np.uint8))
    np.save(folder / "label.npy", rng.integers(0, 4, (3, 2, 32, 40)).astype(np.uint8))
    np.save(folder / "window.npy", np.tile(np.int32([0, 2, 30, 38]), (3, 2, 1)))
    return folder


def test_pytorch_sees_the_images_and_learning_rates_of_our_train_step(batches, torch):
    from benchmarks.accuracy import torch_train

    image, window = (np.load(batches / f"{name}.npy")[0] for name in ("image", "window"))
    found = torch_train.normalize(image, window, torch.float32).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, photometry.normalize(image, window), atol=1e-6)
    config = json.loads((batches / "config.json").read_text())
    training = torch_train.Run(config, torch.load(batches / "init.pth"), torch.float32)
    schedule = make_schedule(default("resnet18").train, 3)
    for step in range(3):
        assert training.schedule.get_last_lr()[0] == pytest.approx(float(schedule(step)), rel=1e-6)
        training.optimizer.step()
        training.schedule.step()


def test_pytorch_resumes_as_if_never_interrupted(batches, tmp_path, torch, monkeypatch):
    """Weights, momentum, schedule and the draws of dropout; the steps since the last checkpoint are repeated."""
    from benchmarks.accuracy import torch_train

    monkeypatch.setattr(torch_train, "SAVE_EVERY", 1)
    torch_train.train(batches, tmp_path / "whole", torch.float32)
    step = torch_train.Run.train_step

    def stop_at_two(training, *arguments):
        if training.step == 2:
            raise KeyboardInterrupt
        return step(training, *arguments)

    monkeypatch.setattr(torch_train.Run, "train_step", stop_at_two)
    with pytest.raises(KeyboardInterrupt):
        torch_train.train(batches, tmp_path / "resumed", torch.float32)
    monkeypatch.setattr(torch_train.Run, "train_step", step)
    with (tmp_path / "resumed/losses.jsonl").open("a") as file:
        file.write('{"step": 3, "total": 0.0}\n')  # a step after the checkpoint
    torch_train.train(batches, tmp_path / "resumed", torch.float32)
    whole, resumed = (tmp_path / name for name in ("whole", "resumed"))
    assert (resumed / "losses.jsonl").read_text() == (whole / "losses.jsonl").read_text()
    written = (whole / "isnet.pth").stat().st_mtime_ns
    torch_train.train(batches, whole, torch.float32)  # is done
    assert (whole / "isnet.pth").stat().st_mtime_ns == written
    weights = [torch.load(folder / "isnet.pth") for folder in (whole, resumed)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.slow
def test_both_frameworks_compute_the_same_losses_on_exported_batches(batches, tmp_path, torch):
    """In float64 without dropout, the steps of momentum and weight decay included, as LIP's network has them."""
    from benchmarks import torch_isnet

    config = json.loads((batches / "config.json").read_text())
    config["model"] |= {"dropout": 0.0, "shortcut": True, "activation": "leaky_relu"}
    (batches / "config.json").write_text(json.dumps(config))
    torch.save(torch_isnet.ISNet("resnet18", 4, shortcut=True).state_dict(), batches / "init.pth")
    for module in ("jax_losses", "torch_train"):
        run(f"accuracy.{module}", str(batches), str(tmp_path / module), "--dtype=float64")
    losses = [
        [json.loads(line)["total"] for line in (tmp_path / module / "losses.jsonl").read_text().splitlines()]
        for module in ("jax_losses", "torch_train")
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)
    assert len(losses[0]) == 3


@pytest.mark.slow
def test_smoke_trains_both_frameworks_and_ends_with_the_comparison(torch):
    *_, ours, theirs, difference, first = run("accuracy.run", "--smoke").splitlines()
    assert ours.startswith("isnet_jax") and theirs.startswith("PyTorch") and "difference" in difference
    losses = list(map(float, re.findall(r"\d+\.\d+", first)))  # of the same batch, exported for PyTorch
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
