"""The files that `predict` finds in what it is given, and what it says of the others."""

from pathlib import Path

import pytest

from isnet_jax.errors import UserError
from isnet_jax.evaluation import prediction_inputs


def write(root, *names):
    """Empty files."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def find(*inputs):
    """The names of the images, and the number of other files."""
    images, passed_over = prediction_inputs.find_images(inputs)
    return sorted(map(str, images)), dict(passed_over)


def test_files_that_are_no_images_are_counted_by_suffix(tmp_path):
    names = "a.jpg", "b.JFIF", "c.jpe", "d.TIF", "e.gif", "f.heic", "g.HEIC", "h.mp4", "notes", ".DS_Store", ".x/i.png"
    images, passed_over = find(write(tmp_path, *names))
    assert images == ["a", "b", "c", "d", "e"]
    assert passed_over == {".heic": 2, ".mp4": 1, "without suffix": 1}
    text = prediction_inputs.describe(passed_over)
    assert text.startswith("2 .heic, 1 .mp4, 1 without suffix; ") and "ffmpeg" in text and "heif-convert" in text
    assert prediction_inputs.describe({".txt": 3}) == "3 .txt"


def test_links_are_followed_and_each_folder_is_visited_once(tmp_path):
    write(tmp_path, "real/sub/a.jpg", "elsewhere/b.jpg", "photos/c.jpg")
    (tmp_path / "photos/link").symlink_to(tmp_path / "real")
    (tmp_path / "photos/file.jpg").symlink_to(tmp_path / "elsewhere/b.jpg")
    (tmp_path / "photos/loop").symlink_to(tmp_path / "photos")
    (tmp_path / "real/sub/up").symlink_to(tmp_path / "real")
    assert find(tmp_path / "photos")[0] == ["c", "file", "link/sub/a"]


def test_videos_are_told_how_to_be_cut(tmp_path):
    write(tmp_path, "film.MP4", "only/film.mov")
    with pytest.raises(UserError, match="film.MP4 is a video: cut videos into frames, as ffmpeg -i VIDEO"):
        find(tmp_path / "film.MP4")
    with pytest.raises(UserError, match=r"only holds no images .*: it holds 1 .mov; cut videos into frames"):
        find(tmp_path / "only")


def test_files_given_by_name_are_taken_whatever_their_suffix(tmp_path):
    assert find(write(tmp_path, "photo.dat") / "photo.dat") == (["photo"], {})


def test_names_too_long_for_predictions_are_refused_first(tmp_path):
    name = "x" * 245 + ".jpg"
    images, _ = prediction_inputs.find_images([write(tmp_path / "in", name)])
    with pytest.raises(UserError, match="is too long for x+(_overlay.jpg|.png), its prediction"):
        prediction_inputs.check_output(tmp_path / "out", images, [tmp_path / "in"])
    images = {Path("x" * 230): Path("x")}
    prediction_inputs.check_output(tmp_path / "out", images, [tmp_path / "in"])


def test_images_of_one_name_are_written_apart(tmp_path):
    write(tmp_path, "a/x.jpg", "a/x.png", "a/y.jpg", "b/y.jpg", "b/z.jpg")
    assert find(tmp_path / "a", tmp_path / "b") == (["a/y.jpg", "b/y.jpg", "x.jpg", "x.png", "z"], {})
    assert find(tmp_path / "a/y.jpg", tmp_path / "a/y.jpg") == (["y"], {})
    write(tmp_path, "one/b/y.jpg", "two/b/y.jpg")
    with pytest.raises(UserError, match="would both be written to b/y.jpg.png"):
        find(tmp_path / "one/b/y.jpg", tmp_path / "two/b/y.jpg")


def test_patterns_in_quotes(tmp_path, monkeypatch):
    write(tmp_path, "photos/a.jpg", "photos/deep/er/b.JPG", "photos/c.txt", "photos/[x].png")
    monkeypatch.chdir(tmp_path)
    assert find("photos/*") == (["[x]", "a"], {".txt": 1})
    assert find("photos/**/*.[jJ]*") == (["a", "deep/er/b"], {})
    assert find("photos/[x].png") == (["[x]"], {})  # a file of this name
    with pytest.raises(UserError, match=r"The pattern photos/\*.gif holds no images"):
        find("photos/*.gif")
    with pytest.raises(UserError, match=r"The pattern photos/\*.txt holds no images .*: it holds 1 .txt"):
        find("photos/*.txt")
