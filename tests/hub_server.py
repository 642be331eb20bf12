"""A small Hugging Face Hub on this machine, which the real huggingface_hub talks to."""

import base64
import hashlib
import http.server
import json
import re
import threading
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

import pytest


class Hub(http.server.ThreadingHTTPServer):
    """Repositories by name, each {"private", "commits": [{file: content}], "refs": {name: index of a commit}}.

    `gated` is a repository that asks for access; `requests` are the (method, path) of everything asked; `code` answers
    every request with an error.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos, self.requests, self.gated, self.code = {}, [], None, None

    def commit(self, repo, **files):
        """Adds a commit with further files, a name's dots written as underscores."""
        files = {re.sub("_(?=[a-z]+$)", ".", name): content for name, content in files.items()}
        entry = self.repos.setdefault(repo, {"private": False, "commits": [], "refs": {}})
        entry["commits"].append({**(entry["commits"][-1] if entry["commits"] else {}), **files})
        entry["refs"]["main"] = len(entry["commits"]) - 1

    def files(self, repo):
        return self.repos[repo]["commits"][-1]


def commit_hash(repo, index):
    return hashlib.sha1(f"{repo} {index}".encode()).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        hub, path = self.server, urlsplit(self.path).path
        hub.requests.append((self.command, path))
        if hub.code:
            return self.answer(hub.code)
        if m := re.fullmatch("/api/models/([^/]+/[^/]+)", path):
            if m[1] not in hub.repos:
                return self.answer(404, error="RepoNotFound")
            return self.answer_json({"id": m[1], "sha": "0" * 40, "private": hub.repos[m[1]]["private"]})
        m = re.fullmatch("/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not m or m[1] not in hub.repos:
            return self.answer(404 if self.headers.get("Authorization") else 401, error="RepoNotFound")
        if m[1] == hub.gated:
            return self.answer(403, error="GatedRepo")
        repo, revision = hub.repos[m[1]], unquote(m[2])
        indices = {commit_hash(m[1], i): i for i in range(len(repo["commits"]))} | repo["refs"]
        if revision not in indices:
            return self.answer(404, error="RevisionNotFound")
        commit = {"X-Repo-Commit": commit_hash(m[1], indices[revision])}
        content = repo["commits"][indices[revision]].get(m[3])
        if content is None:
            return self.answer(404, error="EntryNotFound", headers=commit)
        etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        self.answer(200, content, commit | etag)

    do_HEAD = do_GET

    def do_POST(self):
        hub, path = self.server, urlsplit(self.path).path
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hub.requests.append((self.command, path))
        if hub.code:
            return self.answer(hub.code)
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted['organization']}/{wanted['name']}"
            if repo in hub.repos:
                return self.answer(409, json.dumps({"url": f"{hub.url}/{repo}"}).encode())
            private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            hub.repos[repo] = {"private": private, "commits": [{}], "refs": {"main": 0}}
            return self.answer_json({"url": f"{hub.url}/{repo}"})
        if path == "/api/validate-yaml":
            return self.answer_json({"errors": [], "warnings": []})
        repo, action = re.fullmatch("/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path).groups()
        if action == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer_json({"files": files})
        values = [line["value"] for line in map(json.loads, body.splitlines()) if line["key"] == "file"]
        commits = hub.repos[repo]["commits"]
        commits.append({**commits[-1], **{v["path"]: base64.b64decode(v["content"]) for v in values}})
        hub.repos[repo]["refs"]["main"] = len(commits) - 1
        oid = commit_hash(repo, len(commits) - 1)
        self.answer_json({"success": True, "commitUrl": f"{hub.url}/{repo}/commit/{oid}", "commitOid": oid})

    def answer_json(self, content):
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer(self, status, content=b"", headers=None, error=None):
        self.send_response(status)
        for name, value in ((headers or {}) | ({"X-Error-Code": error} if error else {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def local_hub(cache):
    """A Hub that huggingface_hub takes for the only one, with its cache in a folder and a token."""
    from huggingface_hub import constants

    with Hub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setenv("HF_TOKEN", "hf_test")
        threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield hub
        hub.shutdown()
