"""Given any bytes, a reader reads them or raises UserError: quickly, in bounded memory, without side effects.

Each reader of `readers` gets thousands of damaged files in a process of its own, whose actions are audited.
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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from readers import READERS

from isnet_jax.errors import UserError
from isnet_jax.runtime import limits

MAX_SECONDS = 5  # for one file
MAX_MEGABYTES = 250  # for all of them together
MAX_PIXELS = 10**6  # in place of limits.MAX_PIXELS, so that the largest images within the bounds are read quickly
MAX_MESSAGE = 5000  # characters
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
    Cards=150,
    Prepared=40,
    CocoFiles=300,
    LabelmeFiles=300,
    CvatFiles=300,
    Checkpoints=20,
    PthZip=500,
    PthLegacy=500,
    Safetensors=500,
    Exports=300,
)
SLOW = {**dict.fromkeys(QUICK, 10_000), "Checkpoints": 1_000, "Exports": 3_000}
SLOW["Prepared"] = 5_000  # TFDS keeps every builder it opens
FORBIDDEN_EVENTS = (
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
CHANGE_EVENTS = (
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


class Auditor:
    """Records what no reader needs to do: run programs or scripts, use a network or pickles, write outside a folder.

    It records only while `active`.
    """

    def __init__(self, folder: Path, trusted_scripts: Iterable[str]):
        self.folder, self.violations, self.active = str(folder), [], False
        scripts = (f"{folder}/{name}" for name in trusted_scripts)
        self.trusted_code = sys.prefix, sys.base_prefix, str(ROOT), "<", *scripts
        sys.addaudithook(self._audit)

    def _audit(self, event: str, args: tuple) -> None:
        if not self.active:
            return
        if event.startswith(FORBIDDEN_EVENTS) or (
            event == "exec" and not args[0].co_filename.startswith(self.trusted_code)
        ):
            self.violations.append((event, str(args)[:200]))
        elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self._require_inside(event, args[0])
        elif event.startswith(CHANGE_EVENTS):
            for path in args[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
                self._require_inside(event, path)

    def _require_inside(self, event: str, path: Any) -> None:
        if isinstance(path, (str, bytes, os.PathLike)):
            path = os.path.realpath(os.fsdecode(path))
            if not path.startswith(self.folder + "/") and path != os.devnull and "__pycache__" not in path:
                self.violations.append((event, path))


def fuzz(name: str, count: int, folder: Path) -> dict[str, float]:
    """Feeds `count` mutants to a reader; returns how many it read and refused, and its time and memory."""
    reader = READERS[name](folder)
    for content in reader.valid_inputs():  # which also imports all modules before the audit starts
        with contextlib.suppress(UserError):
            reader.read(content)
    tempfile.tempdir = str(folder)
    auditor = Auditor(folder, reader.trusted_scripts)
    result = {"read": 0, "refused": 0, "slowest": 0.0}
    before = peak_megabytes()
    for number in range(count):
        content = reader.mutant(random.Random(f"{name} {number}"))
        faulthandler.dump_traceback_later(6 * MAX_SECONDS, exit=True)
        start, auditor.active = time.perf_counter(), True
        try:
            reader.read(content)
            result["read"] += 1
        except UserError as error:
            result["refused"] += 1
            text = str(error)
            is_paragraph = text and "\n" not in text and "Traceback" not in text and len(text) < MAX_MESSAGE
            assert is_paragraph, (number, text[:300])
        except BaseException as error:
            traceback.print_exc()
            raise AssertionError(f"{name} {number}: {type(error).__name__}") from None
        finally:
            auditor.active = False
        seconds = time.perf_counter() - start
        result["slowest"] = max(result["slowest"], round(seconds, 2))
        assert seconds < MAX_SECONDS, (number, seconds)
        assert not auditor.violations, (number, auditor.violations)
        assert peak_megabytes() - before < MAX_MEGABYTES, (number, peak_megabytes() - before)
    faulthandler.cancel_dump_traceback_later()
    return {**result, "megabytes": peak_megabytes() - before, "cpu": round(time.process_time(), 1)}


def peak_megabytes() -> int:
    """The peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def fuzz_in_subprocess(folder: Path, counts: dict[str, int]) -> None:
    """Fuzzes readers, {name: number of mutants}, in one fresh process, and checks the results of all of them."""
    done = subprocess.run(
        [sys.executable, __file__, folder, *(f"{name}={count}" for name, count in counts.items())],
        capture_output=True,
        text=True,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests/security'}",
            "JAX_NUM_CPU_DEVICES": "1",
        },
    )
    results = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))
    for name, result in results.items():
        print(name, result)
    assert not done.returncode, done.stderr[-6000:]
    assert sorted(path.name for path in folder.iterdir()) == sorted(counts), "a reader wrote outside its folder"
    for name, count in counts.items():
        result = results[name]
        assert result["read"] + result["refused"] == count
        assert min(result["read"], result["refused"]) > count / 200, (name, result)  # both outcomes are exercised


@pytest.mark.parametrize(
    "names",
    [
        ("Photographs", "DataImages", "DataLabels", "Records", "Matrices", "Journals", "Prepared"),
        ("CocoFiles", "LabelmeFiles", "CvatFiles"),
        (
            "RecordedConfigs",
            "CommandLines",
            "Evaluations",
            "Progress",
            "Cards",
            "Checkpoints",
            "PthZip",
            "PthLegacy",
            "Safetensors",
        ),
        ("Exports",),
    ],
    ids="-".join,
)
def test_readers_survive_damaged_files(tmp_path, names):
    fuzz_in_subprocess(tmp_path, {name: QUICK[name] for name in names})


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_readers_survive_ten_thousand_damaged_files(tmp_path, name):
    fuzz_in_subprocess(tmp_path, {name: SLOW[name]})


def test_fuzzers_cover_every_reader():
    assert set(QUICK) == set(SLOW) == set(READERS)


def main(folder: str, *counts: str) -> None:
    """Fuzzes the readers NAME=COUNT, each in its own directory of `folder`, and prints one line of JSON for each."""
    limits.MAX_PIXELS = MAX_PIXELS
    for name, _, count in (text.partition("=") for text in counts):
        place = Path(folder) / name
        place.mkdir()
        print(json.dumps([name, fuzz(name, int(count), place)]), flush=True)


if __name__ == "__main__":
    faulthandler.enable()
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_ENABLE_ONEDNN_OPTS="0", JAX_PLATFORMS="cpu")
    main(*sys.argv[1:])
