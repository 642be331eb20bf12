"""Tests of checkpoints.downloads against a local server: cached, continued, verified, refused."""

import hashlib
import http.server
import os
import re
import threading

import pytest

from isnet_jax.checkpoints import downloads
from isnet_jax.errors import UserError

CONTENT = os.urandom(100_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; `requests` are the headers Range that it saw. `cut` ends each response after so many bytes."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.cut, self.knows_ranges, self.code = [], None, True, 200
        self.url = f"http://127.0.0.1:{self.server_port}/w.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append(wanted)
        if server.code != 200:
            return self.send_error(server.code)
        start = int(wanted[6:-1]) if wanted and server.knows_ranges else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:][: server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of the weights `known`, with a checksum, and `unknown`, without; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(downloads.OFFLINE, raising=False)
    with Server() as server:
        sources = {
            "known": downloads.Source(server.url, SHA256),
            "prefix": downloads.Source(server.url, SHA256[:8]),
            "unknown": downloads.Source(server.url),
            "other": downloads.Source(server.url, "0" * 64),
        }
        monkeypatch.setattr(downloads, "WEIGHTS", sources)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("name", ["known", "prefix", "unknown"])
def test_locate_downloads_once(server, capsys, name):
    path = downloads.locate(name, "--checkpoint")
    assert path == downloads.cache_directory() / "w.pth" and path.read_bytes() == CONTENT
    assert f"downloading {name}: {server.url}" in (out := capsys.readouterr().out)
    assert (SHA256 in out) == (name == "unknown")
    assert downloads.locate(name, "--checkpoint") == path and server.requests == [None]
    assert capsys.readouterr().out == ""


def test_locate_continues_an_interrupted_download(server):
    """Within a command, and in a later one."""
    server.cut = 40_000
    assert downloads.locate("known", "--checkpoint").read_bytes() == CONTENT
    assert server.requests == [None, "bytes=40000-", "bytes=80000-"]
    (downloads.cache_directory() / "w.pth").unlink()
    server.cut, server.requests = 10_000, []
    with pytest.raises(UserError, match="the connection ended .*Run the command again to continue"):
        downloads.locate("known", "--checkpoint")
    server.cut = None
    assert downloads.locate("known", "--checkpoint").read_bytes() == CONTENT
    assert server.requests[-1] == "bytes=30000-"


def test_locate_starts_over_where_the_server_knows_no_ranges(server):
    server.cut = 40_000
    server.knows_ranges = False
    with pytest.raises(UserError):
        downloads.locate("known", "--checkpoint")
    server.cut = None
    assert downloads.locate("known", "--checkpoint").read_bytes() == CONTENT


@pytest.mark.parametrize("size, requests", [(100_000, ["bytes=100000-"]), (100_007, ["bytes=100007-", None])])
def test_locate_takes_a_complete_part_and_replaces_a_longer_one(server, size, requests):
    downloads.cache_directory().mkdir(parents=True)
    (downloads.cache_directory() / "w.pth.partial").write_bytes((CONTENT + bytes(7))[:size])
    assert downloads.locate("known", "--checkpoint").read_bytes() == CONTENT
    assert server.requests == requests


def test_locate_refuses_another_file(server):
    with pytest.raises(UserError, match=f"its SHA-256 is {SHA256}, not 0000"):
        downloads.locate("other", "--checkpoint")
    assert [path.name for path in downloads.cache_directory().iterdir()] == ["w.pth.lock"]
    path = downloads.locate("known", "--checkpoint")
    path.write_bytes(b"changed")
    with pytest.raises(UserError, match=f"{path} is not {server.url}.*Delete it"):
        downloads.locate("known", "--checkpoint")


def test_locate_refuses_a_file_beyond_the_limit(server, monkeypatch):
    monkeypatch.setattr(downloads, "MAX_BYTES", 99_999)
    with pytest.raises(UserError, match="more than any published weights"):
        downloads.locate("known", "--checkpoint")


def test_locate_reports_what_the_server_answers(server):
    server.code = 404
    with pytest.raises(UserError, match=f"404.*download {server.url} on another machine, and copy it to .*w.pth"):
        downloads.locate("known", "--checkpoint")
    assert len(server.requests) == 1  # a refusal is final
    server.code = 503
    with pytest.raises(UserError, match="503"):
        downloads.locate("known", "--checkpoint")
    assert len(server.requests) == 1 + downloads.ATTEMPTS


def test_locate_offline_uses_the_cache_alone(server, monkeypatch):
    monkeypatch.setenv(downloads.OFFLINE, "1")
    with pytest.raises(UserError, match=f"{downloads.OFFLINE} forbids downloads: download {server.url}"):
        downloads.locate("known", "--checkpoint")
    assert not server.requests
    downloads.cache_directory().mkdir(parents=True)
    (downloads.cache_directory() / "w.pth").write_bytes(CONTENT)
    assert downloads.locate("known", "--checkpoint").read_bytes() == CONTENT


def test_locate_waits_for_another_process(server, capsys):
    """The lock is of the open file, so that two threads contend as two processes do."""
    path = downloads.cache_directory() / "w.pth"
    path.parent.mkdir(parents=True)
    with downloads._lock(path):
        other = threading.Thread(target=downloads.locate, args=("known", "--checkpoint"))
        other.start()
        other.join(0.2)
        assert other.is_alive() and not server.requests
        path.write_bytes(CONTENT)  # as the first does
    other.join(10)
    assert not server.requests and "waiting for another process" in capsys.readouterr().out


def test_locate_of_several_processes_downloads_in_turns(server, monkeypatch):
    """The others ask once the first is done, and fail with it."""
    outcomes = []
    monkeypatch.setattr(downloads.distributed, "is_first", lambda: False)
    monkeypatch.setattr(
        downloads.distributed, "all_processes", lambda ok: outcomes.append((ok, len(server.requests))) or ok
    )
    downloads.locate("known", "--checkpoint")
    assert outcomes == [(True, 0), (True, 0), (True, 1)]
    answers = iter([True, False])
    monkeypatch.setattr(downloads.distributed, "all_processes", lambda ok: next(answers))
    with pytest.raises(UserError, match="Another process of this run could not download known"):
        downloads.locate("known", "--checkpoint")


def test_paths_go_before_names(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "known").write_text("")
    for path in "known", "./unknown", "missing.pth", tmp_path:
        assert downloads.locate(path, "--checkpoint") == type(tmp_path)(path)
    with pytest.raises(UserError, match="--checkpoint=resnet5 does not exist.*known, prefix, unknown"):
        downloads.locate("resnet5", "--checkpoint")


def test_published_weights_are_named_consistently():
    """Checksums are those in the names of the files; ISNets are named as the published table is."""
    for name, source in downloads.WEIGHTS.items():
        assert source.url.startswith("https://")
        if digits := re.search(r"-([0-9a-f]{8})\.pth$", source.url):
            assert source.sha256.startswith(digits[1]), name
        else:
            assert name.startswith("isnet-") and not source.sha256
    assert downloads.WEIGHTS["isnet-coco_stuff10k-resnest101"].url.endswith("/isnet_resnest101os8_cocostuff10k.pth")
