"""The evaluate command: mixed sizes, resuming after a kill, mistakes; and the record that it resumes from."""

import json
import os
import re
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest
from cases import random_variables
from paths import ROOT
from PIL import Image
from small_run import run_inside, unwrapped

from isnet_jax import UserError, config, create_model
from isnet_jax.checkpoints import torch_names
from isnet_jax.checkpoints.conversion import convert_checkpoint
from isnet_jax.checkpoints.directory import CheckpointDirectory
from isnet_jax.checkpoints.manager import Checkpoints, checkpoint_path, load_variables, newest_step, save_variables
from isnet_jax.evaluation import predictor, results
from isnet_jax.evaluation.boundary import CONVENTION
from isnet_jax.evaluation.checkpoint import evaluate_checkpoint, print_results
from isnet_jax.evaluation.record import RELEVANT, EvaluationRecord
from isnet_jax.input import data
from isnet_jax.input.pipeline import EvalBatch
from isnet_jax.runtime import files

CONFIG = """
from isnet_jax import config
from isnet_jax.input import data
from isnet_jax.models import isnet, resnet

data.CPU_COMPILATION = 0  # or images as small as these would share one padded shape

isnet.HEAD_CHANNELS, resnet.PLANES = 128, 16  # as the fixture tiny_network

def get_config(backbone="resnet18"):
    c = config.default(backbone)
    c.model.num_classes = 3
    c.data.name = "folder"
    c.data.folder.name = "drawn"
    c.data.folder.classes = ("sky", "land", "sea")
    c.data.folder.splits = {"val": ("images", "labels")}
    c.data.source, c.data.data_dir = "SOURCE", "DATA"
    c.test.resize = (60, 40)
    c.test.batch_size = 2
    c.test.max_shape_buckets = 2
    c.test.tta.scales = (1.0, 0.5)
    return c
"""


