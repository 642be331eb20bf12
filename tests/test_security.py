"""Nothing a stranger made runs code here, or changes a file outside the directories that the user names."""

import ast
import contextlib
import io
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import readers
from etils import epath
from PIL import Image

from isnet_jax import checkpoints, command, datasets, evaluation_record, predict, report, results, stored
from isnet_jax.errors import UserError

ROOT = Path(__file__).parents[1]
HOSTILE = "<script>alert('x')</script>&\"quoted\" onload=x \x1b[2J"


@pytest.fixture
def outside(tmp_path):
    """A file that must stay as it is."""
    path = tmp_path / "outside" / "precious.txt"
    path.parent.mkdir()
    path.write_text("precious")
    yield path
    assert path.read_text() == "precious" and [path] == list(path.parent.iterdir())


# Code


class Run:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_checkpoint_with_pickles(tmp_path, monkeypatch):
    """Pickles in the place of any file of a checkpoint, or beside them, are never opened as such."""
    monkeypatch.chdir(tmp_path)
    checkpoint = readers.Checkpoints(tmp_path)
    bad = pickle.dumps({"params": Run()})
    for path in list(checkpoint.whole):
        if path.name != "config.json":
            for name in "metadata.pkl", "checkpoint", "__init__.py", "_METADATA.pickle":
                (path.parent / name).write_bytes(bad)
            with contextlib.suppress(UserError):
                checkpoint.read({**checkpoint.whole, path: bad})
    assert not (tmp_path / "unpickled").exists()
    pickle.loads(bad)  # the test would have seen it
    assert (tmp_path / "unpickled").exists()


ALLOWED = {
    ("command.py", "runpy"),
    ("command.py", "runpy.run_path"),  # a config file is Python
    ("__init__.py", "importlib.import_module"),
    ("predict.py", "importlib.import_module"),  # of our own modules
    ("pth.py", "pickletools"),
    ("pth.py", "pickletools.genops"),
    ("pth.py", "np.memmap"),
}  # not run
DANGEROUS = re.compile(
    r"(pickle|cPickle|_pickle|dill|cloudpickle|joblib|marshal|shelve|yaml|runpy|code|pdb|pty|ctypes|"
    r"subprocess|pickletools|scipy|multiprocessing)\b|(builtins\.)?(eval|exec|compile|__import__)$|"
    r"os\.(system|popen|exec\w*|spawn\w*|posix_spawn\w*)$|importlib\.import_module$|"
    r"(np|numpy)\.(load|loadtxt|genfromtxt|fromfile|memmap)$|.*\.(loadmat|unsafe_load|full_load)$"
)


