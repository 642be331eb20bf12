"""Tests of checkpoints.hub: the real huggingface_hub against a local server."""

import sys

import pytest
from hub_server import commit_hash, local_hub

from isnet_jax.checkpoints import downloads, hub
from isnet_jax.errors import UserError

REPO = "owner/net"
FILES = {"config_json": b"{}", "model_safetensors": b"weights"}


@pytest.fixture
def server(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.delenv(hub.OFFLINE, raising=False)
    with local_hub(tmp_path / "cache") as server:
        server.commit(REPO, **FILES, evil_py=b"print()", pytorch_model_bin=b"pickle")
        yield server


def locate(name=f"hf://{REPO}"):
    return downloads.locate(name, "--checkpoint")


def test_locate_downloads_the_two_files_alone_and_once(server):
    path = locate()
    assert path.name == commit_hash(REPO, 0)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == {
        "config.json": b"{}",
        "model.safetensors": b"weights",
    }
    server.requests.clear()
    assert locate() == locate(f"hf://{REPO}@{path.name}") == path
    assert "GET" not in [method for method, _ in server.requests]


def test_revisions_are_branches_and_commits(server):
    old = locate()
    server.commit(REPO, model_safetensors=b"other")
    assert (locate() / "model.safetensors").read_bytes() == b"other" != (old / "model.safetensors").read_bytes()
    assert locate(f"hf://{REPO}@{old.name}") == old


@pytest.mark.parametrize("variable", ["ISNET_JAX_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_uses_the_cache_alone(server, monkeypatch, variable):
    from huggingface_hub import constants

    def go_offline():
        monkeypatch.setenv(variable, "1")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", variable == "HF_HUB_OFFLINE")  # which it reads once

    go_offline()
    with pytest.raises(
        UserError, match="hf://owner/net is not in the Hub's cache, and ISNET_JAX_OFFLINE or HF_HUB_OFF"
    ):
        locate()
    monkeypatch.delenv(variable)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    path = locate()
    go_offline()
    server.requests.clear()
    assert locate() == path and not server.requests


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("hf://owner/nothing", {}, "hf://owner/nothing does not exist, or is private: .*hf auth login"),
        (f"hf://{REPO}@v9", {}, "@v9 does not exist: the repository has no such branch"),
        (f"hf://{REPO}", {"gated": REPO}, "is gated: ask for access"),
        ("hf://owner/other", {}, "holds no config.json and model.safetensors, so isnet_jax.push_to_hub did not write"),
        (f"hf://{REPO}", {"code": 403}, "The Hub refuses access to hf://owner/net .*403"),
        (f"hf://{REPO}", {"code": 418}, "The Hub failed at hf://owner/net .*418"),
        ("hf://net", {}, "--checkpoint=hf://net is no repository of the Hub; write hf://OWNER/NAME"),
        (f"hf://{REPO}@", {}, "is no repository"),
        ("hf://../..", {}, "is no repository"),
    ],
)
def test_errors_are_one_paragraph(server, name, change, message):
    server.commit("owner/other", pytorch_model_bin=b"")
    vars(server).update(change)
    with pytest.raises(UserError, match=message) as error:
        locate(name)
    assert "\n" not in str(error.value)


def test_unreachable_hub_is_named(server, monkeypatch):
    server.server_close()
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the library's attempts
    with pytest.raises(UserError, match="hf://owner/net .*[Cc]heck the connection"):
        locate()


def test_large_files_are_refused_before_the_download(server, monkeypatch):
    monkeypatch.setitem(hub.MAX_BYTES, "model.safetensors", 6)
    with pytest.raises(UserError, match="model.safetensors of hf://owner/net has 7 bytes, but may have at most 6"):
        locate()
    assert ("GET", f"/{REPO}/resolve/main/model.safetensors") not in server.requests


def test_processes_must_have_the_same_commit(server, monkeypatch):
    monkeypatch.setattr(downloads.distributed, "broadcast_from_first", lambda commit: commit + 1)
    with pytest.raises(
        UserError, match="changed while .*name a commit, as in --checkpoint=hf://owner/net@[0-9a-f]{40}"
    ):
        locate()


def test_create_respects_what_exists(server):
    hub.create("owner/new")
    assert server.repos["owner/new"]["private"]
    hub.create(REPO)
    assert not server.repos[REPO]["private"]
    with pytest.raises(UserError, match="exists, and is public: .*Nothing was uploaded"):
        hub.create(REPO, private=True)
    with pytest.raises(UserError, match="'net' is no repository of the Hub; write OWNER/NAME"):
        hub.create("net")


def test_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="needs huggingface_hub, .*pip install 'isnet_jax.hub.'"):
        locate()
