"""Label files as people have them: what each becomes, and what is said about those that cannot be read."""

import contextlib
import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from containers import join_png
from data_sets import decode
from PIL import Image

from isnet_jax import config, datasets
from isnet_jax.errors import UserError

CLASSES = ("background", "road", "car")
PALETTE = ((0, 0, 0), (128, 0, 0), (0, 128, 0))
IDS = (np.arange(12 * 9).reshape(12, 9) // 7 % 3).astype(np.uint8)  # what every label below means


def save(pixels, path, mode=None, **options):
    """Writes pixels as an image file."""
    Image.fromarray(pixels, mode).save(path, **options)


def save_palette(ids, colors, path, **options):
    """Writes a palette image with the colours `colors` (n, 3)."""
    image = Image.fromarray(ids.astype(np.uint8), "P")
    image.putpalette(np.array(colors, np.uint8).tobytes())
    image.save(path, **options)


def save_bits(values, path, depth):
    """Writes a greyscale PNG of 2 or 4 bits a pixel."""
    height, width = values.shape
    per_byte = 8 // depth
    rows = np.pad(values, ((0, 0), (0, -width % per_byte))).reshape(height, -1, per_byte)
    packed = (rows << np.arange(8 - depth, -1, -depth)).sum(-1).astype(np.uint8)
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    rows = zlib.compress(np.pad(packed, ((0, 0), (1, 0))).tobytes())
    path.write_bytes(join_png([(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]))


def colored(ids, palette=PALETTE):
    """The colour mask uint8 (H, W, 3) of train ids."""
    return np.array(palette, np.uint8)[ids]


def write_tree(root, write, number=2, suffix=".png"):
    """A folder data set whose labels `write(path, i)` writes."""
    for kind in "images", "labels":
        (root / kind).mkdir(parents=True)
    for i in range(number):
        save(np.zeros((*IDS.shape, 3), np.uint8), root / f"images/{i}.png")
        write(root / f"labels/{i}{suffix}", i)
    return root


def fields(**changes):
    """config.data.folder of the tree."""
    c = config.default().data.folder
    c.name, c.classes, c.splits = "own", CLASSES, {"train": ("images", "labels")}
    c.update(changes)
    return c


def read(root, **changes):
    """The train ids of every label."""
    from isnet_jax.datasets.folder import Folder

    builder = Folder(folder=fields(**changes), data_dir=os.devnull, source=root)
    findings = [builder.check(pair) for pair in builder.items()["train"]]
    assert not builder.findings.problems and not any(finding.errors for finding in findings), findings
    return [decode(finding.label) for finding in findings]


def refusal(root, **changes):
    """All that is printed when the tree is refused."""
    reported = io.StringIO()
    with contextlib.redirect_stderr(reported), pytest.raises(UserError) as error:
        datasets.check("folder", root, fields(**changes))
    return f"{reported.getvalue()}{error.value}"


GREY = {
    "8 bits": lambda path: save(IDS, path),
    "16 bits": lambda path: save(IDS.astype(np.uint16), path),
    "equal channels": lambda path: save(np.stack([IDS] * 3, -1), path),
    "equal channels and alpha": lambda path: save(np.stack([IDS] * 3 + [IDS * 100], -1), path),
    "grey and alpha": lambda path: save(np.stack([IDS, 255 - IDS], -1), path, "LA"),
    "equal channels of 16 bits": lambda path: cv2.imwrite(str(path), np.stack([IDS] * 3, -1).astype(np.uint16)),
    "2 bits": lambda path: save_bits(IDS, path, 2),
    "4 bits": lambda path: save_bits(IDS, path, 4),
    "palette": lambda path: save_palette(IDS, [(9, 9, 9), (7, 7, 7), (1, 2, 3)], path),
    "palette of 2 bits": lambda path: save_palette(IDS, [(9, 9, 9), (7, 7, 7), (1, 2, 3)], path, bits=2),
}


@pytest.mark.parametrize("kind", GREY)
def test_labels_hold_the_values_of_classes(tmp_path, kind):
    write_tree(tmp_path, lambda path, _: GREY[kind](path))
    for ids in read(tmp_path):
        np.testing.assert_array_equal(ids, IDS)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}])
def test_tiff_labels(tmp_path, dtype, options):
    write_tree(tmp_path, lambda path, _: save(IDS.astype(dtype), path, **options), suffix=".tif")
    np.testing.assert_array_equal(read(tmp_path)[0], IDS)


