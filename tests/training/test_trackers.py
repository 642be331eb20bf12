"""Weights & Biases and MLflow: what they are given, resumption, failures; their own offline modes, if installed."""

import json
import shutil
import sys
import threading
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from isnet_jax import config
from isnet_jax.errors import UserError
from isnet_jax.runtime import distributed, files
from isnet_jax.training import trackers
from isnet_jax.training.log import Log

PIXELS = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)


def run_config(**fields):
    c = config.default("resnet18")
    c.run.update(fields)
    return c


def log_two_rows(workdir, c, first=0):
    workdir.mkdir(exist_ok=True)
    with Log(workdir, c, first, 9) as log:
        log.write(first + 1, {"loss/total": 0.5, "iou/traffic light, red": float("nan")})
        log.write(first + 2, {"iou/road": 0.25})
        log.picture(first + 2, "predictions", PIXELS)


def module(name, **content):
    """A module as if it had been imported from a file."""
    made = ModuleType(name)
    vars(made).update(content, __file__=f"/stub/{name}/__init__.py")
    return made


@pytest.fixture
def wandb(monkeypatch):
    """A package that records calls; `runs` has what each call of `init` got, and the calls on that run."""

    class Run:
        offline, url, step = False, "https://wandb.example/run", 0

        def __init__(self):
            self.logged, self.exit_code = [], None

        def log(self, values, step):
            self.step = step
            self.logged.append((step, values))

        def finish(self, exit_code):
            self.exit_code = exit_code

    runs = []

    def init(**arguments):
        runs.append((arguments, Run()))
        return runs[-1][1]

    stub = module("wandb", init=init, runs=runs, Settings=SimpleNamespace, Image=lambda pixels: ("image", pixels))
    stub.setup = lambda settings: SimpleNamespace(settings=SimpleNamespace(mode="offline"))
    monkeypatch.setitem(sys.modules, "wandb", stub)
    return stub


def test_wandb_gets_numbers_pictures_and_config(wandb, tmp_path, capsys):
    log_two_rows(tmp_path / "w", run_config(wandb="project"))
    [(arguments, run)] = wandb.runs
    assert (arguments["project"], arguments["name"]) == ("project", "w")
    assert arguments["config"]["train"]["base_lr"] == 0.01
    (first, second, third) = run.logged
    assert (first, second) == ((1, {"loss/total": 0.5}), (2, {"iou/road": 0.25}))
    assert third[0] == 2 and third[1]["predictions"][1] is PIXELS and run.exit_code == 0
    assert "https://wandb.example/run" in capsys.readouterr().out


def test_wandb_resumes_the_run_of_the_workdir(wandb, tmp_path):
    for project, first in (("a", 0), ("a", 2), ("b", 4)):
        log_two_rows(tmp_path / "w", run_config(wandb=project), first)
    ids = [arguments["id"] for arguments, _ in wandb.runs]
    assert ids[0] == ids[1] != ids[2] and {arguments["resume"] for arguments, _ in wandb.runs} == {"allow"}
    (tmp_path / "w" / "wandb.json").write_text('{"place": "b", "id": "../../x"}')
    log_two_rows(tmp_path / "w", run_config(wandb="b"), 6)
    assert wandb.runs[-1][0]["id"] not in (*ids, "../../x")


def test_wandb_is_not_given_repeated_steps(wandb, tmp_path):
    """A resumed run repeats the steps after its checkpoint, which the run there has already."""
    real = wandb.init

    def resumed(**arguments):
        run = real(**arguments)
        run.step = 2
        return run

    wandb.init = resumed
    log_two_rows(tmp_path / "w", run_config(wandb="a"))
    assert [step for step, _ in wandb.runs[0][1].logged] == [2, 2]


