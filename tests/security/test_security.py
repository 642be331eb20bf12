"""Untrusted files run no code, and change no file outside the directories that the user names."""

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
from etils import epath
from paths import ROOT
from PIL import Image
from readers import Checkpoints, Evaluations, Prepared, Progress

from isnet_jax import datasets, errors
from isnet_jax.checkpoints import manager
from isnet_jax.errors import UserError
from isnet_jax.evaluation import pictures, record, results
from isnet_jax.evaluation.report.render import render
from isnet_jax.runtime import console, files

HOSTILE = "<script>alert('x')</script>&\"quoted\" onload=x \x1b[2J"
PACKAGE = ROOT / "isnet_jax"


@pytest.fixture
def outside(tmp_path):
    """A file that must stay as it is, alone in its directory."""
    path = tmp_path / "outside" / "precious.txt"
    path.parent.mkdir()
    path.write_text("precious")
    yield path
    assert path.read_text() == "precious" and [path] == list(path.parent.iterdir())


# Code


class Payload:
    """Makes a directory when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_load_variables_never_unpickles(tmp_path, monkeypatch):
    """Pickles take the place of each file of a checkpoint, and lie beside it under likely names."""
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoints(tmp_path)
    malicious = pickle.dumps({"params": Payload()})
    for path in list(checkpoint.intact):
        if path.name != "config.json":
            for name in "metadata.pkl", "checkpoint", "__init__.py", "_METADATA.pickle":
                (path.parent / name).write_bytes(malicious)
            with contextlib.suppress(UserError):
                checkpoint.read({**checkpoint.intact, path: malicious})
    assert not (tmp_path / "unpickled").exists()
    pickle.loads(malicious)  # the payload works: the test would have noticed
    assert (tmp_path / "unpickled").exists()


DANGEROUS = re.compile(
    r"(pickle|cPickle|_pickle|dill|cloudpickle|joblib|marshal|shelve|yaml|runpy|code|pdb|pty|ctypes|"
    r"subprocess|pickletools|scipy|multiprocessing|jinja2)\b|(builtins\.)?(eval|exec|compile|__import__)$|"
    r"os\.(system|popen|exec\w*|spawn\w*|posix_spawn\w*)$|importlib\.import_module$|"
    r"(np|numpy)\.(load|loadtxt|genfromtxt|fromfile|memmap)$|.*\.(loadmat|unsafe_load|full_load)$"
)
ALLOWED = {  # (module, name): why it runs nothing untrusted
    ("cli.py", "runpy"): "to run config files",
    ("cli.py", "runpy.run_path"): "a config is Python, written by the user",
    ("__init__.py", "importlib.import_module"): "of this package's own modules, by constant names",
    ("convert.py", "importlib.import_module"): "of this package's own modules, by constant names",
    ("datasets/__init__.py", "importlib.import_module"): "of this package's own modules, by names in its table CLASSES",
    ("training/trackers.py", "importlib.import_module"): "of wandb and mlflow, by constant names",
    ("exports/formats.py", "importlib.import_module"): "of libraries by constant names",
    ("__main__.py", "runpy"): "to run the commands of this package",
    ("__main__.py", "runpy.run_module"): "of this package's own modules, by names in its usage",
    ("runtime/pages.py", "jinja2"): "to lay out pages",
    ("runtime/pages.py", "jinja2.Environment"): "compiles this package's own templates alone",
    ("runtime/pages.py", "jinja2.PackageLoader"): "loads templates from this package alone",
    ("checkpoints/pth.py", "pickletools"): "to disassemble pickles",
    ("checkpoints/pth.py", "pickletools.genops"): "disassembles a pickle without running it",
    ("checkpoints/pth.py", "np.memmap"): "maps numbers, whatever the bytes",
}


def test_package_imports_and_calls_nothing_that_runs_files():
    """Whatever could run code is listed with the reason why it does not run untrusted code."""
    dangerous = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names] if not node.level else []
            elif isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
                names = [ast.unparse(node.func)]
                assert not any(keyword.arg == "shell" for keyword in node.keywords), path
                assert not any(
                    keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False" for keyword in node.keywords
                ), path
            module = path.relative_to(PACKAGE).as_posix()
            dangerous |= {(module, name) for name in names if DANGEROUS.match(name)}
    assert dangerous == set(ALLOWED)


# Paths


@pytest.mark.parametrize("name", ["../../outside/x", "/tmp/x", "a/b", "..", "", "a\0b", 7, None, ["a"]])
def test_load_refuses_example_names_that_lead_out(tmp_path, name):
    """They become names of files: predictions/NAME.png."""
    prepared = Prepared(tmp_path)
    (path,) = (path for path in prepared.intact if path.name == "metadata.json")
    content = json.loads(prepared.intact[path])
    content["examples"]["val"][1][0] = name
    path.write_text(json.dumps(content))
    for load in datasets.load, datasets.open_prepared:
        with pytest.raises(UserError, match="is not a complete data set folder"):
            load("folder", tmp_path / "data", folder=prepared.description)


@pytest.mark.parametrize("name", ["../../outside/precious", "/tmp/x", "..", ""])
def test_results_refuse_file_names_that_lead_out(tmp_path, name):
    evaluation = Evaluations(tmp_path)
    names, counts, boundary = files.read_arrays(tmp_path / "r/images.npz", "name", "counts", "boundary")
    for file_names in (["a", name], ["a", "a"]):
        files.write_arrays(
            tmp_path / "r/images.npz", name=names, file=np.array(file_names), counts=counts, boundary=boundary
        )
        with pytest.raises(UserError, match="(invalid|repeated) file names"):
            results.load(evaluation.folder / "r")


def test_writers_replace_links_and_do_not_follow_them(tmp_path, outside):
    """In a directory from an untrusted archive, any name that is written may be a link to anywhere."""
    for name in "a.json", "a.json.partial", "b.png", "b.png.partial", "c.npz.partial":
        (tmp_path / name).symlink_to(outside)
    files.atomic_write_text(tmp_path / "a.json", "text")
    pictures.save_image(tmp_path / "b.png", Image.new("L", (2, 2)))
    files.write_arrays(tmp_path / "c.npz", a=np.ones(2))
    assert (tmp_path / "a.json").read_text() == "text" and not (tmp_path / "a.json").is_symlink()
    assert Image.open(tmp_path / "b.png").size == (2, 2) and not list(tmp_path.glob("*.partial"))


def test_output_directories_that_are_links_are_refused(tmp_path, outside):
    progress = Progress(tmp_path)
    shutil.rmtree(tmp_path / "e/predictions")
    (tmp_path / "e/predictions").symlink_to(outside.parent)
    with pytest.raises(UserError, match="leads out of .* by a symbolic link"):
        record.EvaluationRecord(tmp_path / "e", progress.facts, "stamp", ["a", "b", "b"])
    for name in "checkpoints", "tensorboard", "compiled":
        workdir = tmp_path / f"run {name}"
        workdir.mkdir()
        (workdir / name).symlink_to(outside.parent)
        with pytest.raises(UserError, match="leads out of .* by a symbolic link"):
            manager.Checkpoints(workdir, {"a": 1})


def test_fetch_refuses_names_that_lead_out(tmp_path, outside):
    """Files of a bucket are copied under the names that the bucket lists."""
    from isnet_jax.datasets import store

    class Bucket(type(Path())):
        names = ()

        def iterdir(self):
            return iter([Entry(self / "x", name) for name in self.names])

        def stat(self):
            return type("Stat", (), {"length": 4})

    class Entry(Bucket):
        def __new__(cls, path, name):
            entry = super().__new__(cls, path)
            entry.listed_name = name
            return entry

        @property
        def name(self):
            return self.listed_name

        def open(self, mode):
            return io.BytesIO(b"evil")

    for name in "../../outside/precious.txt", "..", str(outside), "":
        bucket = Bucket(tmp_path / "bucket")
        bucket.names = (name,)
        with pytest.raises(UserError, match="leads out|cannot be reached"):
            store.fetch(bucket, epath.Path(tmp_path / "data/camvid/1.0.0"))
        assert not list((tmp_path / "data/camvid").iterdir())


# Reports and messages


def test_report_prepares_and_fetches_no_data(tmp_path, monkeypatch):
    """The data set that untrusted results name is read if it is there, and never prepared or fetched."""
    from isnet_jax.datasets import store

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "local"))
    monkeypatch.setattr(store, "fetch", None)
    Evaluations(tmp_path)
    path = tmp_path / "r/results.json"
    content = json.loads(path.read_text())
    for data_dir in str(tmp_path / "elsewhere"), "gs://bucket/data", None:
        content["config"]["data"] = {"name": "scenes", "data_dir": data_dir}
        path.write_text(json.dumps(content))
        assert "The data set scenes is not prepared in" in render(results.load(tmp_path / "r"))
    assert not (tmp_path / "elsewhere").exists() and not (tmp_path / "local").exists()


def test_report_escapes_every_text(tmp_path):
    """No text of an evaluation becomes markup, whatever it holds."""
    Evaluations(tmp_path)
    path = tmp_path / "r/results.json"
    changed = []

    def with_markup(value, where=()):
        if isinstance(value, dict):
            is_free = where[:1] in (("config",), ("run",)) and where[1:]  # names that nothing looks up
            return {
                HOSTILE + name if is_free and name != "backbone" else name: with_markup(x, (*where, name))
                for name, x in value.items()
            }
        if isinstance(value, list):
            return [with_markup(x, where) for x in value]
        keep = where in (("checkpoint",), ("setting", "mode"), ("config", "data", "name"))
        changed.extend([where] * isinstance(value, str))
        return f"{value}{HOSTILE}" if isinstance(value, str) and not keep else value

    path.write_text(json.dumps(with_markup(json.loads(path.read_text()))))
    rows = [{"step": i, "loss/total": i, f"{HOSTILE}/miou": 0.1} for i in range(3)]
    (tmp_path / "w/metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    loaded = results.load(tmp_path / "r")
    page = render(loaded, loaded)
    assert len(changed) > 10 and page.count("alert(&#39;x&#39;)") > 20
    assert page.count("<script") == 1 and '"quoted"' not in page and "alert('x')" not in page


def test_templates_mark_no_text_as_safe():
    """Autoescape covers whatever the templates lay out."""
    paths = [*PACKAGE.rglob("*.html"), *PACKAGE.rglob("*.py")]
    assert len([path for path in paths if path.suffix == ".html"]) > 5
    for path in paths:
        assert not re.search(r"\|\s*safe\b|autoescape (false|off)|autoescape=False|\bMarkup\b", path.read_text()), path


def test_messages_escape_terminal_sequences(capsys):
    text = errors.paragraph(UserError("/data/\x1b[2J\x07evil\u202e\r.png is damaged.\nMend it."))
    assert text.isprintable() and "\\x1b[2J" in text and "\\u202e" in text and text.startswith("error: /data/")
    console.say(f"class {HOSTILE}\nnext line")
    console.warn(f"class {HOSTILE}\nnext line")
    assert capsys.readouterr() == (f"class {HOSTILE}\nnext line\n".replace("\x1b", "\\x1b"),) * 2
