"""labelme's files: shapes, labels with a meaning, splits, images that are embedded, moved or missing."""

import base64
import io

import numpy as np
import pytest
from annotation_trees import HEIGHT, WIDTH, base64_png, filled, labelme, write_image, write_json
from PIL import Image
from readers.samples import encode, noise

ORIENTATION = 274  # the EXIF tag


def write(source, name, shapes, **fields):
    """NAME.json beside NAME.jpg."""
    write_image(source / f"{name}.jpg")
    write_json(source / f"{name}.json", labelme(f"{name.rpartition('/')[2]}.jpg", shapes, **fields))


def rectangle(label, left, top, right, bottom):
    return label, "rectangle", [[right, top], [left, bottom]]


def test_later_shapes_lie_on_earlier_ones(source, convert):
    """Classes are sorted by name after the background."""
    polygon = "cat", "polygon", [[2, 2], [6, 2], [6, 7], [2, 7]]
    write(source, "a", [rectangle("dog", 0, 0, 9, 5), polygon, rectangle("_background_", 3, 3, 5, 5)])
    write(source, "b", [polygon, rectangle("dog", 0, 0, 9, 5), rectangle("__ignore__", 8, 0, 9, 1)])
    result = convert("labelme")
    expected = filled((2, 0, 0, 9, 5), (1, 2, 2, 6, 7), (0, 3, 3, 5, 5))
    np.testing.assert_array_equal(result.label("train/a"), expected)
    expected = filled((1, 2, 2, 6, 7), (2, 0, 0, 9, 5), (255, 8, 0, 9, 1))
    np.testing.assert_array_equal(result.label("train/b"), expected)
    assert result.config.data.folder.classes == ("background", "cat", "dog")
    assert "shapes are drawn in the order of the file, later ones on top" in result.stdout
    assert result.config.data.eval_split == "train"
    assert (
        "{'train': ('images/train', 'labels/train', 0.9), 'val': ('images/train', 'labels/train', 0.1)}"
        in result.stdout
    )


def test_shapes_of_every_type(source, convert):
    mask = np.tri(4, 5) > 0
    write(source, "a", [("c", "circle", [[20, 10], [24, 13]])])
    content = labelme("a.jpg", [("m", "mask", [[3, 4], [7, 7]]), ("c", "circle", [[20, 10], [23, 14]])])
    content["shapes"][0]["mask"] = base64_png(mask)
    content["shapes"] += labelme("", [("o", "oriented_rectangle", [[10, 0], [12, 0], [12, 2], [10, 2]])])["shapes"]
    for kind, points in ("line", [[0, 0], [9, 9]]), ("point", [[1, 1]]), ("linestrip", [[0, 0], [9, 9]]):
        content["shapes"] += labelme("", [("thin", kind, points)])["shapes"]
    content["shapes"][1]["shape_type"] = "circle"
    content["shapes"].append({"label": "p", "points": [[0, 15], [4, 15], [4, 19], [0, 19]]})  # of an early version
    write_json(source / "a.json", content)
    result = convert("labelme")
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    expected = np.where(np.hypot(x - 20, y - 10) <= 5, 1, filled((3, 10, 0, 12, 2), (4, 0, 15, 4, 19)))
    expected[4:8, 3:8] = np.where(mask, 2, 0)
    np.testing.assert_array_equal(result.label("train/a"), expected)
    assert result.config.data.folder.classes == ("background", "c", "m", "o", "p")
    for kind in "line", "point", "linestrip":
        assert f"shapes of the type {kind}, which have no area and are not drawn: 1 (a)" in result.stderr


def test_folders_of_splits(source, convert):
    """Files at any depth; what lies outside of the splits is counted."""
    for name in "train/a", "train/day/a", "valid/a", "b":
        write(source, name, [rectangle("x", 0, 0, 4, 4)])
    write(source, "train/empty", [])
    write_image(source / "valid/unlabelled.png")
    result = convert("labelme")
    assert result.names == ["train/a", "train/day_a", "train/empty", "val/a"]
    assert not result.label("train/empty").any()
    for line in (
        "files outside the folders of splits, which are left out: 1 (b.json)",
        "images without a shape, which are all background: 1 (empty)",
        "images without a labelme file, which are left out: 2 (b.jpg, valid/unlabelled.png)",
    ):
        assert f"note: {line}\n" in result.stderr, result.stderr
    assert (result.folder / "images/train/day_a.jpg").resolve() == source / "train/day/a.jpg"


