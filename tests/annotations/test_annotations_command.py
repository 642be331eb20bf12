"""`python -m isnet_jax.prepare --from=...`, from annotations to a prepared data set, and what it never touches."""

import os
import subprocess
import sys

import numpy as np
import pytest
from annotation_trees import annotation, box, coco, filled, write_coco, write_image, write_json
from data_sets import contents, read_png
from paths import ROOT
from PIL import Image
from small_run import run_inside, unwrapped

from isnet_jax.annotations import writing


def prepare(*args):
    command = [sys.executable, "-m", "isnet_jax.prepare", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True)


def test_annotations_become_a_data_set(source, tmp_path):
    """As a user types it: convert, then check what has been written."""
    write_coco(source)
    before = contents(source)
    output = tmp_path / "out put"
    done = prepare("--from=coco", f"--source={source}", f"--output={output}")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert contents(source) == before
    train, val, remarks = done.stdout.split("\n\n")
    assert val.startswith("val: 2 images, 0.00 % of the pixels ignored")
    rows = [line.split() for line in train.splitlines()[2:]]
    assert rows == [
        ["0", "background", "-", "2", f"{100 * (600 - 80) / 600:.2f}"],
        ["1", "cat", "2", "2", f"{100 * 16 / 600:.2f}"],
        ["2", "dog", "2", "2", f"{100 * 64 / 600:.2f}"],
    ]
    command = f"python -m isnet_jax.prepare '--config={output}/config.py' '--config.data.source={output}'"
    assert remarks.splitlines()[0] == "Class 0, background, is every pixel that no object covers."
    assert remarks.splitlines()[-1] == f"prepare with: {command}"

    done = prepare(f"--config={output}/config.py", f"--config.data.source={output}", "--check")
    assert done.returncode == 0 and "no problems, nothing written" in done.stdout, done.stderr
    assert "cat" in done.stdout and "val: 2 images" in done.stdout


def test_conversion_again_gives_the_same_files(source, convert):
    """Half-written files of a killed run are replaced; an edited config is kept beside the new one."""
    write_coco(source)
    result = convert("coco")
    before = contents(result.folder)
    label = result.folder / "labels/train/000000000000.png"
    label.with_name(label.name + ".partial").write_bytes(b"half")
    label.write_bytes(b"half")
    config = result.folder / "config.py"
    config.write_text(config.read_text() + "# edited\n")
    again = convert("coco")
    after = contents(again.folder)
    assert after.pop("config.previous.py").endswith(b"# edited\n")
    assert after == before and "config.previous.py now" in again.stderr


def test_images_are_copied_where_links_are_impossible(source, convert, monkeypatch):
    write_coco(source)

    def fail(*_):
        raise OSError(writing.NO_LINKS[0], "no links")

    monkeypatch.setattr(os, "symlink", fail)
    copy = convert("coco").folder / "images/train/000000000000.jpg"
    assert not copy.is_symlink()
    assert copy.read_bytes() == (source / "images/train2017/000000000000.jpg").read_bytes()


def test_labels_show_the_colours_of_the_config(source, convert):
    """The indices are classes; ignored pixels have a colour of their own."""
    write_image(source / "a.jpg")
    objects = [annotation(1, 1, [box(0, 0, 4, 4)]), annotation(1, 1, [box(0, 0, 9, 9)], iscrowd=1)]
    write_json(source / "train.json", coco(["a.jpg"], objects, {1: "x"}))
    result = convert("coco")
    label = Image.open(result.folder / "labels/train/a.png")
    assert label.mode == "P"
    np.testing.assert_array_equal(label, filled((255, 0, 0, 9, 9), (1, 0, 0, 4, 4)))
    np.testing.assert_array_equal(label, read_png(result.folder / "labels/train/a.png"))
    colors = np.reshape(label.getpalette(), (-1, 3)).tolist()
    assert colors[:2] == [list(color) for color in result.config.data.folder.palette]
    assert colors[255] not in colors[:2]


def test_any_class_name_survives_in_the_config(source, convert):
    """Quotes, braces, code and control characters are names like others."""
    names = ['"', "'", "\\", '"""\n', "{x}", "\u202e", "\x1b[2J", "日本", "__import__('os')"]
    write_image(source / "a.jpg")
    content = coco(["a.jpg"], [annotation(1, 0, [box(0, 0, 4, 4)])], dict(enumerate(names)))
    write_json(source / "train.json", content)
    result = convert("coco")
    assert result.config.data.folder.classes == ("background", *names)
    assert "\x1b" not in result.stdout + result.stderr


def test_the_source_is_never_written_to(source, tmp_path, refuse):
    write_coco(source)
    before = contents(source)
    for output in source, source / "new", tmp_path:
        assert "nothing is written into the source" in refuse("coco", output)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/images").symlink_to(source / "images")
    assert "images or labels that these annotations do not lead to" in refuse("coco", tmp_path / "linked")
    (tmp_path / "empty").mkdir()
    (tmp_path / "linked2").mkdir()
    (tmp_path / "linked2/labels").symlink_to(tmp_path / "empty")
    assert "leads out of" in refuse("coco", tmp_path / "linked2")
    assert contents(source) == before and not list((tmp_path / "empty").iterdir())


def test_files_of_earlier_annotations_are_refused(source, convert, tmp_path):
    """They would count as data."""
    write_coco(source)
    result = convert("coco")
    (source / "images/train2017/000000000001.jpg").unlink()
    arguments = "--from=coco", f"--source={source}", f"--output={result.folder}"
    code, _, err = run_inside(*arguments, module="prepare")
    assert code == 1 and "holds 2 images or labels that these annotations do not lead to" in unwrapped(err)


def test_names_become_plain_different_file_names():
    names = [
        "a.jpg",
        "a.png",
        "b/a.jpg",
        "b_a.JPG",
        "../../x.jpg",
        "/etc/y.jpeg",
        "..",
        "",
        ".hidden.png",
        "p.q",
        "n" * 300,
    ]
    given = writing.file_names(names)
    assert given[:6] == ["a", "a_2", "b_a", "b_a_2", "x", "etc_y"]
    assert given[6:10] == ["image", "image_2", "_hidden", "p.q"] and len(given[10]) == writing.MAX_NAME_BYTES


@pytest.mark.parametrize(
    "args, code, message",
    [
        (["--from=coco", "--source=x"], 2, "--output is missing"),
        (["--output=x", "--source=x"], 2, "--from is missing"),
        (["--from=voc", "--source=x", "--output=y"], 2, "should be one of"),
        (["--from=coco", "--source=x", "--output=y", "--check"], 2, "--check cannot be combined with --from"),
        (["--from=coco", "--source=x", "--output=y", "--splits=val"], 2, "--splits cannot be combined with --from"),
        (["--from=coco", "--source=x", "--output=y", "--dataset=camvid"], 2, "--dataset cannot be combined"),
        (["--from=coco", "--source=/nonexistent", "--output=y"], 1, "is not a folder"),
    ],
)
def test_wrong_arguments_are_explained(args, code, message):
    returned, out, err = run_inside(*args, module="prepare")
    assert returned == code and not out and "Traceback" not in err
    assert message in unwrapped(err), err
