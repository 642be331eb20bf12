"""`python -m isnet_jax.prepare`: what it reports, what it prints, and what it leaves behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_sets import CAMVID_SPLITS, contents, expanded, link, read_png, write_pair
from paths import ROOT
from PIL import Image
from small_run import run_inside, unwrapped

from isnet_jax import datasets
from isnet_jax.errors import UserError

ORIENTATION = 274  # the EXIF tag


def run(*args, **environment):
    command = [sys.executable, "-m", "isnet_jax.prepare", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, env=os.environ | environment)


def exif(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def save_in_color(label):
    image = Image.open(label).convert("RGB")
    image.putpixel((0, 0), (1, 2, 3))
    image.save(label)


def write_faulty_images(source):
    """Writes a pair with each fault of an image: {path of the image: part of the message}."""

    def image_of(name, **options):
        return write_pair(source, "train", name, **options)[0]

    problems = {}
    empty, text, cut = (image_of(name) for name in ("empty", "text", "cut"))
    empty.write_bytes(b"")
    problems[empty] = "is empty"
    text.write_text("hello")
    problems[text] = "is not a readable JPEG, PNG, "
    cut.write_bytes(cut.read_bytes()[:-200])
    problems[cut] = "is damaged"
    vanished = image_of("vanished")
    vanished.unlink()
    vanished.symlink_to(source.parent / "nowhere")
    problems[vanished] = "cannot be read (No such file or directory)"
    sizes = f"is 20 x 31 (height x width), but its label {source}/train/labels/sizes.png is 20 x 30"
    problems[image_of("sizes", size=(31, 20))] = sizes
    problems[image_of("turned", size=(20, 30), exif=exif(6))] = "likely cause is the EXIF orientation 6"
    return problems


def write_faulty_labels(source):
    """Writes a pair with each fault of a label: {path of the label: part of the message}."""

    def label_of(name, **options):
        return write_pair(source, "train", name, **options)[1]

    problems = {}
    cut = label_of("cut_label")
    cut.write_bytes(cut.read_bytes()[:-40])
    problems[cut] = "is damaged"
    mask = label_of("mask")
    save_in_color(mask)
    problems[mask] = "is a colour image with 13 colours"
    illegal = label_of("illegal", label=np.full((20, 30), 12))
    problems[illegal] = "not labels: 12, in 600 pixels, the first at row 0, column 0; the legal values are 0..11"
    return problems


def write_faulty_pairs(source):
    """Writes an image and a label without partner, and a pair with three faults: {path: part of the message}."""
    problems = {}
    image, label = write_pair(source, "test", "lonely_image")
    label.unlink()
    problems[image] = "has no label lonely_image.png"
    image, label = write_pair(source, "test", "lonely_label")
    image.unlink()
    problems[label] = "has no image lonely_label"
    image, label = write_pair(source, "test", "bad", size=(40, 20))  # of another size than its label
    image.write_bytes(image.read_bytes()[:-200])
    save_in_color(label)
    problems[label] = "is a colour image with 13 colours"
    return problems


def test_prepare_reports_one_of_each_fault(tmp_path):
    source = tmp_path / "source"
    write_pair(source, "train", "sound")
    write_pair(source, "test", "sound")
    problems = write_faulty_images(source) | write_faulty_labels(source) | write_faulty_pairs(source)
    problems[source / "val/images"] = "is missing"
    warnings = {
        write_pair(source, "train", "turned_both", exif=exif(3))[0]: "the record keeps the pixels as stored",
        write_pair(source, "train", "nothing", label=np.full((20, 30), 11))[1]: "ignores every pixel",
    }

    before = contents(tmp_path)
    data_dir = f"--data_dir={tmp_path}/data"
    only_check = run("--dataset=camvid", f"--source={source}", data_dir, "--check")
    assert contents(tmp_path) == before and not (tmp_path / "data").exists()
    prepare = run("--dataset=camvid", f"--source={source}", data_dir)
    for done in only_check, prepare:
        assert done.returncode == 1 and not done.stdout and "Traceback" not in done.stderr
        listing, final = re.split(r"\n(?=error: )", done.stderr)
        lines = expanded(listing)
        assert all(re.match("problem: |warning: |note: ", line) for line in lines), done.stderr  # no library's noise
        for kind, expected in ("problem", problems), ("warning", warnings):
            for path, text in expected.items():
                matching = [
                    line for line in lines if line.startswith(f"{kind}: ") and f"{path}" in line and text in line
                ]
                assert matching, (path, text, done.stderr)
        bad = source / "test/images/bad.jpg"
        for text in "is damaged", "is 20 x 40":
            assert any(f"{bad} {text}" in line for line in lines)
        assert "warning: The split train has 12 images where the official one has 367." in lines
        count = sum(line.startswith("problem: ") for line in lines)
        assert count == len(problems) + 2 and f"has {count} problems, listed above" in " ".join(final.split())
    left = [path.name for path in (tmp_path / "data/camvid").iterdir()]
    assert left == ["checked.1.0.0"]
    with pytest.raises(UserError, match="is not prepared in"):
        datasets.load("camvid", tmp_path / "data")


def test_prepare_reports_names_that_are_not_utf8(source, tmp_path):
    """Wherever the bytes are, the names can be printed, and the files are checked all the same."""
    name = os.fsdecode(b"caf\xe9")
    renamed = [path.rename(path.with_stem(name)) for path in write_pair(source, "train", "x")]
    image, label = (path.rename(path.with_stem(name)) for path in write_pair(source, "val", "y"))
    image.write_bytes(b"")
    data_dir = f"--data_dir={tmp_path}/data"
    for args in [data_dir, "--check"], [data_dir]:
        done = run("--dataset=camvid", f"--source={source}", *args)
        assert done.returncode == 1 and not done.stdout and "Traceback" not in done.stderr
        problems = [line for line in expanded(done.stderr) if line.startswith("problem: ")]
        for path in *renamed, image, label:
            shown = str(path).replace("\udce9", "\\udce9")
            assert f"problem: {shown} has a name that is not UTF-8, as records need it: rename it." in problems
        assert len(problems) == 5 and any(problem.endswith("is empty.") for problem in problems)
    with pytest.raises(UserError, match="caf.* has a name that is not UTF-8"):
        datasets.check("camvid", source.rename(source.with_name(name)))


def test_prepare_refuses_a_folder_of_something_else(tmp_path):
    (tmp_path / "pictures").mkdir()
    done = run("--dataset=camvid", f"--source={tmp_path}", "--check")
    final = " ".join(done.stderr.split("error: ")[1].split())
    assert final.startswith(f"{tmp_path} does not look like the data set camvid (the layout is {{train")
    assert "3 problems above" in final
    assert "Fix" not in final


def test_prepare_prints_tables_and_the_command_to_train(samples, tmp_path):
    source, data = tmp_path / "source", tmp_path / "data"
    for split in CAMVID_SPLITS:
        for kind in "images", "labels":
            paths = sorted((samples.root / "camvid" / split / kind).iterdir())
            link({source / split / kind / path.name: path for path in paths[:3]})

    done = run("--dataset=camvid", f"--source={source}", f"--data_dir={data}", "--check")
    assert done.returncode == 0 and not data.exists()
    tables, end = done.stdout.rsplit("\n\n", 1)
    assert end == "camvid: no problems, nothing written\n"

    overrides = "--source", f"{source}", f"--config.data.data_dir={data}", "--config.train.epochs", "3"
    (tmp_path / "temporary").mkdir()
    done = run("--config=configs/camvid.py", *overrides, TMPDIR=str(tmp_path / "temporary"))
    assert not list((tmp_path / "temporary").iterdir())
    assert done.returncode == 0 and done.stdout == (
        f"{tables}\n\ncamvid is prepared: train 3, val 3, test 3 examples in {data}/camvid/1.0.0\n"
        f"train with: python -m isnet_jax.main --config=configs/camvid.py --config.train.epochs=3 "
        f"--config.data.data_dir={data}\n"
    )
    assert "note: 3 of 3 labels of train are palette images: their indices are used, not their colours." in done.stderr
    assert [path.name for path in (data / "camvid").iterdir()] == ["1.0.0"]
    check_table(tables.split("\n\n")[0].splitlines(), sorted((source / "train/labels").iterdir()))

    done = run("--config=configs/camvid.py", f"--data_dir={data}", "--dataset=camvid")
    assert (done.returncode, done.stderr, done.stdout) == (
        0,
        "",
        (
            f"camvid was prepared before: train 3, val 3, test 3 examples in {data}/camvid/1.0.0\n"
            f"train with: python -m isnet_jax.main --config=configs/camvid.py --config.data.data_dir={data}\n"
        ),
    )


def check_table(rows: list[str], label_paths: list[Path]) -> None:
    """Asserts that the table of the training split counts the pixels of these labels."""
    labels = [read_png(path) for path in label_paths]
    pixels = np.stack(labels)
    assert rows[0].startswith(f"train: 3 images, {100 * np.mean(pixels == 11):.2f} % of the pixels ignored")
    assert len(rows) == 2 + 11 and len(set(map(len, rows[1:]))) == 1
    for i, row in enumerate(rows[2:]):
        number, _, share, images = row.split()
        assert int(number) == i and int(images) == sum((label == i).any() for label in labels)
        assert float(share) == pytest.approx(100 * np.sum(pixels == i) / np.sum(pixels != 11), abs=0.0051)


@pytest.mark.parametrize(
    "args, code, message",
    [
        ([], 2, "--dataset=NAME or --config=FILE is missing"),
        (["--dataset=lip", "--config=configs/camvid.py"], 1, "--dataset is lip, but config.data.name camvid"),
        (["--dataset=camvid", "--config.data.source=x"], 2, "--config=FILE is missing"),
        (["--dataset=camvit"], 1, "ade20k, cityscapes"),
        (["--dataset=folder"], 1, "configs/own_folder.py"),
        (["--dataset=camvid", "--check"], 1, "--source=DIR"),
        (["--dataset=camvid", "--source=/nonexistent", "--check"], 1, "/nonexistent"),
    ],
)
def test_prepare_explains_wrong_arguments(args, code, message):
    returned, out, err = run_inside(*args, module="prepare")
    assert returned == code and not out and "Traceback" not in err
    assert message in unwrapped(err), err
