"""`python -m isnet_jax.prepare`: what it tells and leaves, how it goes on after it was killed; and remote stores."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from paths import ROOT, SHARED
from PIL import Image

from isnet_jax import datasets
from isnet_jax.errors import UserError

CAMVID = SHARED / "data/camvid"
SPLITS = "train", "val", "test"
ORIENTATION = 274  # the EXIF tag

# Runs the command with small chunks, slowly, and notes in a file what it checks.
DRIVER = """
import runpy, sys, time
from isnet_jax.datasets import common, journal
journal.CHUNK = 8
builder, log = common.FolderBuilder, sys.argv.pop(1)
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


def draw(source, split, name, mode="RGB", suffix=".jpg", size=(30, 20), label_size=(30, 20), label=None, **how):
    """Writes a pair: noise, and the labels 0..11 in turn."""
    images, labels = source / split / "images", source / split / "labels"
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(exist_ok=True)
    rng = np.random.default_rng([*name.encode()])
    Image.fromarray(rng.integers(256, size=(*size[::-1], 3), dtype=np.uint8)).convert(mode).save(
        images / f"{name}{suffix}", **how
    )
    if label is None:
        label = (np.arange(label_size[0] * label_size[1]) % 12).reshape(label_size[::-1])
    Image.fromarray(label.astype(np.uint8)).save(labels / f"{name}.png")
    return images / f"{name}{suffix}", labels / f"{name}.png"


@pytest.fixture
def source(tmp_path):
    """A sound CamVid tree, with 4 pairs a split."""
    for split in SPLITS:
        for i in range(4):
            draw(tmp_path / "source", split, f"{split}{i}")
    return tmp_path / "source"


