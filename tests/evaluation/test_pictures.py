"""Sheets of image, ground truth and prediction, with names in any script."""

import numpy as np
import pytest

from isnet_jax.evaluation import fonts, pictures

PALETTE = [(255, 0, 0), (0, 255, 0)]


def sheet(*names):
    """A sheet of one small row."""
    classes = np.zeros((20, 30), np.uint8)
    row = np.zeros((20, 30, 3), np.uint8), classes, classes
    return np.asarray(pictures.comparison([row], PALETTE[: len(names)], names))


def test_columns_of_the_legend_are_as_wide_as_the_names():
    """So no name runs into the next, or out of the sheet."""
    long = "a very long name of a class, longer than all the panels together are wide"
    image = sheet("a", long)
    assert image.shape[1] >= fonts.width(long) + pictures.SWATCH
    ink = (image < 128).all(-1)
    assert ink.any() and not ink[:, -1].any()


@pytest.mark.parametrize("name", ["straße", "Straße é", "дорога", "路面", "طريق", "🚗", "\x1b[2J"])
def test_names_are_drawn_or_escaped_but_never_boxes(name):
    shown, font = fonts.choose(name)
    assert all(fonts.has_glyph(font, character) for character in shown)
    if shown != name:  # no font of this machine has all characters
        escaped = [character for character in name if not fonts.has_glyph(font, character)]
        assert escaped and all(ascii(character)[1:-1] in shown for character in escaped)
    assert sheet(name, "b").shape[1] > fonts.width(name)


def test_shrunk_rows_keep_their_proportions_and_classes():
    """Pixels of classes are chosen, never mixed; small rows stay as they are."""
    image, classes = np.full((100, 40, 3), 7, np.uint8), np.repeat([0, 255], 50)[:, None].repeat(40, 1).astype(np.uint8)
    row = image, classes, classes
    assert pictures.shrunk(row, 100) is row
    small, ground_truth, prediction = pictures.shrunk(row, 25)
    assert small.shape == (25, 10, 3) and (small == 7).all()
    np.testing.assert_array_equal(ground_truth[:, 0], np.repeat([0, 255], [12, 13]))
    assert ground_truth.shape == prediction.shape == (25, 10) and prediction.dtype == np.uint8
