"""Preparations that are interrupted, run twice at a time, or whose files change: what the journal saves."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from data_sets import CAMVID_SPLITS, contents, write_pair
from paths import ROOT

from isnet_jax import datasets
from isnet_jax.errors import UserError

# Runs the command slowly, with few findings per journal file, and logs the names of the pairs that it checks.
DRIVER = """
import runpy, sys, time
from isnet_jax.datasets import folder_builder, journal
journal.CHUNK = 8
builder, log = folder_builder.FolderBuilder, sys.argv.pop(1)
check, image = builder.check, builder.image
def slow_check(self, pair):
    with open(log, 'a') as file:
        file.write(pair.name + '\\n')
    time.sleep(0.03)
    return check(self, pair)
def slow_image(self, pair):
    time.sleep(0.03)
    return image(self, pair)
builder.check, builder.image = slow_check, slow_image
runpy.run_module('isnet_jax.prepare', run_name='__main__')
"""


def start(log, source, data_dir):
    command = sys.executable, "-c", DRIVER, log, "--dataset=camvid", f"--source={source}", f"--data_dir={data_dir}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, text=True, **pipes)


@pytest.mark.parametrize(
    "stage, pattern, count", [("checking", "checked.1.0.0/*.npz", 2), ("writing", "incomplete.*/*array_record*", 2)]
)
def test_prepare_resumes_after_kill(tmp_path, stage, pattern, count):
    """After kill -9 it checks only what it had not checked, and ends with the same bytes."""
    source, data, log = tmp_path / "source", tmp_path / "data", tmp_path / "log"
    for split in CAMVID_SPLITS:
        for i in range(30):
            write_pair(source, split, f"{split}{i:02d}")
    datasets.load("camvid", tmp_path / "uninterrupted", source)

    process = start(log, source, data)
    while len(list((data / "camvid").glob(pattern))) < count and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.communicate()
    assert not (data / "camvid/1.0.0").exists()
    first = log.read_text().split()
    assert len(first) == 90 if stage == "writing" else 16 <= len(first) < 90
    assert list((data / "camvid").glob("incomplete.*")) or stage == "checking"
    log.write_text("")

    process = start(log, source, data)
    out, err = process.communicate()
    assert process.returncode == 0 and "camvid is prepared: train 30, val 30, test 30" in out, err
    second = log.read_text().split()
    resumed = int(re.search(r"note: (\d+) of 90 images had been checked before", err)[1])
    assert resumed == 90 - len(second) and (resumed == 90 if stage == "writing" else resumed >= 16)
    assert set(first) | set(second) == {f"{split}{i:02d}" for split in CAMVID_SPLITS for i in range(30)}
    assert contents(data) == contents(tmp_path / "uninterrupted")


def test_two_processes_prepare_once(source, tmp_path):
    log, data = tmp_path / "log", tmp_path / "data"
    processes = [start(log, source, data) for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len(log.read_text().split()) == 12 and sorted(os.listdir(data / "camvid")) == ["1.0.0"]
    assert sum("camvid is prepared" in out for out, _ in outputs) == 1


def test_survey_checks_only_changed_files_again(source, tmp_path, checked, capfd):
    image = source / "val/images/val2.jpg"
    data = image.read_bytes()
    image.write_bytes(b"")
    for count in 12, 1:
        with pytest.raises(UserError, match="1 problem,"):
            datasets.load("camvid", tmp_path / "data", source)
        assert len(checked) == count
        checked.clear()
    image.write_bytes(data)
    (source / "test/labels/test1.png").touch()
    capfd.readouterr()
    builder = datasets.load("camvid", tmp_path / "data", source)
    assert checked == ["val2", "test1"]
    assert "note: 10 of 12 images had been checked before." in capfd.readouterr().err
    assert os.listdir(builder.data_path.parent) == ["1.0.0"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"x" * len(data),
        lambda data: data[:1500] + bytes(50) + data[1550:],
    ],
)
def test_damaged_journal_is_ignored(source, tmp_path, checked, damage):
    bad = source / "val/images/bad.jpg"
    bad.write_bytes(b"")
    with pytest.raises(UserError):
        datasets.load("camvid", tmp_path / "data", source)
    (path,) = (tmp_path / "data/camvid/checked.1.0.0").glob("*.npz")
    path.write_bytes(damage(path.read_bytes()))
    bad.unlink()
    checked.clear()
    datasets.load("camvid", tmp_path / "data", source)
    datasets.load("camvid", tmp_path / "uninterrupted", source)
    assert len(checked) == 24 and contents(tmp_path / "data") == contents(tmp_path / "uninterrupted")


def test_journal_keeps_warnings(source, tmp_path, capfd):
    _, label = write_pair(source, "train", "x", label=np.full((20, 30), 11))
    bad = source / "val/images/bad.jpg"
    bad.write_bytes(b"")
    with pytest.raises(UserError):
        datasets.load("camvid", tmp_path / "data", source)
    bad.unlink()
    for data in "data", "fresh":
        capfd.readouterr()
        datasets.load("camvid", tmp_path / data, source)
        assert f"warning: {label} ignores every pixel" in capfd.readouterr().err


def test_write_refuses_files_that_changed_after_the_survey(source, tmp_path, monkeypatch):
    from isnet_jax.datasets import preparation

    survey = preparation.survey

    def survey_and_change(*args):
        result = survey(*args)
        (source / "val/labels/val1.png").touch()
        return result

    with monkeypatch.context() as patch, pytest.raises(UserError, match="files of val1 .* have changed"):
        patch.setattr(preparation, "survey", survey_and_change)
        datasets.load("camvid", tmp_path / "data", source)
    assert os.listdir(tmp_path / "data/camvid") == ["checked.1.0.0"]
    assert datasets.load("camvid", tmp_path / "data", source).info.splits["val"].num_examples == 4
