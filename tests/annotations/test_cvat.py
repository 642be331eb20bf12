"""CVAT's XML: shapes, order, subsets, colours, and hostile files."""

import numpy as np
import pytest
from annotation_trees import HEIGHT, WIDTH, cvat, filled, shape, write_image

LABELS = {"road": "#ff0000", "car": "#00ff00"}


def write(source, images, labels=None, **subsets):
    """annotations.xml, and images beside it."""
    for name in images:
        write_image(source / "images" / name)
    (source / "annotations.xml").write_text(cvat(images, labels or LABELS, **subsets))


def box(label, left, top, right, bottom, z_order=0, **attributes):
    return shape("box", label, z_order, xtl=left, ytl=top, xbr=right, ybr=bottom, **attributes)


def test_shapes_of_every_kind(source, convert):
    shapes = [
        shape("polygon", "car", points="1.00,1.00;5.00,1.00;5.00,4.00;1.00,4.00"),
        box("road", 10, 2, 20, 6, rotation=90),
        shape("ellipse", "car", cx=22, cy=14, rx=6, ry=3),
        shape("mask", "road", rle="1, 2, 2, 1", left=1, top=10, width=3, height=2),
        shape("polyline", "car", points="0,0;9,9"),
        shape("cuboid", "car", xtl1=1),
        '<tag label="car" source="manual"></tag>',
    ]
    write(source, {"a.jpg": shapes})
    result = convert("cvat")
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    expected = filled((2, 1, 1, 5, 4), (1, 13, 0, 17, 9), (1, 2, 10, 4, 11), (1, 3, 11, 4, 12))
    expected[((x - 22) / 6) ** 2 + ((y - 14) / 3) ** 2 <= 1] = 2
    np.testing.assert_array_equal(result.label("train/a"), expected)
    folder = result.config.data.folder
    assert folder.classes == ("background", "road", "car")
    assert folder.palette == ((0, 0, 0), (255, 0, 0), (0, 255, 0))
    for kind in "polyline", "cuboid":
        assert f"shapes of the type {kind}, which have no filled area and are not drawn: 1 (a.jpg)" in result.stderr


def test_z_order_comes_before_the_order_of_the_file(source, convert):
    boxes = [box("car", 0, 0, 9, 9, 5), box("road", 5, 5, 12, 12, 5), box("car", 3, 3, 15, 15, -1)]
    write(source, {"a.jpg": boxes, "b.jpg": boxes[:1]})
    result = convert("cvat")
    expected = filled((2, 3, 3, 15, 15), (2, 0, 0, 9, 9), (1, 5, 5, 12, 12))
    np.testing.assert_array_equal(result.label("train/a"), expected)
    share = 100 * 49 / (2 * HEIGHT * WIDTH)
    assert f"overlap in {share:.2g} % of the pixels: shapes are drawn by z_order" in result.stdout


def test_subsets_are_splits(source, convert):
    """Images may lie in a folder of their subset, or below one of their own."""
    names = "a.jpg", "b.jpg", "c/d.jpg"
    write(source, dict.fromkeys(names, [box("car", 0, 0, 9, 9)]), a="Train", b="Validation", d="My set")
    (source / "images/Validation").mkdir()
    (source / "images/b.jpg").rename(source / "images/Validation/b.jpg")
    result = convert("cvat")
    assert result.names == ["my_set/c_d", "train/a", "val/b"]
    assert set(result.config.data.folder.splits) == {"train", "val", "my_set"}


def test_colours_that_are_not_distinct_are_replaced(source, convert):
    write(source, {"a.jpg": [box("car", 0, 0, 9, 9)]}, {"road": "#ff0000", "car": "#ff0000", "BACKGROUND": "#010203"})
    folder = convert("cvat").config.data.folder
    assert folder.classes == ("BACKGROUND", "road", "car")
    assert len(set(folder.palette)) == 3 and (255, 0, 0) not in folder.palette


def test_other_xml_files_are_passed_over(source, convert):
    write(source, {"a.jpg": [box("car", 0, 0, 9, 9)], "gone.jpg": []})
    (source / "images/gone.jpg").unlink()
    (source / "voc.xml").write_text("<annotation><size/></annotation>")
    result = convert("cvat")
    assert "XML files passed over: they are not of CVAT for images: 1 (voc.xml)" in result.stderr
    assert "images that are not on disk and are left out: 1 (gone.jpg)" in result.stderr


@pytest.mark.parametrize(
    "image, message",
    [
        (box("bus", 0, 0, 9, 9), "a label that annotations.xml does not declare: 1 (bus in a.jpg)"),
        (box("car", 0, "x", 9, 9), "shapes without numbers xtl, ytl, xbr, ybr: 1 (a.jpg)"),
        (box("car", 0, 0, 9, 9, rotation="nan"), "not finite: 1 (a.jpg)"),
        (box("car", 0, 0, 9, 9, z_order="9" * 50), "shapes without an integer z_order: 1 (a.jpg)"),
        (shape("polygon", "car", points="1,1;2"), "coordinates that are not numbers: 1 (a.jpg)"),
        (shape("polygon", "car", points=""), "coordinates that are not numbers: 1 (a.jpg)"),
        (shape("mask", "car", rle="1,2", left=0, top=0, width=3, height=2), "do not add up to their size: 1"),
        (shape("mask", "car", rle="1,x", left=0, top=0, width=3, height=2), "invalid run lengths"),
        (shape("mask", "car", rle="9", left=0, top=0, width=10**8, height=10**8), "an invalid size"),
    ],
)
def test_shapes_that_cannot_be_drawn_are_refused(source, refuse, image, message):
    write(source, {"a.jpg": [image]})
    assert message in refuse("cvat")


ENTITIES = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotations>&b;</annotations>'
EXTERNAL = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotations>&a;</annotations>'


@pytest.mark.parametrize(
    "text, message",
    [
        (ENTITIES, "declares entities or a document type"),
        (EXTERNAL, "declares entities or a document type"),
        ("<annotations>" + "<a>" * 100, "is nested too deeply"),
        ("<annotations><image>", "is not an XML file"),
        ("", "is not an XML file"),
        ('<?xml version="1.0" encoding="nonsense"?><annotations/>', "is not an XML file"),
        ('<annotations><track id="0"/></annotations>', "CVAT for video"),
        ("<annotations/>", "There is no annotations.xml"),
    ],
)
def test_files_of_another_kind_are_refused(source, refuse, text, message):
    (source / "annotations.xml").write_text(text)
    assert message in refuse("cvat")