def test_bmp_labels(tmp_path):
    write_tree(tmp_path, lambda path, _: save(IDS, path), suffix=".BMP")
    np.testing.assert_array_equal(read(tmp_path)[0], IDS)


def test_one_bit_labels(tmp_path):
    write_tree(tmp_path, lambda path, _: Image.fromarray(IDS > 0).save(path))
    np.testing.assert_array_equal(read(tmp_path, classes=("background", "thing"))[0], IDS > 0)


def test_fractions_are_no_labels(tmp_path):
    write_tree(tmp_path, lambda path, _: save(IDS.astype(np.float32) / 2, path), suffix=".tif")
    assert "0.tif holds numbers that are not whole" in refusal(tmp_path)


COLORS = {
    "RGB": lambda path, i: save(colored(IDS), path),
    "RGBA": lambda path, i: save(np.dstack([colored(IDS), IDS * 100]), path),
    "16 bits": lambda path, i: cv2.imwrite(str(path), colored(IDS)[..., ::-1].astype(np.uint16) * 257),
    "palettes in other orders": lambda path, i: save_palette(
        (IDS + i) % 3, [PALETTE[(index - i) % 3] for index in range(3)], path
    ),
    "the smallest palette": lambda path, i: Image.fromarray(colored(IDS)).quantize(3).save(path),
}


@pytest.mark.parametrize("kind", COLORS)
def test_labels_hold_the_colours_of_the_palette(tmp_path, kind):
    write_tree(tmp_path, COLORS[kind], number=3)
    for ids in read(tmp_path, palette=PALETTE):
        np.testing.assert_array_equal(ids, IDS)


def test_a_black_colour_mask_that_a_tool_saved_in_grey_is_read_by_its_colour(tmp_path):
    """Optimisers of PNGs choose the smallest colour type for each file."""
    palette = (128, 0, 0), (0, 0, 0), (0, 128, 0)
    write_tree(tmp_path, lambda path, i: save(np.zeros_like(IDS) if i == 0 else colored(IDS, palette), path))
    first, second = read(tmp_path, palette=palette)
    assert (first == 1).all()
    np.testing.assert_array_equal(second, IDS)


def test_index_masks_are_read_by_their_values_beside_a_palette_for_pictures(tmp_path):
    palette = (128, 0, 0), (0, 0, 0), (0, 128, 0)  # black is the class 1
    for i, write in enumerate((save, lambda ids, path: save(np.stack([ids] * 3, -1), path))):
        tree = write_tree(tmp_path / str(i), lambda path, i, write=write: write(IDS * (i > 0), path))
        first, second = read(tree, palette=palette)
        assert (first == 0).all()
        np.testing.assert_array_equal(second, IDS)


def test_colours_to_ignore(tmp_path):
    classes, palette = ("background", "road", "", "car"), (*PALETTE[:2], (224, 224, 192), PALETTE[2])
    write_tree(tmp_path, lambda path, _: save(colored(np.array([0, 2, 3])[IDS], palette), path))
    ids = read(tmp_path, classes=classes, palette=palette)[0]
    np.testing.assert_array_equal(ids, np.array([0, 255, 2])[IDS])


def test_unknown_colours_are_refused_with_the_palette_to_write(tmp_path):
    write_tree(tmp_path, lambda path, _: save(colored(IDS, ((1, 2, 3), (40, 50, 60), (7, 8, 9))), path))
    text = refusal(tmp_path)
    assert "0.png is a colour image with 3 colours: (1, 2, 3)" in text
    assert "(1, 2, 3) 35 %" in text and "c.data.folder.palette = ((1, 2, 3), " in text


def test_smoothed_edges_are_refused_with_their_share(tmp_path):
    smoothed = colored(IDS)
    smoothed[0, 0] = 64, 0, 0
    write_tree(tmp_path, lambda path, i: save(smoothed if i else colored(IDS), path))
    text = refusal(tmp_path, palette=PALETTE)
    assert "1.png holds 1 colour that config.data.folder.palette lacks, in 0.93 % of its pixels: (64, 0, 0)." in text
    assert "without anti-aliasing" in text and "0.png" not in text


def test_index_masks_among_colour_masks_are_refused(tmp_path):
    write_tree(tmp_path, lambda path, i: save(IDS if i else colored(IDS), path))
    assert "1.png holds 2 colours that config.data.folder.palette lacks" in refusal(tmp_path, palette=PALETTE)
    os.rename(tmp_path / "labels/0.png", tmp_path / "labels/2.png")
    os.rename(tmp_path / "images/0.png", tmp_path / "images/2.png")
    assert "2.png is a colour image" in refusal(tmp_path, palette=PALETTE)


