"""What is installed, and what README promises of it."""

import re
import tomllib

import numpy as np
from cases import REFERENCE, weights
from paths import ROOT


def lines_of(name):
    """Lines without comments and blank ones."""
    lines = (line.split("  #")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def test_requirements_are_the_declared_dependencies_and_pytest():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert lines_of("requirements.txt") == [*declared, "pytest"]


def test_constraints_pin_every_dependency():
    pinned = {re.split("==", line)[0].lower() for line in lines_of("constraints.txt")}
    for line in lines_of("requirements.txt"):
        name = re.match(r"[\w-]+", line)[0].lower().replace("_", "-")
        assert name in pinned or name == "tensorflow"  # tensorflow-cpu on the platforms that have it


def test_readme_python_snippet_runs(monkeypatch):
    [snippet] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    monkeypatch.syspath_prepend(str(ROOT))
    names = {
        "state_dict": weights.state_dict(REFERENCE / "keys" / "resnet50_150.json", 0),
        "images": weights.image(33, 41).astype(np.float32),
    }
    exec(compile(snippet, "README.md", "exec"), names)
    assert names["outputs"]["logits"].shape == names["outputs"]["stage1_logits"].shape == (1, 5, 6, 150)
    assert str(names["outputs"]["logits"].dtype) == "float32"
