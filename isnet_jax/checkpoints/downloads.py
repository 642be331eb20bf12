"""Published weights by name: where they are, and a copy of each in the user's cache."""

import contextlib
import fcntl
import functools
import http.client
import os
import re
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tqdm

from isnet_jax.checkpoints import hub
from isnet_jax.checkpoints.hub import OFFLINE
from isnet_jax.errors import UserError
from isnet_jax.runtime import distributed, files
from isnet_jax.runtime.console import say

MAX_BYTES = 2**31  # of a file; the largest, of ResNeSt-200, has about 280 MB
ATTEMPTS, TIMEOUT_SECONDS = 3, 30
CHUNK_BYTES = 2**20


class Source(NamedTuple):
    """A file on the web; `sha256` is "" where it is unknown, or its first digits where the publisher gives no more."""

    url: str
    sha256: str = ""


_OPENMMLAB = "https://download.openmmlab.com/pretrain/third_party/"  # from which the official code starts
_TIMM = "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-weights/"
_TORCHVISION = "https://download.pytorch.org/models/"
_ISNET = "https://github.com/SegmentationBLWX/modelstore/releases/download/ssseg_isnet/"

WEIGHTS = {
    "resnet18c": Source(_OPENMMLAB + "resnet18_v1c-b5776b93.pth", "b5776b93"),
    "resnet50c": Source(_OPENMMLAB + "resnet50_v1c-2cccc1ad.pth", "2cccc1ad"),
    "resnet101c": Source(_OPENMMLAB + "resnet101_v1c-e67eebb6.pth", "e67eebb6"),
    "resnest50": Source(_OPENMMLAB + "resnest50_d2-7497a55b.pth", "7497a55b"),
    "resnest101": Source(_OPENMMLAB + "resnest101_d2-f3b931b2.pth", "f3b931b2"),
    "resnest200": Source(_OPENMMLAB + "resnest200_d2-ca88e41f.pth", "ca88e41f"),
    "resnet50d": Source(_TIMM + "resnet50d_ra2-464e36ba.pth", "464e36ba"),
    "resnet101d": Source(_TIMM + "resnet101d_ra2-2803ffab.pth", "2803ffab"),
    "resnet50b": Source(
        _TORCHVISION + "resnet50-19c8e357.pth", "19c8e3572231adff6824a2da93fd67b5986919a2e65f8b6007eab4edee220097"
    ),
    "resnet101b": Source(_TORCHVISION + "resnet101-63fe2227.pth", "63fe2227"),
    **{
        f"isnet-{data}-{backbone}": Source(f"{_ISNET}isnet_{backbone}os8_{data.replace('_', '')}.pth")
        for data in ("ade20k", "cityscapes", "coco_stuff10k", "lip")
        for backbone in ("resnet50", "resnet101", "resnest101")
    },
}


def locate(checkpoint: str | os.PathLike, flag: str) -> Path:
    """The path of a checkpoint given by its path, or by its name, which is downloaded unless it is cached.

    A name is one in WEIGHTS, or hf://OWNER/NAME[@REVISION] of the Hugging Face Hub, whose path is a directory.

    A path that exists goes before a name. Of several processes the first downloads; the others then find the file, or
    download it to disks of their own. Raises UserError, which says that `flag` gives the checkpoint, if that fails, and
    for what can only be a mistyped name.
    """
    name = os.fspath(checkpoint)
    if name.startswith(hub.PREFIX):
        return _locate_on_hub(name, flag)
    if name not in WEIGHTS:
        if os.path.exists(name) or re.search(r"[/.]|^$", name):
            return Path(name)
        raise UserError(
            f"{flag}={name} does not exist. Give a path, hf://OWNER/NAME, or the name of a published checkpoint: "
            f"{', '.join(WEIGHTS)}."
        )
    if not distributed.all_processes(not os.path.exists(name)):
        return Path(name)
    path = cache_directory() / WEIGHTS[name].url.rpartition("/")[2]
    _in_turns(name, functools.partial(_obtain, name, path))
    return path


def _locate_on_hub(name: str, flag: str) -> Path:
    repo_id, revision = hub.parse(name, flag)
    path = _in_turns(name, functools.partial(hub.download, repo_id, revision))
    commit = zlib.crc32(path.name.encode()) >> 1
    if not distributed.all_processes(distributed.broadcast_from_first(commit) == commit):
        raise UserError(
            f"{name} changed while the processes of this run downloaded it. Run the command again, or name a commit, "
            f"as in {flag}={hub.PREFIX}{repo_id}@{path.name}."
        )
    return path