def test_palettes_that_disagree_are_refused(tmp_path):
    """Without a palette in the config, nothing says which of them is right."""
    write_tree(tmp_path, COLORS["palettes in other orders"])
    text = refusal(tmp_path)
    assert (
        f"{tmp_path}/labels/1.png has the colour #0" in text and f"of its palette, but {tmp_path}/labels/0.png" in text
    )
    assert "config.data.folder.palette" in text


def test_palettes_that_agree_or_say_nothing_are_accepted(tmp_path):
    same = write_tree(tmp_path / "same", lambda path, i: save_palette(IDS * (i > 0), PALETTE, path))
    black = write_tree(tmp_path / "black", lambda path, i: save_palette(IDS * 0 + i, np.zeros((256, 3)), path))
    for tree in same, black:
        with contextlib.redirect_stderr(io.StringIO()):
            datasets.check("folder", tree, fields())


def test_colours_of_two_classes_say_nothing(tmp_path):
    palette = (0, 0, 0), (9, 9, 9), (9, 9, 9)
    write_tree(tmp_path, lambda path, _: save_palette(IDS, palette, path))
    np.testing.assert_array_equal(read(tmp_path, palette=palette)[0], IDS)


def test_label_values_say_which_values_mean_which_class(tmp_path):
    values = np.array([0, 255, 70], np.uint8)
    write_tree(tmp_path, lambda path, _: save(values[IDS], path))
    np.testing.assert_array_equal(read(tmp_path, label_values=(0, 255, 70))[0], IDS)
    np.testing.assert_array_equal(read(tmp_path, classes=("a", "b"), label_values=(0, (70, 255)))[0], IDS > 0)
    ignored = read(tmp_path, classes=("a", "", "b"), label_values=(0, 255, 70))[0]
    np.testing.assert_array_equal(ignored, np.array([0, 255, 1])[IDS])
    text = refusal(tmp_path)
    assert "values that are not labels: 70" in text and "c.data.folder.label_values = (0, 70, 255)" in text


@pytest.mark.parametrize("palette", [((0, 0, 0), (255, 255, 255)), ((255, 255, 255), (0, 0, 0))])
@pytest.mark.parametrize("kind", ["grey", "RGB", "1 bit"])
def test_a_palette_of_black_and_white_reads_masks_of_0_and_255(tmp_path, palette, kind):
    is_white = (IDS > 0) == (palette[1][0] == 255)
    pixels = {"grey": is_white * np.uint8(255), "RGB": np.stack([is_white * np.uint8(255)] * 3, -1), "1 bit": is_white}
    write_tree(tmp_path, lambda path, _: Image.fromarray(pixels[kind]).save(path))
    np.testing.assert_array_equal(read(tmp_path, classes=("a", "b"), palette=palette)[0], IDS > 0)


def test_masks_of_0_and_1_among_masks_of_0_and_255_are_warned_of(tmp_path):
    write_tree(tmp_path, lambda path, i: save((IDS > 0) * np.uint8(255 if i else 1), path))
    with contextlib.redirect_stderr(io.StringIO()) as reported:
        datasets.check("folder", tmp_path, fields(classes=("a", "b")))
    assert "1 labels hold one class and 255" in reported.getvalue()
    assert "c.data.folder.label_values = (0, (1, 255))" in reported.getvalue()


def test_many_labels_of_background_alone_do_not_decide(tmp_path, monkeypatch):
    monkeypatch.setattr("isnet_jax.datasets.folder_builder.MAX_TRIED", 4)
    write_tree(tmp_path, lambda path, i: save(colored(IDS * (i > 8)), path), number=10)
    monkeypatch.setattr("isnet_jax.datasets.folder_builder.MAX_TRIED", 10)
    np.testing.assert_array_equal(read(tmp_path, palette=PALETTE)[9], IDS)


def test_a_known_palette_keeps_its_order_in_the_advice(tmp_path):
    image = colored(IDS)
    image[0] = 224, 224, 192
    write_tree(tmp_path, lambda path, _: save(image, path))
    text = refusal(tmp_path, palette=PALETTE)
    assert "holds 1 colour that config.data.folder.palette lacks, in 8.3 % of its pixels: (224, 224, 192)." in text
    assert "palette lacks ((224, 224, 192)): add them" in text and "c.data.folder.palette = " not in text


