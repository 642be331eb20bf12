"""Trees that several modules prepare."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sample_trees
from data_sets import CAMVID_SPLITS, write_pair, write_palette_label
from PIL import Image


@pytest.fixture(scope="session")
def generated_samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated samples of all data sets."""
    root = tmp_path_factory.mktemp("samples")
    sample_trees.generate(root)
    return root


@pytest.fixture(params=["generated", "real"])
def samples(request: pytest.FixtureRequest) -> sample_trees.SampleTrees:
    """Samples of all data sets: generated ones, then real ones, which are skipped where there are none."""
    if request.param == "generated":
        return sample_trees.SampleTrees(request.getfixturevalue("generated_samples"), False)
    if not sample_trees.REAL.exists():
        pytest.skip(f"there are no real samples at {sample_trees.REAL}")
    return sample_trees.SampleTrees(sample_trees.REAL, True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A CamVid tree with one pair of 20 x 30 a split: a colour JPEG, a grey JPEG, a PNG."""
    rng = np.random.default_rng(0)
    for split, mode, suffix in zip(CAMVID_SPLITS, ("RGB", "L", "RGB"), (".jpg", ".JPG", ".png")):
        (tmp_path / "tree" / split / "images").mkdir(parents=True)
        (tmp_path / "tree" / split / "labels").mkdir()
        image = Image.fromarray(rng.integers(256, size=(20, 30, 3), dtype=np.uint8)).convert(mode)
        image.save(tmp_path / "tree" / split / f"images/a{suffix}")
        write_palette_label(tmp_path / "tree" / split / "labels/a.png", np.arange(600).reshape(20, 30) % 12)
    return tmp_path / "tree"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A CamVid tree without problems, with 4 pairs a split."""
    for split in CAMVID_SPLITS:
        for i in range(4):
            write_pair(tmp_path / "source", split, f"{split}{i}")
    return tmp_path / "source"


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pairs that are checked from now on, and not taken from the journal."""
    from isnet_jax.datasets.folder_builder import FolderBuilder

    names: list[str] = []
    check: Callable = FolderBuilder.check

    def spy(self, pair):
        names.append(pair.name)
        return check(self, pair)

    monkeypatch.setattr(FolderBuilder, "check", spy)
    return names
