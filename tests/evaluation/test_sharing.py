"""`isnet_jax.push_to_hub` and `isnet_jax.from_hub`, by the real huggingface_hub against a local server."""

import json

import numpy as np
import pytest
from cases import random_variables
from hub_server import local_hub

import isnet_jax
from isnet_jax import config as configs
from isnet_jax.checkpoints import hub
from isnet_jax.checkpoints.conversion import convert_checkpoint
from isnet_jax.checkpoints.manager import save_variables
from isnet_jax.checkpoints.pretrained import load_network
from isnet_jax.errors import UserError
from isnet_jax.evaluation import card
from isnet_jax.models.isnet import create_model

REPO = "owner/net"
NAMES = tuple("abcdefgh")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_network, one_device):
    c = configs.default("resnet18")
    c.model.num_classes, c.data.name, c.test.resize = len(NAMES), "folder", (64, 50)
    c.data.folder.name, c.data.folder.classes = "mine", NAMES
    c.data.folder.splits = {"train": ("i", "l"), "val": ("/secret/place/images", "/secret/place/labels")}
    c.data.source, c.data.data_dir, c.run.wandb = "/secret/source", "/secret/data", "secret-project"
    c.train.pretrained = "/secret/resnet18.pth"
    directory = tmp_path_factory.mktemp("checkpoint")
    save_variables(directory, c, random_variables(create_model(c.model)), "/secret/x.pth")
    return directory


@pytest.fixture
def server(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.delenv(hub.OFFLINE, raising=False)
    with local_hub(tmp_path / "cache") as server:
        yield server


def test_what_is_pushed_predicts_the_same_masks(checkpoint, server, tmp_path, capsys):
    """Bit for bit, whoever loads it and however; a new network starts from it, too."""
    url = isnet_jax.push_to_hub(checkpoint, REPO, license="mit")
    assert url.startswith(f"{server.url}/{REPO}/commit/") and url in capsys.readouterr().out
    assert (
        set(server.files(REPO)) == {"config.json", "model.safetensors", "README.md"} and server.repos[REPO]["private"]
    )
    image = np.random.default_rng(0).integers(0, 256, (36, 44, 3), np.uint8)
    expected = isnet_jax.load(checkpoint).predict(image)
    assert len(np.unique(expected)) > 1
    pushed = isnet_jax.from_hub(REPO)
    np.testing.assert_array_equal(pushed.predict(image), expected)
    assert pushed.classes == NAMES and pushed.config.test == isnet_jax.load(checkpoint).config.test
    model = pushed.model
    ours, path = load_network(checkpoint, model), hub.download(REPO)
    for tree in load_network(path, model), isnet_jax.load(f"hf://{REPO}@{path.name}")._variables:
        assert all(np.array_equal(a, b) for a, b in zip(*map(leaves, (ours, tree)), strict=True))
    c = pushed.config.copy_and_resolve_references()
    convert_checkpoint(c, f"hf://{REPO}", str(tmp_path / "again"))
    assert all(np.array_equal(a, b) for a, b in zip(leaves(ours), leaves(load_network(tmp_path / "again", model))))
    with pytest.raises(UserError, match="holds no moving averages; leave out --ema"):
        isnet_jax.load(f"hf://{REPO}", ema=True)


def leaves(tree):
    import jax

    return jax.tree.leaves(tree)


def test_nothing_of_this_machine_is_pushed(checkpoint, server):
    isnet_jax.push_to_hub(checkpoint, REPO, private=False)
    files = server.files(REPO)
    assert not server.repos[REPO]["private"]
    for name in "config.json", "README.md":
        assert b"secret" not in files[name] and str(checkpoint.parent).encode() not in files[name], name
    facts = json.loads(files["config.json"])
    assert facts["data"]["folder"]["splits"] == {"train": ["i", "l"], "val": ["images", "labels"]}
    assert f'isnet_jax.from_hub("{REPO}")'.encode() in files["README.md"] and card.is_untouched(
        files["README.md"].decode()
    )


def test_a_card_that_was_changed_on_the_hub_stays(checkpoint, server, capsys):
    isnet_jax.push_to_hub(checkpoint, REPO)
    isnet_jax.push_to_hub(checkpoint, REPO, license="mit")
    assert b"\nlicense: mit\n" in server.files(REPO)["README.md"]  # ours is replaced
    changed = server.files(REPO)["README.md"] + b"See our paper.\n"
    server.commit(REPO, README_md=changed)
    isnet_jax.push_to_hub(checkpoint, REPO)
    assert server.files(REPO)["README.md"] == changed
    assert f"README.md of {REPO} was changed by hand, and is kept" in capsys.readouterr().out


def test_what_cannot_be_pushed_is_refused_before_any_request(checkpoint, server, tmp_path):
    for arguments, options, message in (
        ((tmp_path / "m.onnx", REPO), {}, "push the checkpoint that it was made from"),
        ((tmp_path / "none.pth", REPO), {}, "does not exist"),
        ((checkpoint, "net"), {}, "write OWNER/NAME"),
        ((checkpoint, REPO), {"license": "My own"}, "no identifier"),
        ((checkpoint, REPO), {"best": True}, "holds no best checkpoint|one checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            isnet_jax.push_to_hub(*arguments, **options)
    assert not server.requests


def test_hostile_repositories_are_refused(checkpoint, server):
    """Pickles are not even downloaded; what is damaged is named."""
    isnet_jax.push_to_hub(checkpoint, REPO)
    intact = server.files(REPO)
    for name, content in (
        ("config_json", b"[]"),
        ("config_json", b'{"model": {"backbone": "x"}}'),
        ("model_safetensors", b"\x80\x04"),
        ("model_safetensors", intact["model.safetensors"][:-9]),
    ):
        server.commit(REPO, **{"config_json": intact["config.json"], "model_safetensors": intact["model.safetensors"]})
        server.commit(REPO, **{name: content}, pytorch_model_bin=b"pickle")
        with pytest.raises(UserError):
            isnet_jax.from_hub(REPO)
    assert not any("pytorch_model" in path for _, path in server.requests)