def test_palettes_of_each_file_s_own_colours_are_warned_of(tmp_path):
    """As pngquant writes them: index 1 is red in one file, green in the other. Other tools draw colours at random."""
    write_tree(tmp_path, lambda path, i: save_palette(IDS > 0, [PALETTE[0], PALETTE[1 + i]], path))
    with contextlib.redirect_stderr(io.StringIO()) as reported:
        datasets.check("folder", tmp_path, fields())
    text = reported.getvalue()
    assert "has the colour #008000 at the index 1 of its palette, but" in text and "has #800000 there" in text
    np.testing.assert_array_equal(read(tmp_path, palette=PALETTE)[1], 2 * (IDS > 0))
    np.testing.assert_array_equal(read(tmp_path, label_values=(0, 1, 2))[1], IDS > 0)


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda path: save(np.dstack([np.zeros((12, 9, 3), np.uint8), IDS * 100]), path), "in its alpha channel only"),
        (
            lambda path: Image.fromarray(IDS).save(path, save_all=True, append_images=[Image.fromarray(IDS)]),
            "several pages",
        ),
        (lambda path: cv2.imwrite(str(path), np.stack([IDS] * 3, -1).astype(np.uint16)), "of more than 8 bits a chan"),
        (lambda path: save(IDS.astype(np.int16) - 1, path), "Values of classes must be from 0 to 65535"),
    ],
)
def test_labels_without_a_value_for_each_pixel_are_refused(tmp_path, write, message):
    write_tree(tmp_path, lambda path, _: write(path), suffix=".tif")
    assert message in refusal(tmp_path)


def test_png_labels_with_a_jpeg_suffix_are_read(tmp_path):
    write_tree(tmp_path, lambda path, _: Image.fromarray(IDS).save(path, "PNG"), suffix=".jpg")
    np.testing.assert_array_equal(read(tmp_path)[0], IDS)


def test_label_values_of_16_bits(tmp_path):
    write_tree(tmp_path, lambda path, _: save(IDS.astype(np.uint16) * 1000, path))
    np.testing.assert_array_equal(read(tmp_path, label_values=(0, 1000, 2000))[0], IDS)


def test_binary_masks_of_0_and_255_are_refused_with_the_line_to_write(tmp_path):
    write_tree(tmp_path, lambda path, _: save((IDS > 0) * np.uint8(255), path))
    two = ("background", "road")
    text = refusal(tmp_path, classes=two)
    assert "two values: 0 (background) and 255" in text and "c.data.folder.label_values = (0, 255)" in text
    np.testing.assert_array_equal(read(tmp_path, classes=two, label_values=(0, 255))[0], IDS > 0)
    with contextlib.redirect_stderr(io.StringIO()) as reported:
        datasets.check("folder", tmp_path, fields(classes=two, label_values=(0, 1)))  # 255 is to be ignored
    assert "The split train has no pixel of 1 of 2 classes: road." in reported.getvalue()


def test_one_class_needs_a_background(tmp_path):
    text = refusal(tmp_path, classes=("road",))
    assert "c.data.folder.classes = (\"background\", 'road')" in text


def test_jpeg_labels_are_told_what_they_are(tmp_path):
    tree = write_tree(tmp_path / "a", lambda path, _: Image.fromarray(IDS).save(path, "JPEG"))
    assert "0.png is a JPEG, whose compression changes" in refusal(tree)
    tree = write_tree(tmp_path / "b", lambda path, _: save(IDS, path), suffix=".jpg")
    text = refusal(tree)
    assert "0.jpg is a JPEG, whose compression changes" in text


@pytest.mark.parametrize(
    "change, part",
    [
        ({"label_values": (0, 1)}, "label_values is (0, 1)"),
        ({"label_values": (0, 1, 1)}, "no value twice"),
        ({"label_values": (0, 1, 70_000)}, "0 to 65535"),
        ({"label_values": (0, 1, ())}, "label_values is"),
        ({"palette": ((0, 0, 0),)}, "palette is"),
        ({"splits": {"train": ("images", "labels", 1.5)}}, "splits is"),
        ({"splits": {"train": ("images", "labels", 0.9), "val": ("images", "labels", 0.2)}}, "splits is"),
        ({"splits": {"train": ("images/a**b", "labels/a**b")}}, "splits is"),
    ],
)
def test_folder_refuses_invalid_fields(tmp_path, change, part):
    write_tree(tmp_path, lambda path, _: save(IDS, path))
    assert part in refusal(tmp_path, **change)
