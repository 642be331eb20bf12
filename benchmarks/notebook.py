"""Runs docs/your_images.ipynb in an empty folder and stores what it prints and shows.

usage: python -m benchmarks.notebook
"""

import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from benchmarks.paths import ROOT
from isnet_jax.runtime.files import atomic_write_text

NOTEBOOK = ROOT / "docs/your_images.ipynb"


def executed(path: Path, folder: Path) -> NotebookNode:
    """The notebook at `path` with the outputs of its cells, run from `folder` by this interpreter and its `isnet`.

    Outputs do not name `folder`. Raises nbclient.exceptions.CellExecutionError if a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=None,
        startup_timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,  # a progress bar is its last state
    )
    client.execute(env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"})
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for output in outputs_of(notebook):
        if output.output_type == "stream":
            output.text = as_left_on_screen(output.text).replace(f"{folder}/", "")
    return notebook


def outputs_of(notebook: NotebookNode) -> list[NotebookNode]:
    """The outputs of all code cells, in order."""
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def as_left_on_screen(text: str) -> str:
    """Lines without terminal escapes, and without the blanks and empty lines that progress bars leave."""
    lines = (line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).splitlines())
    return "\n".join(filter(None, lines)) + "\n"


def main() -> None:
    """Runs the command."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = executed(NOTEBOOK, Path(folder))
    atomic_write_text(NOTEBOOK, nbformat.writes(notebook) + "\n")


if __name__ == "__main__":
    main()
