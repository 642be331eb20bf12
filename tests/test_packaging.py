"""What is installed, and what the pages on Python promise of it."""

import os
import re
import subprocess
import sys
import threading
import tomllib
import urllib.error
import urllib.request
import zipfile

import jax
import numpy as np
import pytest
from cases import REFERENCE, weights
from paths import ROOT
from PIL import Image

from isnet_jax import config, create_model
from isnet_jax.checkpoints.manager import save_variables


def lines_of(name):
    """Lines without comments and blank ones."""
    lines = (line.split("  #")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def test_requirements_are_the_declared_dependencies_for_training_and_pytest():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert lines_of("requirements.txt") == [
        *project["dependencies"],
        *project["optional-dependencies"]["train"],
        "pytest",
    ]


def test_constraints_pin_every_dependency():
    pinned = {re.split("==", line)[0].lower() for line in lines_of("constraints.txt")}
    for line in lines_of("requirements.txt"):
        name = re.match(r"[\w-]+", line)[0].lower().replace("_", "-")
        assert name in pinned or name == "tensorflow"  # tensorflow-cpu on the platforms that have it


def python_snippets():
    """Of docs/python.md: predicting, the server, and the network."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), flags=re.S)


def test_the_network_of_the_python_page_runs(monkeypatch):
    *_, snippet = python_snippets()
    monkeypatch.syspath_prepend(str(ROOT))
    names = {
        "state_dict": weights.state_dict(REFERENCE / "keys" / "resnet50_150.json", 0),
        "images": weights.image(33, 41).astype(np.float32),
    }
    exec(compile(snippet, "docs/python.md", "exec"), names)
    assert names["outputs"]["logits"].shape == names["outputs"]["stage1_logits"].shape == (1, 5, 6, 150)
    assert str(names["outputs"]["logits"].dtype) == "float32"


def test_the_predictions_and_the_server_of_the_python_page_run(tmp_path, monkeypatch, tiny_network, one_device):
    predict, server, _ = python_snippets()
    c = config.default("resnet18")
    c.model.num_classes, c.test.resize = 5, ()
    model = create_model(c.model)
    variables = jax.jit(lambda: model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32)))()
    save_variables(tmp_path / "runs/quickstart", c, jax.device_get(variables), "test")
    pixels = np.random.default_rng(0).integers(0, 256, (36, 44, 3), np.uint8)
    for name in ("photo.jpg", "a.jpg", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(predict, "docs/python.md", "exec"), names)
    assert names["mask"].shape == (36, 44) and names["scores"].shape == (36, 44, 5)
    assert names["classes"].shape == names["values"].shape == (36, 44, 3) and len(names["masks"]) == 2
    exec(compile(server.replace("8000", "0"), "docs/python.md", "exec"), names)
    threading.Thread(target=names["server"].serve_forever, daemon=True).start()
    url = f"http://localhost:{names['server'].server_port}"
    try:
        with urllib.request.urlopen(url, (tmp_path / "photo.jpg").read_bytes(), timeout=60) as response:
            np.testing.assert_array_equal(np.asarray(Image.open(response)), names["mask"])
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(url, b"no image", timeout=60)
    finally:
        names["server"].shutdown()
        names["server"].server_close()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What the wheel installs, in a folder outside the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    for name in ("pyproject.toml", "setup.py"):  # as they are here, committed or not
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def run_installed(installed, tmp_path, *args):
    """Runs Python with the installed package, from an empty folder: exit code, output, errors."""
    env = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, *args], cwd=tmp_path, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_wheel_holds_recipes_templates_and_types(installed):
    recipes = {path.stem for path in (installed / "isnet_jax/recipes").glob("*.py")}
    assert recipes == {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert (installed / "isnet_jax/py.typed").exists()
    for room in "evaluation", "evaluation/report", "training":
        folder = f"isnet_jax/{room}/templates"
        assert {path.name for path in (installed / folder).iterdir()} == {
            path.name for path in (ROOT / folder).iterdir()
        }
    [entry_points] = installed.glob("isnet_jax-*.dist-info/entry_points.txt")
    assert "isnet = isnet_jax.__main__:main" in entry_points.read_text()


def test_installed_recipes_are_found_by_name(installed, tmp_path):
    code = (
        "import isnet_jax; from isnet_jax.cli import load_config; print(isnet_jax.__file__);"
        "print(load_config('ade20k:resnet101').model.backbone)"
    )
    status, out, err = run_installed(installed, tmp_path, "-c", code)
    assert (status, out.split()) == (0, [str(installed / "isnet_jax/__init__.py"), "resnet101"]), err


@pytest.mark.parametrize(
    "args, status, message",
    [
        ((), 2, "COMMAND is missing"),
        (("trian",), 2, "there is no command 'trian'"),
        (("--help",), 0, "compile-check"),
        (("predict", "--help"), 0, "Predicts the class of every pixel"),
        (("compile-check", "--help"), 0, "Compiles a recipe"),
        (("train", "--config=ade20"), 1, "did you mean --config=ade20k?"),
        (("train", "--config", "lip:resnet1"), 1, "There is no backbone 'resnet1'"),
    ],
)
def test_one_command_runs_all(installed, tmp_path, args, status, message):
    found = run_installed(installed, tmp_path, "-m", "isnet_jax", *args)
    assert found[0] == status and message in " ".join("".join(found[1:]).split()), found


@pytest.mark.parametrize("library", ["tensorflow", "tensorflow_datasets", "optax"])
def test_what_trains_names_the_extra_that_it_needs(library, tmp_path):
    (tmp_path / f"{library}.py").write_text(f"raise ModuleNotFoundError('absent', name={library!r})")
    found = run_installed(f"{tmp_path}{os.pathsep}{ROOT}", tmp_path, "-m", "isnet_jax.main", "--config=quickstart")
    assert found[:2] == (1, "")
    assert " ".join(found[2].split()) == (
        f"error: This command needs {library}, which is not installed: pip install 'isnet_jax[train]'."
    )


def test_every_command_is_listed():
    from isnet_jax import __main__

    modules = {path.stem for path in (ROOT / "isnet_jax").glob("*.py") if "cli.run(" in path.read_text()} - {"cli"}
    listed = re.findall(r"^  ([a-z-]+)  ", __main__.__doc__, re.M)
    assert {__main__.MODULES.get(name, name) for name in listed} == modules
