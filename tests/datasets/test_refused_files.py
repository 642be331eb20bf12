"""Image and label files that are refused, each with a message that names it."""

import contextlib
import io

import numpy as np
import pytest
from data_sets import expanded, write_palette_label
from PIL import Image

from isnet_jax import datasets
from isnet_jax.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest resets our own filter


def refused_twice(tree, *parts):
    """Prepares a CamVid tree twice, and asserts that both attempts fail alike and leave no data set.

    Asserts that the `parts` occur in the message or the lines reported before it; returns the lines with problems.
    """
    data_dir = tree.parent / "data"
    attempts = []
    for _ in range(2):
        with contextlib.redirect_stderr(io.StringIO()) as reported, pytest.raises(UserError) as error:
            datasets.load("camvid", data_dir, tree)
        assert "\n" not in str(error.value)
        assert not (data_dir / "camvid/1.0.0").exists() and not list(data_dir.glob("camvid/incomplete*"))
        problems = [line for line in reported.getvalue().splitlines() if line.startswith("problem: ")]
        attempts.append([*problems, str(error.value)])
    assert [*map(expanded, attempts[0])] == [*map(expanded, attempts[1])]
    for part in parts:
        assert str(part) in "\n".join(attempts[0]), attempts[0]
    return attempts[0][:-1]


def test_survey_refuses_a_missing_source(tmp_path):
    refused_twice(tmp_path / "nowhere", tmp_path / "nowhere", "is not a folder")


def test_survey_refuses_a_missing_split(tree):
    (tree / "val").rename(tree / "validation")
    refused_twice(tree, "1 problem,", tree / "val/images is missing")


def test_survey_refuses_missing_partners(tree):
    (tree / "train/images/b.jpg").write_bytes((tree / "train/images/a.jpg").read_bytes())
    (tree / "test/labels/c.png").write_bytes((tree / "test/labels/a.png").read_bytes())
    refused_twice(tree, "2 problems", "train/images/b.jpg has no label b.png", "test/labels/c.png has no image c")


def test_survey_refuses_two_images_of_the_same_name(tree):
    (tree / "train/images/a.png").write_bytes((tree / "test/images/a.png").read_bytes())
    refused_twice(tree, "1 problem,", "a.png beside it have the same name")


@pytest.mark.parametrize("keep", [0, 10, 0.5, -40])
def test_survey_refuses_truncated_files(tree, keep):
    files = tree / "train/images/a.jpg", tree / "val/labels/a.png", tree / "test/images/a.png"
    for file in files:
        data = file.read_bytes()
        file.write_bytes(data[: int(keep * len(data)) if keep == 0.5 else keep])
    refused_twice(tree, "3 problems", *files)


def test_survey_refuses_a_file_that_is_not_an_image(tree):
    (tree / "train/images/a.jpg").write_text("hello")
    refused_twice(tree, "1 problem,", "train/images/a.jpg is not a readable JPEG, PNG, WEBP")


@pytest.mark.parametrize("side", [10_001, 20_000])  # below and above Pillow's own limit
def test_survey_refuses_too_many_pixels(tree, side):
    Image.new("1", (side, side)).save(tree / "train/images/b.png")
    (tree / "train/labels/b.png").write_bytes((tree / "train/labels/a.png").read_bytes())
    refused_twice(tree, "train/images/b.png has more than 100 megapixels")


def test_survey_refuses_a_label_of_another_size(tree):
    write_palette_label(tree / "val/labels/a.png", np.zeros((30, 20)))
    refused_twice(tree, "val/images/a.JPG is 20 x 30", "val/labels/a.png is 30 x 20")


def test_survey_refuses_a_colour_label(tree):
    Image.open(tree / "val/labels/a.png").convert("RGB").save(tree / "val/labels/a.png")
    refused_twice(tree, "val/labels/a.png is a colour image with 12 colours")


def test_survey_refuses_a_jpeg_label(tree):
    Image.new("L", (30, 20)).save(tree / "val/labels/a.png", "JPEG")
    refused_twice(tree, "val/labels/a.png is a JPEG, whose compression changes the values")


@pytest.mark.parametrize("value", [12, 255])
def test_survey_refuses_illegal_label_values(tree, value):
    index = np.zeros((20, 30))
    index[7, 9] = index[8, 2] = value
    write_palette_label(tree / "test/labels/a.png", index)
    text = f"not labels: {value}, in 2 pixels, the first at row 7, column 9"
    refused_twice(tree, tree / "test/labels/a.png", text, "0..11")


def test_survey_lists_every_problem(tree):
    for i in range(30):
        (tree / f"val/images/x{i:02d}.png").write_bytes(b"")
        write_palette_label(tree / f"val/labels/x{i:02d}.png", np.zeros((20, 30)))
    (line,) = refused_twice(tree, "has 30 problems")
    text = f"problem: {tree}/val/images/x00.png is empty. The same holds for x01.png, x02.png and 27 more; "
    assert line.startswith(text)
    assert expanded(line) == [f"problem: {tree}/val/images/x{i:02d}.png is empty." for i in range(30)]
