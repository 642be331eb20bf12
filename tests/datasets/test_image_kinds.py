"""Image files as people have them: every format, orientation and colour mode, the same in training and prediction."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from isnet_jax import config, datasets
from isnet_jax.datasets import decoding
from isnet_jax.errors import UserError

SIZE = 40, 64  # (height, width) of the upright image
UPRIGHT = (np.mgrid[: SIZE[0], : SIZE[1]].sum(0)[..., None] * [2, 1, 1] + [0, 50, 90]).astype(np.uint8)
UPRIGHT[:9, :17] = 0, 0, 255  # so that every turn shows
LABEL = (UPRIGHT[..., 2] == 255).astype(np.uint8)


def stored(orientation):
    """The image as a camera stores it whose EXIF says `orientation`."""
    undo = {2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1)}
    undo |= {6: np.rot90, 7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: lambda x: np.rot90(x, -1)}
    return np.ascontiguousarray(undo.get(orientation, lambda x: x)(UPRIGHT))


def encoded(pixels, kind="PNG", orientation=1, mode="RGB", **options):
    """The bytes of an image file."""
    exif = Image.Exif()
    if orientation != 1:
        exif[decoding.ORIENTATION] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, exif=exif.tobytes() if orientation != 1 else b"", **options)
    return file.getvalue()


def write_tree(root, files, label=LABEL):
    """A folder data set of the image files, {name: bytes}, all with the same label."""
    for kind in "images", "labels":
        (root / kind).mkdir(parents=True)
    for name, data in files.items():
        (root / "images" / name).write_bytes(data)
        Image.fromarray(label).save(root / f"labels/{name.rpartition('.')[0]}.png")
    return root


def fields(**changes):
    """config.data.folder of the tree."""
    c = config.default().data.folder
    c.name, c.classes, c.splits = "own", ("a", "b"), {"train": ("images", "labels")}
    c.update(changes)
    return c


def training_images(root, **changes):
    """{name: uint8 image} as training and evaluation decode the records."""
    from isnet_jax.datasets import image_files
    from isnet_jax.input import pipeline

    with contextlib.redirect_stderr(io.StringIO()):
        builder = datasets.load("folder", root.parent / f"{root.name}-data", root, fields(**changes))
    source = pipeline.open_split(builder, "train")
    images = [image_files.decode_image(source[i]["image"], upright=source.upright) for i in range(len(source))]
    return {source.name(i): image for i, image in enumerate(images)}


def predicted_images(root):
    """{name: uint8 image} as prediction decodes the files."""
    paths = sorted((root / "images").iterdir())
    return {path.stem: decoding.decode(path, decoding.read_header(path)) for path in paths}


def refusal(root, **changes):
    """All that is printed when the tree is refused."""
    reported = io.StringIO()
    with contextlib.redirect_stderr(reported), pytest.raises(UserError) as error:
        datasets.check("folder", root, fields(**changes))
    return f"{reported.getvalue()}{error.value}"


def test_every_format_is_the_same_in_training_and_prediction(tmp_path):
    deep = Image.fromarray(UPRIGHT[..., 0].astype(np.uint16) * 256 + 77)
    jpeg, progressive = (encoded(UPRIGHT, "JPEG", quality=90, progressive=x) for x in (False, True))
    files = {
        "png.png": encoded(UPRIGHT),
        "palette.png": encoded(UPRIGHT, mode="P"),
        "alpha.PNG": encoded(UPRIGHT, mode="RGBA"),
        "jpeg.jfif": jpeg,
        "trailer.jpe": jpeg + b"\xff\xda" * 500 + jpeg,  # as motion photographs have a film behind them
        "endless.jpeg": jpeg[:-2],
        "progressive.jpg": progressive[:-2],
        "cmyk.jpg": encoded(UPRIGHT, "JPEG", mode="CMYK"),
        "webp.webp": encoded(UPRIGHT, "WEBP"),
        "bmp.bmp": encoded(UPRIGHT, "BMP"),
        "tiff.tif": encoded(UPRIGHT, "TIFF"),
        "lzw.tiff": encoded(UPRIGHT, "TIFF", compression="tiff_lzw"),
        "gif.gif": encoded(UPRIGHT, "GIF"),
        "turned.webp": encoded(stored(6), "WEBP", 6, lossless=True),
    }
    root = write_tree(tmp_path / "tree", files)
    for name, suffix in ("deep", ".png"), ("deeptiff", ".tif"):
        deep.save(root / f"images/{name}{suffix}")
        Image.fromarray(LABEL).save(root / f"labels/{name}.png")
    trained, predicted = training_images(root), predicted_images(root)
    assert len(trained) == len(files) + 2 and trained.keys() == predicted.keys()
    for name, image in trained.items():
        np.testing.assert_array_equal(image, predicted[name], err_msg=name)
        if name not in ("palette", "gif", "deep", "deeptiff"):  # which hold fewer colours
            assert abs(image.astype(int) - UPRIGHT).mean() < 6, name
    for name in "deep", "deeptiff":
        np.testing.assert_array_equal(trained[name], np.stack([UPRIGHT[..., 0]] * 3, -1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientations_are_turned_alike(tmp_path, kind):
    files = {f"{o}.{kind.lower()}": encoded(stored(o), kind, o, quality=95) for o in range(1, 9)}
    root = write_tree(tmp_path / "tree", files)
    trained, predicted = training_images(root), predicted_images(root)
    for name, image in trained.items():
        np.testing.assert_array_equal(image, predicted[name], err_msg=name)
        assert abs(image.astype(int) - UPRIGHT).mean() < 4, name

    files = {f"6.{kind.lower()}": encoded(stored(6), kind, 6, quality=95)}
    sideways = write_tree(tmp_path / "stored", files, np.rot90(LABEL).copy())
    (image,) = training_images(sideways, exif=False).values()
    assert abs(image.astype(int) - stored(6)).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_regions_of_turned_images_are_those_of_the_upright_image(kind, orientation):
    from isnet_jax.datasets import image_files

    data = (
        encoded(stored(orientation), kind, orientation, subsampling=0)
        if kind == "JPEG"
        else encoded(stored(orientation), kind, orientation)
    )
    whole = image_files.decode_image(data, upright=True)
    assert whole.shape == UPRIGHT.shape
    for region in (0, 0, *SIZE), (3, 8, 20, 30), (39, 63, 1, 1):
        top, left, height, width = region
        np.testing.assert_array_equal(
            image_files.decode_image(data, region, upright=True), whole[top : top + height, left : left + width]
        )


def test_augmented_crops_follow_the_orientation():
    """A turned photograph gives the crops of the same photograph stored upright."""
    from isnet_jax.datasets import image_files
    from isnet_jax.input import augment

    c = config.default().augment
    c.update(resize=(96, 60), crop_size=(32, 40), rotate_probability=0.5)
    label = image_files.encode_label(LABEL)
    for orientation in range(2, 9):
        crops = []
        for data in encoded(UPRIGHT), encoded(stored(orientation), orientation=orientation):
            image, crop = np.zeros((32, 40, 3), np.uint8), np.full((32, 40), 255, np.uint8)
            augment.augment(data, label, (0, 0, orientation), c, image, crop, upright=True)
            crops.append(image)
        np.testing.assert_array_equal(*crops)


def test_labels_that_fit_the_stored_image_need_a_field(tmp_path):
    sideways = np.rot90(LABEL).copy()
    root = write_tree(tmp_path / "tree", {"a.jpg": encoded(stored(6), "JPEG", 6)}, sideways)
    text = refusal(root)
    assert "a.jpg is 40 x 64 (height x width), but its label" in text and "c.data.folder.exif = False" in text
    (image,) = training_images(root, exif=False).values()
    np.testing.assert_array_equal(image, np.asarray(Image.open(root / "images/a.jpg")))


def test_turned_images_are_counted(tmp_path):
    files = {"a.jpg": encoded(stored(3), "JPEG", 3), "b.jpg": encoded(UPRIGHT, "JPEG")}
    with contextlib.redirect_stderr(io.StringIO()) as reported:
        datasets.check("folder", write_tree(tmp_path / "tree", files), fields())
    assert "note: 1 of 2 images of train are turned as their EXIF orientation says." in reported.getvalue()


@pytest.mark.parametrize("cut", [1, 2, 3, 30, 300])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_that_end_early_are_damaged(tmp_path, cut, progressive):
    """Only the end marker may be missing, not pixels."""
    data = encoded(UPRIGHT, "JPEG", progressive=progressive)
    root = write_tree(tmp_path / "tree", {"a.jpg": data[:-cut]})
    if cut <= 2:
        assert predicted_images(root)["a"].shape == UPRIGHT.shape
    else:
        with pytest.raises(UserError, match="is damaged"):
            predicted_images(root)
        assert "a.jpg is damaged" in refusal(root)


def test_scans_behind_the_end_of_a_jpeg_do_not_count():
    from isnet_jax.runtime import jpeg

    data = encoded(UPRIGHT, "JPEG", progressive=True)
    scans = data.count(jpeg.SCAN)
    for more in b"", data * 20:
        assert jpeg.has_more_scans(data + more, scans - 1) and not jpeg.has_more_scans(data + more, scans)


def test_jpegs_with_reserved_but_unwritten_room_are_damaged(tmp_path):
    data = encoded(UPRIGHT, "JPEG", quality=97, subsampling=0)
    root = write_tree(tmp_path / "tree", {"a.jpg": data[: len(data) // 2] + bytes(len(data) // 2)})
    assert "a.jpg is damaged" in refusal(root)
    (root / "images/a.jpg").write_bytes(data[:-2] + bytes(500))
    assert predicted_images(root)["a"].shape == UPRIGHT.shape


def test_photographs_of_12_bits_in_16_are_warned_of(tmp_path):
    root = write_tree(tmp_path / "tree", {})
    Image.fromarray(UPRIGHT[..., 0].astype(np.uint16) * 16).save(root / "images/a.png")
    Image.fromarray(LABEL).save(root / "labels/a.png")
    with contextlib.redirect_stderr(io.StringIO()) as reported:
        datasets.check("folder", root, fields())
    assert "a.png is nearly black in 8 bits" in reported.getvalue()


def test_images_of_32_bits_are_refused(tmp_path):
    file = io.BytesIO()
    Image.fromarray(UPRIGHT[..., 0].astype(np.float32)).save(file, "TIFF")
    root = write_tree(tmp_path / "tree", {"a.tif": file.getvalue()})
    assert "a.tif is damaged (it has 32 bits a channel: scale it to 8)" in refusal(root)
