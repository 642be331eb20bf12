"""docs/your_images.ipynb: what is committed is what its cells print and show."""

import base64
import re
import shutil
import sys
from pathlib import Path

import pytest
from paths import ROOT

nbformat = pytest.importorskip("nbformat", reason="nbformat is missing: pip install nbclient ipykernel")
MAX_PICTURE_BYTES = 300_000


@pytest.fixture(scope="module")
def tool():
    """The module that runs the notebook."""
    pytest.importorskip("nbclient", reason="nbclient is missing: pip install nbclient ipykernel")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        from benchmarks import notebook

        yield notebook


def texts(notebook):
    """What each code cell printed."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]


def test_committed_outputs_are_of_one_run_without_complaints(tool):
    notebook = nbformat.read(tool.NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run python -m benchmarks.notebook"
    outputs = tool.outputs_of(notebook)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    printed = "\n".join(texts(notebook))
    assert not re.search(r"(?<![\w.])/\w|warning|error|\x1b|\r", printed, re.I), "paths of a machine, or complaints"
    pictures = [output.data["image/jpeg"] for output in outputs if "image/jpeg" in output.get("data", {})]
    assert len(pictures) == 3 and sum(len(base64.b64decode(data)) for data in pictures) < MAX_PICTURE_BYTES


@pytest.mark.slow
def test_notebook_runs_and_prints_the_committed_words(tool, tmp_path, monkeypatch):
    if not shutil.which("isnet", path=Path(sys.executable).parent):
        pytest.skip("isnet is not installed: pip install -e .[dev]")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    found = texts(tool.executed(tool.NOTEBOOK, tmp_path))
    committed = texts(nbformat.read(tool.NOTEBOOK, as_version=4))

    def words(text):  # numbers depend on the processor
        return re.findall(r"[^\W\d_]+", text)

    assert [words(text) for text in found] == [words(text) for text in committed]