@pytest.fixture(scope="module")
def place(tiny_network, tmp_path_factory):
    """A directory with config.py, a checkpoint of random weights, and twelve images of three sizes."""
    place = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    for kind in "images", "labels":
        (place / "tree" / kind).mkdir(parents=True)
    for i in range(12):
        height, width = ((40, 60), (52, 44), (30, 60))[i % 3]
        label = rng.integers(0, 3, (height // 8 + 1, width // 8 + 1)).repeat(8, 0).repeat(8, 1)[:height, :width]
        label[:3] = 255
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
        image.save(place / f"tree/images/{i:02d}.png")
        Image.fromarray(label.astype(np.uint8)).save(place / f"tree/labels/{i:02d}.png")
    (place / "config.py").write_text(CONFIG.replace("SOURCE", str(place / "tree")).replace("DATA", str(place / "data")))
    c = config.default("resnet18")
    c.model.num_classes = 3
    model = create_model(c.model)
    save_variables(place / "weights", c, random_variables(model), "random")
    return place


def run(place, *args, code=None):
    """Exit code, standard output and standard error (unwrapped) of the command, or of Python `code` in its place."""
    start = ["-m", "isnet_jax.evaluate"] if code is None else ["-c", code]
    done = subprocess.run(
        [sys.executable, *start, "--config=config.py", *args],
        capture_output=True,
        text=True,
        cwd=place,
        timeout=300,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(ROOT)},
    )
    return done.returncode, done.stdout, " ".join(done.stderr.split())


KILLED = """
import os, runpy, signal, sys
from isnet_jax.evaluation import record
record.SAVE_SECONDS = 0
add, calls = record.EvaluationRecord.add, []

def add_and_die(*args):
    add(*args)
    calls.append(0)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

record.EvaluationRecord.add = add_and_die
runpy.run_module("isnet_jax.evaluate", run_name="__main__", alter_sys=True)
"""


def test_evaluate_resumes_after_a_kill_and_equals_an_uninterrupted_run(place):
    code, out, err = run(place, "--checkpoint=weights", "--output=whole")
    assert code == 0, err
    assert "12 images; 2 padded shapes" in out and "boundary IoU" in out and "absent_zero" in out
    assert run(place, "--checkpoint=weights", "--output=killed", code=KILLED)[0] == -9
    assert not (place / "killed/results.json").exists()
    code, out, err = run(place, "--checkpoint=weights", "--output=killed")
    assert code == 0 and "12 images, 6 of them done" in out, out + err
    whole, killed = (results.load(place / name) for name in ("whole", "killed"))
    for key in "confusion", "boundary", "protocols", "boundary_iou", "names", "setting":
        assert whole.record[key] == killed.record[key]
    for name in "counts", "boundary", "files":
        np.testing.assert_array_equal(getattr(whole, name), getattr(killed, name))
    assert whole.record["run"]["programs"] == 2  # compilations counted by JAX, for three sizes
    np.testing.assert_array_equal(whole.counts.sum(0, dtype=np.int64)[2], np.array(whole.record["confusion"]).sum(1))
    for i in range(12):
        np.testing.assert_array_equal(whole.prediction(i), killed.prediction(i))
        height, width = ((40, 60), (52, 44), (30, 60))[i % 3]
        assert whole.prediction(i).shape == (height, width)
        label = np.array(Image.open(place / f"tree/labels/{i:02d}.png"))
        hits = [((whole.prediction(i) == k) & (label == k)).sum() for k in range(3)]
        np.testing.assert_array_equal(whole.counts[i, 0], hits)
    assert not list(place.glob("*/progress.npz")) and not list(place.glob("*/**/*.partial"))
    code, out, _ = run(place, "--checkpoint=weights", "--output=whole", "--protocol=absent_one")
    assert code == 0 and "holds this evaluation already" in out and "mmseg" not in out

    code, _, err = run(place, "--checkpoint=weights", "--output=whole", "--tta")
    assert code == 1 and "of another evaluation" in err
    os.utime(checkpoint_path(place / "weights", newest_step(place / "weights")), ns=(0, 0))  # as if written again
    code, _, err = run(place, "--checkpoint=weights", "--output=whole")
    assert code == 1 and "of another evaluation" in err
    (place / "whole/results.json").write_text("")
    code, _, err = run(place, "--checkpoint=weights", "--output=whole")
    assert code == 1 and "is damaged" in err


def test_scores_are_printed_for_a_split_without_labelled_pixels(capsys):
    record = {
        "names": ["a", "b"],
        "boundary_iou": {"convention": CONVENTION, "miou": None},
        "confusion": [[0, 0], [0, 0]],
        "boundary": [[0, 0], [0, 0], [0, 0]],
        "protocols": {"official": {"miou": None}},
        "published": {"miou": 44.22, "source": "zoo"},
        "setting": {"name": "single"},
        "run": {"images_per_second": 1.0},
    }
    print_results(record, ["official"])
    out = capsys.readouterr().out
    assert "boundary IoU n/a\n" in out and "published" not in out and "nan" not in out
    print_results(record | {"boundary_iou": {"miou": None}}, ["official"])  # as an earlier version wrote it
    assert "Boundary IoU was counted by an earlier version" in capsys.readouterr().out


FACTS = {
    "dataset": "d",
    "split": "val",
    "names": ["a", "b"],
    "palette": [[0, 0, 0], [9, 9, 9]],
    "setting": {"name": "single"},
    "config": {"model": dict.fromkeys(RELEVANT)},
}


def record_with_batch(directory, indices, stamp="x"):
    """An EvaluationRecord of three images, and the arguments of `add` for a batch of them."""
    record = EvaluationRecord(directory, FACTS, stamp, ["one", "two", "three"])
    count = len(indices)
    predictions = jax.numpy.zeros((count, 4, 4), "uint8")
    counts = np.tile(np.array([[10, 0], [16, 0], [10, 6]]), (count, 1, 1))
    result = {
        "predictions": predictions,
        "counts": counts,
        "boundary": counts,
        "confusion": count * np.array([[10, 0], [6, 0]]),
    }
    batch = {"index": np.array(indices), "label_size": np.full((count, 2), 4)}
    return record, (EvalBatch((4, 4), (4, 4), False, np.array(indices)), batch, result)


def test_record_leaves_out_an_interrupted_batch_completely(tmp_path):
    record, first = record_with_batch(tmp_path, [0])
    record.add(*first)
    _, second = record_with_batch(tmp_path, [1, 2])
    second[2]["confusion"] = property  # raises TypeError, like an interrupt while the batch is added
    with pytest.raises(TypeError):
        record.add(*second)
    record.save()
    resumed, second = record_with_batch(tmp_path, [1, 2])
    assert resumed.done.tolist() == [True, False, False] and resumed.confusion.sum() == 16
    resumed.add(*second)
    resumed.save()
    assert record_with_batch(tmp_path, [])[0].done.all()
    (tmp_path / "predictions/two.png").unlink()  # a missing prediction discards the progress
    assert not record_with_batch(tmp_path, [])[0].done.any()
    with pytest.raises(UserError, match="of another evaluation"):
        record_with_batch(tmp_path, [], stamp="prepared again")


def test_record_of_images_without_labelled_pixels_is_described_and_reported(tmp_path):
    """Null scores in results.json, from the first write to the page."""
    record, (entry, batch, result) = record_with_batch(tmp_path, [0, 1, 2])
    zeros = {name: np.zeros_like(result[name]) for name in ("counts", "boundary", "confusion")}
    record.add(entry, batch, result | zeros)
    content = record.finish({"images_per_second": 1.0})
    assert content == json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert (
        content["protocols"]["official"]["dice"] == {"a": None, "b": None} and content["boundary_iou"]["miou"] is None
    )
    print_results(content, ["official", "absent_zero"])
    for module, arguments in {"compare": [tmp_path, tmp_path], "report": [tmp_path, f"--other={tmp_path}"]}.items():
        code, out, err = run_inside(*arguments, module=module, cwd=tmp_path)
        assert (code, err) == (0, "") and not re.search(r"\bnan\b", out)


def test_record_ignores_progress_that_counted_boundaries_otherwise(tmp_path):
    record, batch = record_with_batch(tmp_path, [0, 1])
    record.add(*batch)
    record.save()
    assert record_with_batch(tmp_path, [])[0].done.sum() == 2
    with np.load(tmp_path / "progress.npz") as archive:
        arrays = dict(archive)
    for changed in arrays | {"boundary_convention": np.array("another")}, arrays | {"boundary_convention": np.zeros(3)}:
        files.write_arrays(tmp_path / "progress.npz", **changed)
        assert not record_with_batch(tmp_path, [])[0].done.any()
    del arrays["boundary_convention"]
    files.write_arrays(tmp_path / "progress.npz", **arrays)
    assert not record_with_batch(tmp_path, [])[0].done.any()


def test_evaluate_reads_official_files_and_tests_with_tta(place):
    model = create_model({"backbone": "resnet18", "num_classes": 3})
    torch = pytest.importorskip("torch")
    state = torch_names.to_torch(load_variables(place / "weights", torch_names.variable_shapes(model)), model)
    torch.save({"model": {name: torch.from_numpy(array.copy()) for name, array in state.items()}}, place / "isnet.pth")
    code, out, err = run(place, "--checkpoint=isnet.pth", "--tta")
    assert code == 0, err
    content = json.loads((place / "runs/config/evaluation-tta/results.json").read_text())
    assert content["setting"]["scales"] == [1.0, 0.5] and content["setting"]["flip"] and content["step"] is None


@pytest.mark.parametrize(
    "args, code, message",
    [
        ((), 2, "--checkpoint=DIR_or_FILE is missing"),
        (("--checkpoint=nowhere",), 1, "--checkpoint=nowhere does not exist"),
        (("--checkpoint=weights", "--protocol=oficial"), 2, "--protocol=oficial is none of official"),
        (("--checkpoint=weights", "--config.data.eval_split=test"), 1, "has no split 'test'"),
        (("--checkpoint=weights", "--config.model.backbone=resnet34"), 1, "of another network"),
        (("--checkpoint=weights", "--ema"), 1, "holds no moving average"),
        (
            ("--checkpoint=weights", "--config.model.activation=leaky_relu"),
            1,
            "add --config.model.activation=relu",
        ),
    ],
)
def test_evaluate_reports_mistakes_without_a_traceback(place, args, code, message, monkeypatch):
    monkeypatch.setattr(data, "CPU_COMPILATION", data.CPU_COMPILATION)  # which the config sets
    exit_code, _, err = run_inside("--config=config.py", *args, module="evaluate", cwd=place)
    assert exit_code == code and message in unwrapped(err) and "Traceback" not in err, err


def test_file_needs_a_config(place):
    (place / "file.safetensors").touch()
    code, _, err = run_inside("--checkpoint=file.safetensors", module="evaluate", cwd=place)
    assert code == 1 and "does not record how the network is built and tested: add --config=FILE" in unwrapped(err)


def test_best_checkpoint_is_evaluated_and_predicted(place, tmp_path, capsys):
    """And converted: none of them takes the newest, nor the best of what has only one checkpoint."""
    c = runpy.run_path(str(place / "config.py"))["get_config"]()
    c.data.source, c.data.data_dir = str(place / "tree"), str(place / "data")
    variables = random_variables(create_model(c.model))
    with Checkpoints(tmp_path, c.to_dict()) as checkpoints:
        checkpoints.save(7, jax.tree.map(np.zeros_like, variables))
    with CheckpointDirectory(tmp_path / "best") as best:
        best.save(5, variables)
    scored = evaluate_checkpoint(c, tmp_path, "single", tmp_path / "out", best=True)
    assert (scored["step"], scored["best"]) == (5, True)
    assert "step 5 (the best), on folder val" in capsys.readouterr().out
    by_its_config = evaluate_checkpoint(None, tmp_path, "single", tmp_path / "out", best=True)
    assert by_its_config == scored and "holds this evaluation already" in capsys.readouterr().out
    expected = evaluate_checkpoint(c, place / "weights", "single", tmp_path / "expected")
    assert scored["confusion"] == expected["confusion"] and "best" not in expected
    _, _, predicted = predictor.load(tmp_path, best=True)
    jax.tree.map(np.testing.assert_array_equal, predicted, variables)
    for load in (evaluate_checkpoint, lambda *args, **more: predictor.load(args[1], **more)):
        with pytest.raises(UserError, match="weights holds no best checkpoint.*Leave out --best"):
            load(c, place / "weights", "single", tmp_path / "none", best=True)
    (tmp_path / "x.pth").touch()
    with pytest.raises(UserError, match="x.pth is a file, which holds only one checkpoint; leave out --best"):
        load(c, tmp_path / "x.pth", best=True, config=c)
    for source, target in ((tmp_path / "x.pth", "y"), (tmp_path, "y"), (tmp_path / "x.pth", "y.pth")):
        with pytest.raises(UserError, match="--best converts the best checkpoint of a run"):
            convert_checkpoint(c, str(source), str(tmp_path / target), best=True)


def test_load_variables_reads_weights_or_moving_averages(tmp_path):
    weights = {"params": {"a": np.arange(3.0)}, "batch_stats": {"b": np.ones(2)}}
    averages = jax.tree.map(lambda x: -x, weights)
    saved = Checkpoints(tmp_path, config.default().to_dict())
    saved.save(5, {**weights, "ema": averages, "step": np.int32(5)})
    saved.close()
    for ema, expected in (False, weights), (True, averages):
        jax.tree.map(np.testing.assert_array_equal, load_variables(tmp_path, weights, ema), expected)
    assert newest_step(tmp_path) == 5
