"""COCO files: whose objects become which pixels, and what is said of the others."""

import numpy as np
import pytest
from annotation_trees import HEIGHT, WIDTH, annotation, box, coco, filled, write_coco, write_image, write_json
from PIL import Image
from pycocotools import mask as coco_mask

from isnet_jax.annotations import coco as coco_reader

CAT, DOG, CROWD = 3, 7, 255
ORIENTATION = 274  # the EXIF tag


def write(source, annotations, categories=None, names=("a.jpg",), **size):
    """A file train.json beside its images."""
    for name in names:
        write_image(source / name)
    write_json(source / "train.json", coco(names, annotations, categories or {DOG: "dog", CAT: "cat"}, **size))


def test_smaller_objects_lie_on_larger_ones(source, convert):
    """Whatever their order in the file; ids with gaps are numbered in their order."""
    write_coco(source)
    result = convert("coco")
    assert result.names == [f"{split}/{i:012d}" for split in ("train", "val") for i in range(2)]
    expected = filled((2, 1, 1, 11, 9), (1, 2, 2, 6, 6))
    for name in result.names:
        np.testing.assert_array_equal(result.label(name), expected)
    c = result.config
    assert c.model.num_classes == 3 and c.data.folder.classes == ("background", "cat", "dog")
    assert c.data.folder.splits.to_dict() == {s: (f"images/{s}", f"labels/{s}") for s in ("train", "val")}
    assert c.data.eval_split == "val" and c.data.folder.palette[0] == (0, 0, 0) and len(c.data.folder.palette) == 3
    link = result.folder / "images/train/000000000000.jpg"
    assert link.is_symlink() and link.resolve() == source / "images/train2017/000000000000.jpg"
    share = 100 * 16 / (HEIGHT * WIDTH)
    assert f"overlap in {share:.2g} % of the pixels: larger objects are drawn first" in result.stdout


def test_masks_of_every_kind_are_drawn(source, convert):
    """Two polygons of an object, run lengths, compressed run lengths."""
    mask = np.asfortranarray(filled((1, 20, 10, 25, 18)))
    other = np.asfortranarray(filled((1, 12, 12, 16, 15)))
    counts = np.diff(np.flatnonzero(np.diff(np.r_[0, other.ravel("F"), 0])), prepend=0).tolist()
    counts.append(other.size - sum(counts))
    size = [HEIGHT, WIDTH]
    compressed = {"size": size, "counts": coco_mask.encode(mask)["counts"].decode()}
    write(
        source,
        [
            annotation(1, CAT, [box(0, 0, 3, 3), box(5, 5, 9, 9)]),
            annotation(1, DOG, compressed),
            annotation(1, DOG, {"size": size, "counts": counts}),
        ],
    )
    expected = filled((1, 0, 0, 3, 3), (1, 5, 5, 9, 9), (2, 20, 10, 25, 18), (2, 12, 12, 16, 15))
    np.testing.assert_array_equal(convert("coco").label("train/a"), expected)


def test_crowds_are_ignored_where_no_object_lies(source, convert):
    crowd = coco_mask.encode(np.asfortranarray(filled((1, 0, 0, 10, 10))))["counts"].decode()
    write(
        source,
        [
            annotation(1, CAT, [box(0, 0, 20, 5)]),
            annotation(1, DOG, {"size": [HEIGHT, WIDTH], "counts": crowd}, iscrowd=1),
        ],
    )
    result = convert("coco")
    np.testing.assert_array_equal(result.label("train/a"), filled((CROWD, 0, 0, 10, 10), (1, 0, 0, 20, 5)))
    assert "note: crowd regions (iscrowd=1): ignored (255) where no object lies: 1 (annotation 2)" in result.stderr
    assert "note: categories without an object, which stay classes: 1 (dog)" in result.stderr


def test_a_category_background_is_class_0(source, convert):
    write(
        source, [annotation(1, 1, [box(0, 0, 9, 9)]), annotation(1, 2, [box(1, 1, 3, 3)])], {1: "road", 2: "Background"}
    )
    result = convert("coco")
    assert result.config.data.folder.classes == ("Background", "road")
    np.testing.assert_array_equal(result.label("train/a"), filled((1, 0, 0, 9, 9), (0, 1, 1, 3, 3)))