def test_only_the_first_process_tracks(wandb, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    log_two_rows(tmp_path / "w", run_config(wandb="a"))
    assert wandb.runs == []


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_failing_tracker_is_reported_once_and_stops_nothing(where, wandb, tmp_path, capsys):
    def fail(*_, **__):
        raise ConnectionError("no route to host\nsecond line")

    real = wandb.init

    def init(**arguments):
        run = real(**arguments)
        setattr(run, where, fail)
        return run

    wandb.init = fail if where == "init" else init
    log_two_rows(tmp_path / "w", run_config(wandb="a"))
    err = capsys.readouterr().err
    assert err.count("Weights & Biases failed (ConnectionError: no route to host)") == 1 and "second line" not in err
    rows = (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]


def test_hanging_tracker_holds_nothing_up(wandb, tmp_path, monkeypatch, capsys):
    release = threading.Event()
    wandb.init = lambda **_: release.wait()
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(trackers, "MAX_PENDING", 2)
    log_two_rows(tmp_path / "w", run_config(wandb="a"))
    release.set()
    assert capsys.readouterr().err.count("Weights & Biases failed") == 1


def test_ended_with_an_error_is_a_failed_run(wandb, tmp_path):
    with pytest.raises(RuntimeError), Log(tmp_path, run_config(wandb="a"), 0, 9):
        raise RuntimeError
    assert wandb.runs[0][1].exit_code == 1


@pytest.mark.parametrize("field", trackers.TRACKERS)
def test_missing_package_is_named_before_any_work(field, tmp_path, monkeypatch):
    """Also where a folder of its name, which trackers write, looks like it."""
    c = run_config(**{field: "a"})
    trackers.require(run_config())
    monkeypatch.setitem(sys.modules, field, None)
    with pytest.raises(UserError, match=rf"config.run.{field} is set, .*pip install {field}"):
        trackers.require(c)
    monkeypatch.setitem(sys.modules, field, module(field))
    sys.modules[field].__file__ = None
    with pytest.raises(UserError, match=rf"No module named '{field}'"):
        trackers.require(c)


@pytest.mark.parametrize(
    "name, key",
    [
        ("iou/road", "iou/road"),
        ("iou/a, b", "iou/a_ b"),
        ("iou/../x", "iou/__/x"),
        ("iou//x/", "iou/_x_"),
        ("é.b", "é.b"),
    ],
)
def test_mlflow_names_are_valid(name, key):
    assert trackers.MLflow._key(name) == key


# --- the packages themselves --------------------------------------------------------------------


def test_wandb_offline(tmp_path, monkeypatch, capfd):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    for first in (0, 2):
        log_two_rows(tmp_path / "w", run_config(wandb="project"), first)
    kept = json.loads((tmp_path / "w" / "wandb.json").read_text())
    assert list((tmp_path / "wandb").glob(f"offline-run-*-{kept['id']}/run-{kept['id']}.wandb"))
    assert list((tmp_path / "wandb").rglob("predictions_*.png"))
    assert not list(files.symbolic_links(tmp_path / "w"))  # links that lead out of it would end the next start
    out, err = capfd.readouterr()
    assert err == "" and "Weights & Biases: " in out


def test_mlflow_in_a_folder(tmp_path, monkeypatch, capfd):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/tracked")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for first in (0, 2, 1):  # the last start repeats step 2
        log_two_rows(tmp_path / "w", run_config(mlflow="experiment"), first)
    client = mlflow.MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name("experiment").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["train.base_lr"] == "0.01"
    losses = client.get_metric_history(run.info.run_id, "loss/total")
    assert [(metric.step, metric.value) for metric in losses] == [(1, 0.5), (3, 0.5)]
    assert len(list((tmp_path / "tracked").rglob("predictions*.png"))) == 3
    assert "MLflow: run " in capfd.readouterr().out
    with pytest.raises(RuntimeError), Log(tmp_path / "w", run_config(mlflow="experiment"), 4, 9):
        raise RuntimeError
    assert client.get_run(run.info.run_id).info.status == "FAILED"
    shutil.rmtree(tmp_path / "tracked" / str(run.info.experiment_id))
    log_two_rows(tmp_path / "w", run_config(mlflow="experiment"), 4)
    assert run.info.run_id not in (tmp_path / "w" / "mlflow.json").read_text()  # it is gone there: another begins
