"""A conversion in the test's process."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from data_sets import read_png
from small_run import run_inside, unwrapped


class Converted(NamedTuple):
    """What a conversion printed and wrote."""

    folder: Path
    stdout: str
    stderr: str

    def label(self, name: str) -> np.ndarray:
        """The label SPLIT/NAME."""
        return read_png(self.folder / "labels" / f"{name}.png")

    @property
    def names(self) -> list[str]:
        """SPLIT/NAME of all labels."""
        return sorted(str(path.relative_to(self.folder / "labels"))[:-4] for path in self.folder.glob("labels/*/*"))

    @property
    def config(self) -> Any:
        """What get_config of the written config returns."""
        return runpy.run_path(str(self.folder / "config.py"))["get_config"]("resnet18")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An empty folder for annotations."""
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def convert(tmp_path: Path, source: Path) -> Callable[..., Converted]:
    """Converts the annotations in `source` as the command does."""

    def run(kind: str) -> Converted:
        folder = tmp_path / "output"
        code, out, err = run_inside(f"--from={kind}", f"--source={source}", f"--output={folder}", module="prepare")
        assert code == 0, err
        return Converted(folder, out, err)

    return run


@pytest.fixture
def refuse(tmp_path: Path, source: Path) -> Callable[..., str]:
    """Tries to convert the annotations in `source`, and returns all that is said of them on one line."""

    def run(kind: str, output: Path | None = None) -> str:
        folder = output or tmp_path / "output"
        code, out, err = run_inside(f"--from={kind}", f"--source={source}", f"--output={folder}", module="prepare")
        assert (code, out) == (1, "") and "Traceback" not in err and not (folder / "config.py").exists(), err
        assert len(err.split("error:")[1].split("\n\n")) == 1
        return unwrapped(err)

    return run
