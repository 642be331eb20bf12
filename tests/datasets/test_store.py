"""A remote data_dir, for which a local folder stands in."""

import shutil

import pytest
from data_sets import contents, write_pair

from isnet_jax import datasets
from isnet_jax.errors import UserError


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A folder in the role of a bucket; its local copy is tmp_path / "local"."""
    from isnet_jax.datasets import store

    monkeypatch.setattr(store, "is_remote", lambda data_dir: str(data_dir).startswith(str(tmp_path / "bucket")))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "local"))
    return tmp_path / "bucket"


def test_load_sends_to_the_store_and_fetches_from_it(source, tmp_path, remote, checked):
    with pytest.raises(UserError, match=f"not prepared in {remote}/camvid"):
        datasets.load("camvid", remote)
    datasets.load("camvid", remote, source)
    assert contents(remote) == contents(tmp_path / "local")
    shutil.rmtree(tmp_path / "local")
    checked.clear()
    builder = datasets.load("camvid", remote)
    assert builder.data_path == tmp_path / "local/camvid/1.0.0" and not checked
    assert contents(remote) == contents(tmp_path / "local")
    datasets.load("camvid", remote, source)
    assert not checked


def test_interrupted_copies_are_not_used(source, tmp_path, remote, monkeypatch):
    from isnet_jax.datasets import store

    def copy_in_part(source, target, title, copy=store._copy):
        copy(source, target, title)
        next(target.glob("dataset_info.json")).unlink()
        next(target.glob("*val*")).unlink()
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_copy", copy_in_part)
        with pytest.raises(UserError, match="cannot be reached .gone"):
            datasets.load("camvid", remote, source)
        with pytest.raises(UserError, match="not prepared in"):
            datasets.load("camvid", remote)
    datasets.load("camvid", remote, source)  # sends it again
    assert contents(remote) == contents(tmp_path / "local")

    shutil.rmtree(tmp_path / "local")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot be reached .gone"):
        patch.setattr(store, "_copy", copy_in_part)
        datasets.load("camvid", remote)
    assert not contents(tmp_path / "local")
    datasets.load("camvid", remote)
    assert contents(remote) == contents(tmp_path / "local")


def test_load_refuses_a_local_copy_of_other_data(source, tmp_path, remote):
    datasets.load("camvid", remote, source)
    shutil.rmtree(tmp_path / "local")
    shutil.rmtree(source / "train")
    write_pair(source, "train", "other")
    datasets.load("camvid", None, source)
    with pytest.raises(UserError, match=f"the local copy of {remote}/camvid/1.0.0, holds another data set than"):
        datasets.load("camvid", remote)


def test_load_reports_an_unreachable_store(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="nowhere://bucket/.* cannot be reached"):
        datasets.load("scenes", "nowhere://bucket/data")