def _in_turns(name: str, obtain: Callable[[], Any]) -> Any:
    """What `obtain` returns; the first process calls it before the others. Raises UserError if it does in one."""
    result, failure = None, None
    for is_turn in distributed.is_first(), not distributed.is_first():
        if is_turn:
            try:
                result = obtain()
            except UserError as error:
                failure = error
        if not distributed.all_processes(failure is None):
            raise failure or UserError(f"Another process of this run could not download {name}; its message says why.")
    return result


def cache_directory() -> Path:
    """The directory of downloaded weights, which may not exist; raises UserError for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isnet_jax" / "weights"
    except RuntimeError:
        raise UserError("There is no home directory for downloads; set XDG_CACHE_HOME to a directory.") from None


def _obtain(name: str, path: Path) -> None:
    """Downloads what WEIGHTS calls `name` to `path`, unless it is there; raises UserError."""
    source = WEIGHTS[name]
    by_hand = f"download {source.url} on another machine, and copy it to {path}"
    if not path.exists():
        if hub.is_offline():
            raise UserError(f"{name} is not in the cache, and {OFFLINE} forbids downloads: {by_hand}.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _lock(path):
                if not path.exists():  # another process may have been faster
                    say(f"downloading {name}: {source.url} -> {path}")
                    _download(source, path)
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if type(error) is urllib.error.URLError else error
            raise UserError(
                f"{name} cannot be downloaded ({reason}). Run the command again to continue, or {by_hand}."
            ) from None
    elif not files.sha256(path).startswith(source.sha256):
        raise UserError(f"{path} is not {source.url}: its SHA-256 is not {source.sha256}. Delete it, and run again.")


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds a lock that only one process of this host, or of a shared file system, has for `path`."""
    with open(f"{path}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that downloads {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # file systems without locks
            pass
        yield


def _download(source: Source, path: Path) -> None:
    """Downloads and verifies a file; what arrives before an interruption is kept, and continued.

    Raises OSError or HTTPException.
    """
    partial = path.with_name(f"{path.name}.partial")
    for attempt in range(ATTEMPTS):
        try:
            _continue(source.url, partial)
            break
        except (OSError, http.client.HTTPException) as error:
            is_refusal = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if is_refusal or attempt == ATTEMPTS - 1:
                raise
    digest = files.sha256(partial)
    if not digest.startswith(source.sha256):
        partial.unlink()
        raise OSError(f"its SHA-256 is {digest}, not {source.sha256}: it is damaged, or another file")
    partial.replace(path)
    if not source.sha256:
        say(f"{path} has the SHA-256 {digest}; none was published to compare it with")


def _continue(url: str, partial: Path) -> None:
    """Downloads what is missing of the file `partial`; raises OSError or HTTPException if not all of it comes."""
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "isnet_jax"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers.get("Content-Range") != f"bytes */{start}":  # or it is complete
            partial.unlink()
            raise OSError("the server holds another file than the one begun") from None
        return
    with response:
        if url.startswith("https:") and not response.url.startswith("https:"):
            raise OSError(f"the server leads to {response.url}, which is not encrypted")
        is_rest = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        start = start if is_rest else 0  # servers may ignore Range, and send the whole file
        length = response.headers.get("Content-Length")
        if not length:
            raise OSError("the server does not say how long the file is")
        _store(response, partial, start, start + int(length))


def _store(response: http.client.HTTPResponse, partial: Path, start: int, total: int) -> None:
    """Writes a response to `partial` from byte `start` on; raises OSError unless it then has `total` bytes."""
    if total > MAX_BYTES:
        raise OSError(f"it has {total / 1e9:.1f} GB, more than any published weights")
    with (
        open(partial, "ab" if start else "wb") as file,
        tqdm.tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=partial.stem, disable=None) as bar,
    ):
        while start < total and (chunk := response.read(min(CHUNK_BYTES, total - start))):
            file.write(chunk)
            start += len(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if start < total:
        raise OSError(f"the connection ended after {start / 1e6:.0f} of {total / 1e6:.0f} MB")