def upright_less(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def run(*words, **more):
    return subprocess.run(
        [sys.executable, "-m", "isnet_jax.prepare", *map(str, words)], cwd=ROOT, text=True, capture_output=True, **more
    )


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def checked(monkeypatch):
    """A list of the names that are checked from now on, not taken from the journal."""
    from isnet_jax.datasets import common

    names, check = [], common.FolderBuilder.check

    def spy(self, pair):
        names.append(pair.name)
        return check(self, pair)

    monkeypatch.setattr(common.FolderBuilder, "check", spy)
    return names


def test_one_of_each_fault(tmp_path):
    source, told = tmp_path / "source", {}  # told: what is wrong, by file
    warned = {}

    def pair(name, split="train", **how):
        return draw(source, split, name, **how)

    draw(source, "train", "sound")
    draw(source, "test", "sound")
    image, _ = pair("empty")
    image.write_bytes(b"")
    told[image] = "is empty"
    image, _ = pair("text")
    image.write_text("hello")
    told[image] = "is no readable JPEG or PNG file"
    image, _ = pair("cut")
    image.write_bytes(image.read_bytes()[:-200])
    told[image] = "is damaged"
    _, label = pair("cut_label")
    label.write_bytes(label.read_bytes()[:-40])
    told[label] = "is damaged"
    image, _ = pair("vanished")
    image.unlink()
    image.symlink_to(tmp_path / "nowhere")
    told[image] = "cannot be read (No such file or directory)"
    image, _ = pair("deep", suffix=".png")
    Image.fromarray(np.zeros((20, 30), np.uint16)).save(image)
    told[image] = "has more than 8 bits a channel"
    image, _ = pair("sizes", size=(31, 20))
    told[image] = f"is 20 x 31 (height x width), but its label {source}/train/labels/sizes.png is 20 x 30"
    image, _ = pair("turned", size=(20, 30), exif=upright_less(6))
    told[image] = "likely cause is the EXIF orientation 6"
    image, _ = pair("turned_both", exif=upright_less(3))
    warned[image] = "the record keeps the pixels as stored"
    _, label = pair("mask")
    Image.open(label).convert("RGB").save(label)
    told[label] = "is a colour image (RGB)"
    _, label = pair("illegal", label=np.full((20, 30), 12))
    told[label] = "no labels: 12, in 600 pixels, the first at row 0, column 0; the labels allowed are 0..11"
    _, label = pair("nothing", label=np.full((20, 30), 11))
    warned[label] = "ignores every pixel"
    image, label = pair("lonely_image", "test")
    label.unlink()
    told[image] = "has no label lonely_image.png"
    image, label = pair("lonely_label", "test")
    image.unlink()
    told[label] = "has no image lonely_label"
    # Three faults in one pair.
    image, label = pair("bad", "test", size=(40, 20))
    image.write_bytes(image.read_bytes()[:-200])
    Image.open(label).convert("RGB").save(label)
    told[label] = "is a colour image (RGB)"
    # A whole split without files.
    told[source / "val/images"] = "is missing"

    before = contents(tmp_path)
    data_dir = f"--data_dir={tmp_path}/data"
    only_check = run("--dataset=camvid", f"--source={source}", data_dir, "--check")
    assert contents(tmp_path) == before and not (tmp_path / "data").exists()
    prepare = run("--dataset=camvid", f"--source={source}", data_dir)
    for done in only_check, prepare:
        assert done.returncode == 1 and not done.stdout and "Traceback" not in done.stderr
        listing, final = re.split(r"\n(?=error: )", done.stderr)
        lines = listing.splitlines()
        assert all(re.match("problem: |warning: |note: ", line) for line in lines), done.stderr  # no library's noise
        for kind, expected in ("problem", told), ("warning", warned):
            for path, what in expected.items():
                found = [line for line in lines if line.startswith(f"{kind}: ") and str(path) in line and what in line]
                assert found, (path, what, done.stderr)
        image = source / "test/images/bad.jpg"
        assert {what for what in ("is damaged", "is 20 x 40") for line in lines if f"{image} {what}" in line} == {
            "is damaged",
            "is 20 x 40",
        }
        assert "warning: The split train has 13 images where the official one has 367." in lines
        count = sum(line.startswith("problem: ") for line in lines)
        assert count == len(told) + 2 and f"has {count} problems, listed above" in " ".join(final.split())
    left = [path.name for path in (tmp_path / "data/camvid").iterdir()]
    assert left == ["checked.1.0.0"]
    with pytest.raises(UserError, match="is not prepared in"):
        datasets.load("camvid", tmp_path / "data")


def test_names_that_are_no_text(source, tmp_path):
    """Told as problems, and printed, wherever the bytes are; the files themselves are checked none the less."""
    name = os.fsdecode(b"caf\xe9")
    renamed = [path.rename(path.with_stem(name)) for path in draw(source, "train", "x")]
    image, label = (path.rename(path.with_stem(name)) for path in draw(source, "val", "y"))
    image.write_bytes(b"")
    data_dir = f"--data_dir={tmp_path}/data"
    for words in [data_dir, "--check"], [data_dir]:
        done = run("--dataset=camvid", f"--source={source}", *words)
        assert done.returncode == 1 and not done.stdout and "Traceback" not in done.stderr
        problems = [line for line in done.stderr.splitlines() if line.startswith("problem: ")]
        for path in *renamed, image, label:
            shown = str(path).replace("\udce9", "\\udce9")
            assert f"problem: {shown} has a name that is not UTF-8, as records need it: rename it." in problems
        assert len(problems) == 5 and problems[-1].endswith("is empty.")
    with pytest.raises(UserError, match="caf.* has a name that is not UTF-8"):
        datasets.check("camvid", source.rename(source.with_name(name)))


def test_another_tree(tmp_path):
    (tmp_path / "pictures").mkdir()
    done = run("--dataset=camvid", f"--source={tmp_path}", "--check")
    final = " ".join(done.stderr.split("error: ")[1].split())
    assert (
        final.startswith(f"{tmp_path} does not look like the data set camvid (the layout is {{train") and "3" in final
    )
    assert "Mend" not in final


def test_clean_run(tmp_path):
    if not CAMVID.exists():
        pytest.skip(f"the real CamVid is not at {CAMVID}")
    source, data = tmp_path / "source", tmp_path / "data"
    for split in SPLITS:
        for kind in "images", "labels":
            (source / split / kind).mkdir(parents=True)
            for path in sorted((CAMVID / split / kind).iterdir())[:3]:
                (source / split / kind / path.name).symlink_to(path)
    labels = [np.array(Image.open(path)) for path in sorted((source / "train/labels").iterdir())]

    done = run("--dataset=camvid", f"--source={source}", f"--data_dir={data}", "--check")
    assert done.returncode == 0 and not data.exists()
    tables, end = done.stdout.rsplit("\n\n", 1)
    assert end == "camvid: no problems, nothing written\n"

    overrides = f"--config.data.source={source}", f"--config.data.data_dir={data}", "--config.train.epochs=3"
    done = run("--config=configs/camvid.py", *overrides)
    assert done.returncode == 0 and done.stdout == (
        f"{tables}\n\ncamvid is prepared: train 3, val 3, test 3 examples in {data}/camvid/1.0.0\n"
        f"train with: python -m isnet_jax.main --config=configs/camvid.py --config.data.data_dir={data} "
        "--config.train.epochs=3\n"
    )
    assert "note: 3 of 3 labels of train are palette PNGs: their indices are taken, not their colours." in done.stderr
    assert [path.name for path in (data / "camvid").iterdir()] == ["1.0.0"]
    rows = tables.split("\n\n")[0].splitlines()
    assert rows[0].startswith(f"train: 3 images, {100 * np.mean(np.stack(labels) == 11):.2f} % of the pixels ignored")
    assert len(rows) == 2 + 11 and len(set(map(len, rows[1:]))) == 1
    for i, row in enumerate(rows[2:]):
        number, _, share, images = row.split()
        assert int(number) == i and int(images) == sum((label == i).any() for label in labels)
        assert float(share) == pytest.approx(
            100 * np.sum(np.stack(labels) == i) / np.sum(np.stack(labels) != 11), abs=0.0051
        )

    done = run("--dataset=camvid", f"--data_dir={data}")
    assert (done.returncode, done.stderr, done.stdout) == (
        0,
        "",
        (
            f"camvid was prepared before: train 3, val 3, test 3 examples in {data}/camvid/1.0.0\n"
            f"train with: python -m isnet_jax.main --config=configs/camvid.py --config.data.data_dir={data}\n"
        ),
    )


@pytest.mark.parametrize(
    "words, code, told",
    [
        ([], 2, "--dataset=NAME or --config=FILE is missing"),
        (["--dataset=camvid", "--config=configs/camvid.py"], 2, "with --config: set --config.data.name instead"),
        (["--data_dir=x", "--config=configs/camvid.py"], 2, "with --config: set --config.data.data_dir instead"),
        (["--dataset=camvid", "--config.data.source=x"], 2, "--config=FILE is missing"),
        (["--dataset=camvit"], 1, "ade20k, cityscapes"),
        (["--dataset=folder"], 1, "configs/own_folder.py"),
        (["--dataset=camvid", "--check"], 1, "--source=DIR"),
        (["--dataset=camvid", "--source=/nonexistent", "--check"], 1, "/nonexistent"),
    ],
)
def test_mistakes_on_the_command_line(words, code, told):
    done = run(*words)
    assert done.returncode == code and not done.stdout and "Traceback" not in done.stderr
    assert told in " ".join(done.stderr.split()), done.stderr


def test_cmyk_and_grey_jpegs(tmp_path):
    """They are kept as they are, and the decoder of training makes of them what Pillow does."""
    import tensorflow as tf

    from isnet_jax.datasets import common

    for split, mode in zip(SPLITS, ("CMYK", "L", "RGB")):
        images = tmp_path / "source" / split / "images"
        draw(tmp_path / "source", split, "a")
        gradient = np.mgrid[:20, :30].sum(0)[..., None] * [5, 3, 1]
        Image.fromarray(gradient.astype(np.uint8)).convert(mode).save(images / "a.jpg", quality=95)
    builder = datasets.load("camvid", tmp_path / "data", tmp_path / "source")
    for split, mode in zip(SPLITS, ("CMYK", "L", "RGB")):
        path = tmp_path / "source" / split / "images/a.jpg"
        record = builder.as_data_source(split, decoders=common.ENCODED)[0]
        assert record["image"] == path.read_bytes()
        expected = Image.open(path)
        assert expected.mode == mode
        expected = np.array(expected.convert("RGB")).astype(int)
        found = tf.io.decode_jpeg(record["image"], channels=3, dct_method="INTEGER_ACCURATE").numpy()
        part = tf.image.decode_and_crop_jpeg(
            record["image"], [4, 8, 10, 12], channels=3, dct_method="INTEGER_ACCURATE"
        ).numpy()
        assert np.ptp(expected) > 100 and abs(found - expected).max() <= 2
        np.testing.assert_array_equal(part[2:-2, 2:-2], found[6:12, 10:18])  # chroma is smoothed across the edges


def test_label_encoding():
    import tensorflow as tf

    from isnet_jax.datasets import image_files

    for shape in (1, 1), (7, 300), (64, 33):
        ids = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
        png = image_files.encode_label(ids)
        np.testing.assert_array_equal(tf.io.decode_png(png, channels=1)[..., 0], ids)
        assert tf.io.decode_png(png).shape[2] == 1


def start(log, source, data_dir):
    words = sys.executable, "-c", DRIVER, log, "--dataset=camvid", f"--source={source}", f"--data_dir={data_dir}"
    return subprocess.Popen(list(map(str, words)), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    "stage, pattern, count", [("checking", "checked.1.0.0/*.npz", 2), ("writing", "incomplete.*/*array_record*", 2)]
)
def test_killed(tmp_path, stage, pattern, count):
    """After kill -9 it goes on, checks only what it had not, and ends with the same bytes."""
    source, data, log = tmp_path / "source", tmp_path / "data", tmp_path / "log"
    for split in SPLITS:
        for i in range(30):
            draw(source, split, f"{split}{i:02d}")
    datasets.load("camvid", tmp_path / "whole", source)

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
    again = log.read_text().split()
    resumed = int(re.search(r"note: (\d+) of 90 images had been checked before", err)[1])
    assert resumed == 90 - len(again) and (resumed == 90 if stage == "writing" else resumed >= 16)
    assert set(first) | set(again) == {f"{split}{i:02d}" for split in SPLITS for i in range(30)}
    assert contents(data) == contents(tmp_path / "whole")


def test_two_at_once(source, tmp_path):
    log, data = tmp_path / "log", tmp_path / "data"
    processes = [start(log, source, data) for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len(log.read_text().split()) == 12 and sorted(os.listdir(data / "camvid")) == ["1.0.0"]
    assert sum("camvid is prepared" in out for out, _ in outputs) == 1


def test_mended_file_alone_is_checked_anew(source, tmp_path, checked, capfd):
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
def test_damaged_journal(source, tmp_path, checked, damage):
    bad = source / "val/images/bad.jpg"
    bad.write_bytes(b"")
    with pytest.raises(UserError):
        datasets.load("camvid", tmp_path / "data", source)
    (chunk,) = (tmp_path / "data/camvid/checked.1.0.0").glob("*.npz")
    chunk.write_bytes(damage(chunk.read_bytes()))
    bad.unlink()
    checked.clear()
    datasets.load("camvid", tmp_path / "data", source)
    datasets.load("camvid", tmp_path / "whole", source)
    assert len(checked) == 24 and contents(tmp_path / "data") == contents(tmp_path / "whole")


def test_file_changes_meanwhile(source, tmp_path, monkeypatch):
    from isnet_jax.datasets import preparation

    survey = preparation.survey

    def then_change(*args):
        result = survey(*args)
        (source / "val/labels/val1.png").touch()
        return result

    with monkeypatch.context() as patch, pytest.raises(UserError, match="files of val1 .* have changed"):
        patch.setattr(preparation, "survey", then_change)
        datasets.load("camvid", tmp_path / "data", source)
    assert os.listdir(tmp_path / "data/camvid") == ["checked.1.0.0"]
    assert datasets.load("camvid", tmp_path / "data", source).info.splits["val"].num_examples == 4


def test_many_shards(source, tmp_path, monkeypatch):
    from isnet_jax.datasets import common

    monkeypatch.setattr(common, "SHARD_BYTES", 3000)
    builder = datasets.load("camvid", tmp_path / "data", source)
    assert 1 < len(builder.info.splits["train"].filepaths) <= 4
    names = [record["name"] for record in builder.as_data_source("train", decoders=common.ENCODED)]
    assert names == [b"train0", b"train1", b"train2", b"train3"]


def test_warnings_survive_the_journal(tmp_path, source, capfd):
    _, label = draw(source, "train", "x", label=np.full((20, 30), 11))
    bad = source / "val/images/bad.jpg"
    bad.write_bytes(b"")
    with pytest.raises(UserError):
        datasets.load("camvid", tmp_path / "data", source)
    bad.unlink()
    for data in "data", "fresh":
        capfd.readouterr()
        datasets.load("camvid", tmp_path / data, source)
        assert f"warning: {label} ignores every pixel" in capfd.readouterr().err


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A folder that stands for a bucket."""
    from isnet_jax.datasets import store

    monkeypatch.setattr(store, "is_remote", lambda data_dir: str(data_dir).startswith(str(tmp_path / "bucket")))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "local"))
    return tmp_path / "bucket"


def test_remote_store(source, tmp_path, remote, checked):
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


def test_half_a_copy(source, tmp_path, remote, monkeypatch):
    from isnet_jax.datasets import store

    def stops(source, target, title, copy=store._copy):
        copy(source, target, title)
        next(target.glob("dataset_info.json")).unlink()
        next(target.glob("*val*")).unlink()
        raise ConnectionError("gone")

    monkeypatch.setattr(store, "_copy", stops)
    with pytest.raises(UserError, match="cannot be reached .gone"):
        datasets.load("camvid", remote, source)
    with pytest.raises(UserError, match="not prepared in"):
        datasets.load("camvid", remote)
    monkeypatch.undo()
    monkeypatch.setattr(store, "is_remote", lambda data_dir: "bucket" in str(data_dir))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "local"))
    datasets.load("camvid", remote, source)  # sends again
    assert contents(remote) == contents(tmp_path / "local")

    shutil.rmtree(tmp_path / "local")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot be reached .gone"):
        patch.setattr(store, "_copy", stops)
        datasets.load("camvid", remote)
    assert not contents(tmp_path / "local")
    datasets.load("camvid", remote)
    assert contents(remote) == contents(tmp_path / "local")


def test_other_data_in_the_store(source, tmp_path, remote):
    datasets.load("camvid", remote, source)
    shutil.rmtree(tmp_path / "local")
    shutil.rmtree(source / "train")
    draw(source, "train", "other")
    datasets.load("camvid", None, source)
    with pytest.raises(UserError, match="another data set than"):
        datasets.load("camvid", remote)


def test_unreachable_store(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="nowhere://bucket/.* cannot be reached"):
        datasets.load("scenes", "nowhere://bucket/data")