def test_categories_of_one_name_are_one_class(source, convert):
    write(source, [annotation(1, i, [box(i, 0, i + 1, 1)]) for i in (1, 2, 4)], {1: "cat", 2: "dog", 4: "cat"})
    result = convert("coco")
    np.testing.assert_array_equal(result.label("train/a"), filled((1, 1, 0, 2, 1), (2, 2, 0, 3, 1), (1, 4, 0, 5, 1)))
    assert "categories with the name of another, which become one class with it: 1 (cat)" in result.stderr


def test_what_is_not_drawn_is_counted(source, convert):
    """Boxes, degenerate polygons, images without an object, images that are missing."""
    write(
        source,
        [annotation(1, CAT, [box(0, 0, 3, 3)])]
        + [annotation(1, DOG, empty) for empty in ([], [], None, [])]
        + [annotation(1, DOG, [[1, 1, 2, 2]])],
        names=("a.jpg", "b.jpg", "gone.jpg"),
    )
    (source / "gone.jpg").unlink()
    result = convert("coco")
    assert result.names == ["train/a", "train/b"]
    assert not result.label("train/b").any()
    for line in (
        "boxes of train.json without a segmentation: ignored (255) where no object lies: 4 (annotation 2, "
        "annotation 3, annotation 4, ...)",
        "polygons of train.json with fewer than 3 points, which are not drawn: 1 (annotation 6)",
        "images of train without an object, which are all background: 1 (b.jpg)",
        "images of train.json that are not on disk and are left out: 1 (gone.jpg)",
    ):
        assert f"note: {line}\n" in result.stderr, result.stderr


def test_roboflow_and_other_layouts_are_found(source, convert):
    """_annotations.coco.json in folders of splits; the images of a file may have folders in their names."""
    for split in "train", "valid":
        names = ["x.rf.0a.jpg", "sub/x.jpg", "sub_x.jpg"]
        for name in names:
            write_image(source / split / name)
        content = coco(names, [annotation(1, 1, [box(0, 0, 5, 5)])], {0: "pets", 1: "cat"})
        write_json(source / split / "_annotations.coco.json", content)
    write_json(source / "package.json", {"images": []})
    result = convert("coco")
    assert result.names == [f"{split}/{name}" for split in ("train", "val") for name in ("sub_x", "sub_x_2", "x.rf.0a")]
    assert (result.folder / "images/val/sub_x.jpg").resolve() == source / "valid/sub/x.jpg"
    assert result.config.data.folder.classes == ("background", "pets", "cat")
    assert "JSON files passed over: they lack images, annotations or categories: 1 (package.json)" in result.stderr


def test_instances_come_before_keypoints_and_captions(source, convert):
    write_coco(source, ["train"])
    (source / "annotations/person_keypoints_train2017.json").write_text("{")
    (source / "annotations/captions_train2017.json").write_text("{")
    assert "since there are files instances_*.json: 2 (captions" in convert("coco").stderr


@pytest.mark.parametrize(
    "change, messages",
    [
        (
            lambda c: c["annotations"].extend(annotation(i, CAT, [box(0, 0, 1, 1)], id=i) for i in range(20, 25)),
            ["annotations of images that train.json does not list: 5 (annotation 20, annotation 21, ", "22, ...)"],
        ),
        (
            lambda c: c["annotations"].append(annotation(1, 99, [box(0, 0, 1, 1)], id="x")),
            ["annotations of categories that train.json does not list: 1 (annotation 'x')"],
        ),
        (lambda c: c["images"][0].update(height=HEIGHT + 1), ["images of another size than annotated: 1 (a.jpg)"]),
        (lambda c: c["images"].append({**c["images"][0], "id": 2}), ["images of train that are annotated twice: 1"]),
        (lambda c: c["images"].append(c["images"][0]), ["ids that two images of train.json share: 1 (1)"]),
        (lambda c: c["categories"].append({"id": CAT, "name": "x"}), ["ids that two categories of train.json share"]),
        (lambda c: c["annotations"].clear(), ["without an object that can be drawn"]),
        (lambda c: c.update(categories=[]), ["categories that train.json does not list"]),
        (lambda c: c["categories"][0].update(name=" "), ["a name must be UTF-8 text"]),
        (lambda c: c["images"][0].update(file_name="../outside.jpg"), ["splits without an image on disk: 1 (train)"]),
        (
            lambda c: c["annotations"][0].update(segmentation=[[0, 0, 1e300, 0, 0, 5]]),
            ["objects with coordinates beyond 131000, or not finite, in train.json: 1 (annotation 1)"],
        ),
        (
            lambda c: c["annotations"][0].update(segmentation={"size": [2, 2], "counts": [1, 3]}),
            ["masks of another size than their image: 1 (a.jpg)"],
        ),
    ],
)  # fmt: skip
def test_files_that_contradict_themselves_are_refused(source, refuse, change, messages):
    write_image(source.parent / "outside.jpg")
    write_image(source / "a.jpg")
    content = coco(["a.jpg"], [annotation(1, CAT, [box(0, 0, 4, 4)])], {CAT: "cat"})
    change(content)
    write_json(source / "train.json", content)
    said = refuse("coco")
    for message in messages:
        assert message in said, said