def test_the_package_has_no_way_to_run_what_it_reads():
    """A list of what could, each with its reason; whoever adds to it shall think."""
    found = set()
    for path in sorted((ROOT / "isnet_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names] if not node.level else []
            elif isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
                names = [ast.unparse(node.func)]
                assert not any(word.arg == "shell" for word in node.keywords), path
                assert not any(
                    word.arg == "allow_pickle" and ast.unparse(word.value) != "False" for word in node.keywords
                ), path
            found |= {(path.name, name) for name in names if DANGEROUS.match(name)}
    assert found == ALLOWED


# Places


@pytest.mark.parametrize("name", ["../../outside/x", "/tmp/x", "a/b", "..", "", "a\0b", 7, None, ["a"]])
def test_names_of_examples_that_lead_out(tmp_path, name):
    """They become names of files: predictions/NAME.png."""
    prepared = readers.Prepared(tmp_path)
    (path,) = (path for path in prepared.whole if path.name == "metadata.json")
    content = json.loads(prepared.whole[path])
    content["examples"]["val"][1][0] = name
    path.write_text(json.dumps(content))
    for load in datasets.load, datasets.open_prepared:
        with pytest.raises(UserError, match="no complete data set"):
            load("folder", tmp_path / "data", folder=prepared.described)


@pytest.mark.parametrize("name", ["../../outside/precious", "/tmp/x", "..", ""])
def test_names_of_predictions_that_lead_out(tmp_path, name):
    evaluation = readers.Evaluations(tmp_path)
    names, counts, boundary = stored.read_arrays(tmp_path / "r/images.npz", "name", "counts", "boundary")
    for files in (["a", name], ["a", "a"]):
        stored.write_arrays(
            tmp_path / "r/images.npz", name=names, file=np.array(files), counts=counts, boundary=boundary
        )
        with pytest.raises(UserError, match="names of files"):
            results.load(evaluation.folder / "r")


def test_links_are_replaced_and_not_followed(tmp_path, outside):
    """Of a directory that a stranger packed: whatever name is written there may be a link to anywhere."""
    for name in "a.json", "a.json.partial", "b.png", "b.png.partial", "c.npz.partial":
        (tmp_path / name).symlink_to(outside)
    checkpoints.write_whole(tmp_path / "a.json", "text")
    predict.save(tmp_path / "b.png", Image.new("L", (2, 2)))
    stored.write_arrays(tmp_path / "c.npz", a=np.ones(2))
    assert (tmp_path / "a.json").read_text() == "text" and not (tmp_path / "a.json").is_symlink()
    assert Image.open(tmp_path / "b.png").size == (2, 2) and not list(tmp_path.glob("*.partial"))


def test_directories_that_lead_out(tmp_path, outside):
    progress = readers.Progress(tmp_path)
    shutil.rmtree(tmp_path / "e/predictions")
    (tmp_path / "e/predictions").symlink_to(outside.parent)
    with pytest.raises(UserError, match="leads out of .* by a symbolic link"):
        evaluation_record.EvaluationRecord(tmp_path / "e", progress.facts, "stamp", ["a", "b", "b"])
    for name in "checkpoints", "tensorboard", "compiled":
        workdir = tmp_path / f"run {name}"
        workdir.mkdir()
        (workdir / name).symlink_to(outside.parent)
        with pytest.raises(UserError, match="leads out of .* by a symbolic link"):
            checkpoints.Checkpoints(workdir, {"a": 1})


def test_names_from_a_store(tmp_path, outside):
    """What a bucket lists is copied under its names."""
    from isnet_jax.datasets import store

    class Listed(type(Path())):
        names = ()

        def iterdir(self):
            return iter([Named(self / "x", name) for name in self.names])

        def stat(self):
            return type("Stat", (), {"length": 4})

    class Named(Listed):
        def __new__(cls, path, name):
            made = super().__new__(cls, path)
            made.listed = name
            return made

        @property
        def name(self):
            return self.listed

        def open(self, mode):
            return io.BytesIO(b"evil")

    for name in "../../outside/precious.txt", "..", str(outside), "":
        bucket = Listed(tmp_path / "bucket")
        bucket.names = (name,)
        with pytest.raises(UserError, match="leads out|cannot be reached"):
            store.fetch(bucket, epath.Path(tmp_path / "data/camvid/1.0.0"))
        assert not list((tmp_path / "data/camvid").iterdir())


def test_a_report_prepares_and_fetches_nothing(tmp_path, monkeypatch):
    """Which data an evaluation was of is for a stranger to say: what that names is read if it is there, no more."""
    from isnet_jax.datasets import store

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "local"))
    monkeypatch.setattr(store, "fetch", None)
    readers.Evaluations(tmp_path)
    path = tmp_path / "r/results.json"
    record = json.loads(path.read_text())
    for data_dir in str(tmp_path / "elsewhere"), "gs://bucket/data", None:
        record["config"]["data"] = {"name": "scenes", "data_dir": data_dir}
        path.write_text(json.dumps(record))
        assert "The data set scenes is not prepared in" in report.page(results.load(tmp_path / "r"))
    assert not (tmp_path / "elsewhere").exists() and not (tmp_path / "local").exists()


def test_no_text_of_an_evaluation_becomes_a_tag(tmp_path):
    readers.Evaluations(tmp_path)
    path = tmp_path / "r/results.json"
    record = json.loads(path.read_text())
    seen = []

    def spoil(value, where=()):
        if isinstance(value, dict):
            free = where[:1] in (("config",), ("run",)) and where[1:]  # names that nobody looks for
            return {
                HOSTILE + name if free and name != "backbone" else name: spoil(x, (*where, name))
                for name, x in value.items()
            }
        if isinstance(value, list):
            return [spoil(x, where) for x in value]
        kept = where in (("checkpoint",), ("setting", "mode"), ("config", "data", "name"))
        seen.extend([where] * isinstance(value, str))
        return f"{value}{HOSTILE}" if isinstance(value, str) and not kept else value

    path.write_text(json.dumps(spoil(record)))
    rows = [{"step": i, "loss/total": i, f"{HOSTILE}/miou": 0.1} for i in range(3)]
    (tmp_path / "w/metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = results.load(tmp_path / "r")
    page = report.page(found, found)
    assert len(seen) > 10 and page.count("alert(&#x27;x&#x27;)") > 20
    assert "<script" not in page and '"quoted"' not in page and "alert('x')" not in page


def test_names_do_not_command_the_terminal():
    text = command._paragraph(UserError("/data/\x1b[2J\x07evil\u202e\r.png is damaged.\nMend it."))
    assert text.isprintable() and "\\x1b[2J" in text and "\\u202e" in text and text.startswith("error: /data/")
