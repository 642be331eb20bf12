"""A data set, a run stopped after step 3, and an evaluation that version 0.1 wrote open in this version.

tests/data/version_0_1.tar.xz holds them: a `folder` data set of 8 + 3 images, the run's workdir (ResNet-18, with every
kernel replaced by a pattern of signs, so that it compresses), its evaluation, and what 0.1 logged for steps 4 to 6 of
that run.
"""

import json
import tarfile

import numpy as np
import pytest
from paths import TESTS
from small_run import weights_at

from isnet_jax import create_model
from isnet_jax.checkpoints.manager import load_variables, read_config, recorded_config
from isnet_jax.checkpoints.torch_names import variable_shapes
from isnet_jax.evaluation import comparison, results
from isnet_jax.evaluation.results import read_metrics
from isnet_jax.runtime import sharding
from isnet_jax.training.loop import train_and_evaluate


@pytest.fixture
def written_by_0_1(tmp_path):
    with tarfile.open(TESTS / "data" / "version_0_1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_run_of_0_1_resumes_with_the_same_losses(written_by_0_1, capsys, monkeypatch):
    """Fields that are gone or renamed since are in its config.json, and its data set is opened, not prepared again."""
    workdir = written_by_0_1 / "run"
    recorded = read_config(workdir)
    assert recorded["train"]["microbatches"] == 1 and recorded["test"]["max_programs"] == 8
    config = recorded_config(workdir)
    config.data.data_dir, config.data.source = str(written_by_0_1 / "data"), None
    devices = [sharding.jax.devices()[0]]
    make_mesh = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda setting, size=None: make_mesh(setting, size, devices))
    train_and_evaluate(config, workdir)
    assert "resuming from step 3" in capsys.readouterr().out
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if row["step"] > 3]
    expected = json.loads((written_by_0_1 / "expected.json").read_text())
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, wanted in zip(rows, expected):
        for name, value in wanted.items():
            if name not in ("images_per_second", "data_wait_share"):
                assert row[name] == pytest.approx(value, rel=1e-4), (row["step"], name)
    assert int(weights_at(workdir, 6)["['step']"]) == 6


def test_weights_of_0_1_are_read_bit_for_bit(written_by_0_1):
    workdir = written_by_0_1 / "run"
    model = create_model({"backbone": "resnet18", "num_classes": 3})
    for ema in (False, True):
        variables = load_variables(workdir, variable_shapes(model), ema)
        kernel = variables["params"]["bottleneck"]["conv"]["kernel"]
        magnitude = abs(kernel[0, 0, 0, 0])
        signs = np.where(np.arange(512) % 4 < 2, 1, -1)
        np.testing.assert_array_equal(kernel, np.broadcast_to(signs * magnitude, kernel.shape).astype(np.float32))


def test_evaluation_of_0_1_is_described(written_by_0_1, capsys):
    evaluation = results.load(written_by_0_1 / "evaluation")
    assert evaluation.names == ("a", "b", "c") and evaluation.prediction(0).shape == (32, 40)
    comparison.describe(written_by_0_1 / "evaluation")
    assert "folder val, 3 images; resnet18" in capsys.readouterr().out