@pytest.mark.parametrize("turned", [True, False])
def test_the_annotated_size_says_whether_exif_was_applied(source, convert, turned):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    write(source, [annotation(1, CAT, [box(0, 0, 4, 9)])])
    write_image(source / "a.jpg", exif=exif, **({"height": WIDTH, "width": HEIGHT} if turned else {}))
    result = convert("coco")
    np.testing.assert_array_equal(result.label("train/a"), filled((1, 0, 0, 4, 9)))
    assert result.config.data.folder.exif == turned


def test_images_whose_size_tells_speak_for_those_whose_size_does_not(source, convert):
    """A turn by 180 degrees leaves the size as it is."""
    write(source, [annotation(i, CAT, [box(0, 0, 4, 9)]) for i in (1, 2)], names=("a.jpg", "b.jpg"))
    for name, orientation, size in ("a", 6, {"height": WIDTH, "width": HEIGHT}), ("b", 3, {}):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        write_image(source / f"{name}.jpg", exif=exif, **size)
    assert convert("coco").config.data.folder.exif


def test_boxes_without_a_segmentation_are_ignored_where_no_object_lies(source, convert):
    boxed = annotation(1, CAT, []) | {"bbox": [2, 3, 10, 8]}
    write(source, [boxed, annotation(1, DOG, [box(4, 4, 6, 6)])])
    np.testing.assert_array_equal(convert("coco").label("train/a"), filled((255, 2, 3, 12, 11), (2, 4, 4, 6, 6)))


def test_a_conversion_that_fails_leaves_no_config_of_other_classes(source, convert, refuse):
    write(source, [annotation(1, CAT, [box(0, 0, 4, 4)])])
    folder = convert("coco").folder
    bad = {"size": [HEIGHT + 1, WIDTH], "counts": [(HEIGHT + 1) * WIDTH]}
    write(source, [annotation(1, CAT, [box(0, 0, 4, 4)]), annotation(1, DOG, bad)], {CAT: "cat", DOG: "bird"})
    refuse("coco")
    assert not (folder / "config.py").exists() and (folder / "config.previous.py").exists()


def test_sets_of_turned_and_stored_images_are_refused(source, refuse):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    write(source, [annotation(i, CAT, [box(0, 0, 4, 9)]) for i in (1, 2)], names=("a.jpg", "b.jpg"))
    write_image(source / "a.jpg", exif=exif)
    write_image(source / "b.jpg", exif=exif, height=WIDTH, width=HEIGHT)
    assert "some images were annotated as EXIF turns them, and others as they are stored" in refuse("coco")


def test_two_files_of_a_split_are_refused(source, refuse):
    write_coco(source, ["train"])
    file = source / "annotations/instances_train2017.json"
    (source / "annotations/instances_train2014.json").write_bytes(file.read_bytes())
    assert "are both of the split train" in refuse("coco")


def test_files_that_are_too_large_damaged_or_missing_are_refused(source, refuse, monkeypatch):
    assert "There is no COCO file in" in refuse("coco")
    for content, message in (b"{", "is not a JSON file"), (b"[" * 10**5, "nested too deeply"), (b"\xff", "not a JSON"):
        (source / "train.json").write_bytes(content)
        assert message in refuse("coco")
    monkeypatch.setattr(coco_reader, "MAX_BYTES", 10)
    write_coco(source)
    assert "more than the 0 MB that an annotation file may have" in refuse("coco")
