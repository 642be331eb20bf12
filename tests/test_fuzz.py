"""Whatever bytes a reader is given, it reads them or raises a UserError: quickly, in little memory, touching nothing.

Each reader of `readers.py` gets thousands of damaged files in a process of its own, which is watched.
"""

import contextlib
import faulthandler
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pytest
import readers

from isnet_jax import limits
from isnet_jax.errors import UserError

ROOT = Path(__file__).parents[1]
SECONDS, MEGABYTES = 5, 250  # for one file, and for all of them together
PIXELS = 10**6  # taken for MAX_PIXELS here, so that what is within the bounds is quick
QUICK = dict(
    Photographs=700,
    DataImages=500,
    DataLabels=700,
    Records=500,
    Matrices=500,
    RecordedConfigs=150,
    CommandLines=150,
    Evaluations=400,
    Journals=400,
    Progress=300,
    Prepared=40,
    Checkpoints=20,
    PthZip=500,
    PthLegacy=500,
)
SLOW = {**dict.fromkeys(QUICK, 10_000), "Checkpoints": 1_000}
FORBIDDEN = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.spawn",
    "pty.spawn",
    "pickle.",
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "urllib.",
    "ftplib.",
    "http.",
)
CHANGES = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.truncate",
    "shutil.",
)


class Guard:
    """Notes what is done that no reader needs: programs, networks, pickles, and files changed outside a folder."""

    def __init__(self, folder, runs):
        """runs: names of files in the folder that may be run."""
        self.folder, self.seen, self.active = str(folder), [], False
        self.runnable = sys.prefix, sys.base_prefix, str(ROOT), "<", *(f"{folder}/{name}" for name in runs)
        sys.addaudithook(self._hear)

    def _hear(self, event, args):
        if not self.active:
            return
        if event.startswith(FORBIDDEN) or event == "exec" and not args[0].co_filename.startswith(self.runnable):
            self.seen.append((event, str(args)[:200]))
        elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self._outside(event, args[0])
        elif event.startswith(CHANGES):
            for path in args[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
                self._outside(event, path)

    def _outside(self, event, path):
        if isinstance(path, (str, bytes, os.PathLike)):
            path = os.path.realpath(os.fsdecode(path))
            if not path.startswith(self.folder + "/") and path != os.devnull and "__pycache__" not in path:
                self.seen.append((event, path))


def fuzz(name, count, folder):
    """Feeds a reader; returns what came of it."""
    reader = readers.READERS[name](folder)
    for content in reader.sound():  # which imports what there is to import
        with contextlib.suppress(UserError):
            reader.read(content)
    tempfile.tempdir = str(folder)
    guard, result = Guard(folder, reader.runs), {"read": 0, "refused": 0, "slowest": 0.0}
    before = megabytes()
    for number in range(count):
        content = reader.mutant(random.Random(f"{name} {number}"))
        faulthandler.dump_traceback_later(6 * SECONDS, exit=True)
        start, guard.active = time.perf_counter(), True
        try:
            reader.read(content)
            result["read"] += 1
        except UserError as error:
            result["refused"] += 1
            text = str(error)
            assert text and "\n" not in text and "Traceback" not in text and len(text) < 5000, (number, text[:300])
        except BaseException as error:
            traceback.print_exc()
            raise AssertionError(f"{name} {number}: {type(error).__name__}") from None
        finally:
            guard.active = False
        seconds = time.perf_counter() - start
        result["slowest"] = max(result["slowest"], round(seconds, 2))
        assert seconds < SECONDS, (number, seconds)
        assert not guard.seen, (number, guard.seen)
        assert megabytes() - before < MEGABYTES, (number, megabytes() - before)
    faulthandler.cancel_dump_traceback_later()
    return {**result, "megabytes": megabytes() - before, "cpu": round(time.process_time(), 1)}


def megabytes():
    """The most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def run(folder, counts):
    """{name: what came of it} of some readers in one process, which has nothing else around it."""
    words = [f"{name}={count}" for name, count in counts.items()]
    done = subprocess.run(
        [sys.executable, __file__, folder, *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "JAX_NUM_CPU_DEVICES": "1"},
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
    for name, result in found:
        print(name, result)
    assert not done.returncode, done.stderr[-6000:]
    assert sorted(path.name for path in Path(folder).iterdir()) == sorted(counts), "something was written elsewhere"
    return dict(found)


def check(found, counts):
    for name, count in counts.items():
        result = found[name]
        assert result["read"] + result["refused"] == count
        assert min(result["read"], result["refused"]) > count / 200, (name, result)  # both ways were taken


@pytest.mark.parametrize(
    "names",
    [
        ("Photographs", "DataImages", "DataLabels", "Records", "Matrices", "Journals", "Prepared"),
        ("RecordedConfigs", "CommandLines", "Evaluations", "Progress", "Checkpoints", "PthZip", "PthLegacy"),
    ],
    ids="-".join,
)
def test_damaged_files(tmp_path, names):
    counts = {name: QUICK[name] for name in names}
    check(run(tmp_path, counts), counts)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_ten_thousand_damaged_files(tmp_path, name):
    counts = {name: SLOW[name]}
    check(run(tmp_path, counts), counts)


def main(folder, *words):
    limits.MAX_PIXELS = PIXELS
    for word in words:
        name, _, count = word.partition("=")
        place = Path(folder) / name
        place.mkdir()
        print(json.dumps([name, fuzz(name, int(count), place)]), flush=True)


if __name__ == "__main__":
    faulthandler.enable()
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_ENABLE_ONEDNN_OPTS="0", JAX_PLATFORMS="cpu")
    main(*sys.argv[1:])