def test_images_are_found_where_windows_or_a_move_left_them(source, convert):
    write_image(source / "images/a.jpg")
    write_json(source / "labels/a.json", labelme("..\\images\\a.jpg", [rectangle("x", 0, 0, 4, 4)]))
    write_image(source / "labels/b.png")
    write_json(source / "labels/b.json", labelme("C:\\Users\\me\\other.jpg", [rectangle("x", 0, 0, 4, 4)]))
    result = convert("labelme")
    assert (result.folder / "images/train/labels_a.jpg").resolve() == source / "images/a.jpg"
    assert (result.folder / "images/train/labels_b.png").resolve() == source / "labels/b.png"


def test_embedded_images_are_used_where_the_file_is_missing(source, convert):
    data = encode(noise(HEIGHT, WIDTH), "PNG")
    write_json(
        source / "a.json", labelme("a.bmp", [rectangle("x", 0, 0, 4, 4)], imageData=base64.b64encode(data).decode())
    )
    write_json(source / "gone.json", labelme("gone.jpg", [rectangle("x", 0, 0, 4, 4)]))
    result = convert("labelme")
    assert (result.folder / "images/train/a.png").read_bytes() == data
    assert result.names == ["train/a"]
    assert "labelme files whose image is not on disk, which are left out: 1 (gone)" in result.stderr


@pytest.mark.parametrize(
    "shape, message",
    [
        (("", "polygon", [[0, 0], [1, 0], [1, 1]]), "shapes without a label: 1 (a)"),
        (("x", "polygon", [[0, 0], [1, 1]]), "polygons of fewer than 3 points, which are not drawn: 1 (a)"),
        (("x", "polygon", [[0, 0], [1, None], [1, 1]]), "not finite: 1 (a)"),
        (("x", "polygon", 7), "not pairs: 1 (a)"),
        (("x", "rectangle", [[0, 0]]), "rectangles without 2 points: 1 (a)"),
        (("x", "circle", [[0, 0], [0, 0]]), "ellipses without an area, which are not drawn: 1 (a)"),
        (("x", "cube", [[0, 0], [1, 1]]), "shapes of an unknown type: 1 (a)"),
        (("x", "mask", [[0, 0], [1, 1]]), "masks that are no readable PNG: 1 (a)"),
        (("\ud800", "rectangle", [[0, 0], [1, 1]]), "a name must be UTF-8"),
        (("__ignore__", "rectangle", [[0, 0], [1, 1]]), "have 0 classes besides the background"),
    ],
)
def test_shapes_that_cannot_be_drawn_are_refused(source, refuse, shape, message):
    write(source, "a", [shape])
    assert message in refuse("labelme")


def test_images_that_exif_turns_are_annotated_as_seen(source, convert):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    write(source, "a", [rectangle("x", 0, 0, 4, 9)])
    write_image(source / "a.jpg", height=WIDTH, width=HEIGHT, exif=exif)
    result = convert("labelme")
    np.testing.assert_array_equal(result.label("train/a"), filled((1, 0, 0, 4, 9)))
    assert result.config.data.folder.exif


def test_images_that_do_not_fit_are_refused(source, refuse):
    for i in range(5):
        write(source, f"a{i}", [rectangle("x", 0, 0, 4, 4)])
        write_image(source / f"a{i}.jpg", height=HEIGHT + 1)
    assert "images of another size than annotated: 5 (a0, a1, a2, ...)" in refuse("labelme")
    stream = io.BytesIO()
    noise(HEIGHT, WIDTH).save(stream, "PPM")
    for path in source.glob("*.jpg"):
        path.write_bytes(stream.getvalue())
    assert "files: convert them: 5" in refuse("labelme")


def test_a_source_without_labelme_files_is_refused(source, refuse):
    write_json(source / "a.json", {"images": []})
    assert "There is no labelme file in" in refuse("labelme")
    write(source, "b", [rectangle("x", 0, 0, 4, 4)])
    (source / "b.jpg").unlink(missing_ok=True)
    assert "There is no labelme file whose image is on disk in" in refuse("labelme")


def test_damaged_files_are_one_line(source, refuse):
    for i in range(5):
        write(source, f"a{i}", [rectangle("x", 0, 0, 4, 4)])
        (source / f"a{i}.json").write_text("{" * i)
    said = refuse("labelme")
    assert (
        "JSON files that cannot be used: 5 (" in said and said.count("is not a JSON file") == 6
    )  # listed, then the error
    for i in range(5):
        write_json(source / f"a{i}.json", labelme("", [rectangle("x", 0, 0, 4, 4)], imageData="AAAA" if i else "A"))
        (source / f"a{i}.jpg").unlink()
    said = refuse("labelme")
    assert "embedded images (imageData) that are damaged: 1 (a0)" in said
    assert "files: convert them: 4 (a1, a2, a3, ...)" in said
