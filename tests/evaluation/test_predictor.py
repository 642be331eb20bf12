"""The predict command on images of every kind, intact and damaged, the files it writes, and decoding."""

import json
import os
import re
import struct
import subprocess
import sys
import zlib
from functools import partial
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from cases import random_variables
from paths import ROOT
from PIL import Image, ImageOps
from small_run import run_inside, unwrapped

from isnet_jax import config, create_model
from isnet_jax.checkpoints import manager, pretrained, torch_names
from isnet_jax.checkpoints.manager import save_variables
from isnet_jax.datasets import decoding
from isnet_jax.errors import UserError
from isnet_jax.evaluation import inference, prediction_files, prediction_inputs, predictor
from isnet_jax.input.photometry import normalize
from isnet_jax.input.resizing import resize, target_size
from isnet_jax.runtime.files import atomic_write_text

LANDSCAPE, PORTRAIT, WIDE = (48, 72), (72, 48), (40, 90)  # (h, w); networks see (64, 96), (96, 64), (43, 96)


def run(*args, devices=1, path=()):
    """Exit code, standard output and standard error (unwrapped) of the command."""
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT))),
    }
    done = subprocess.run(
        [sys.executable, "-m", "isnet_jax.predict", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=300,
    )
    return done.returncode, done.stdout, " ".join(done.stderr.split())


def small_config(num_classes, name, **test):
    c = config.default("resnet18")
    c.model.num_classes, c.data.name = num_classes, name
    c.test.update({"resize": (96, 64), "batch_size": 4, "max_shape_buckets": 2, **test})
    return c


def draw(seed, size, channels=3, high=256, dtype=np.uint8):
    """Smooth noise, uint8 or uint16 (h, w, channels)."""
    coarse = np.random.default_rng(seed).random((4, 6, channels))
    return np.clip(cv2.resize(coarse, size[::-1]).reshape(*size, channels) * high, 0, high - 1).astype(dtype)


def exif_with(orientation):
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = orientation
    return exif


def png(size, *chunks):
    """A PNG whose header declares `size` (h, w), whatever its chunks (kind, data) hold."""
    header = struct.pack(">IIBBBBB", *size[::-1], 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), *chunks, (b"IEND", b""))
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images, and {name: upright RGB uint8 (h, w, 3)} of the intact ones."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "street").mkdir()
    (folder / ".hidden").mkdir()
    pixels = {
        name: draw(i, size)
        for i, (name, size) in enumerate(
            {
                "a": LANDSCAPE,
                "street/a": WIDE,
                "portrait": PORTRAIT,
                "alpha": LANDSCAPE,
                "deep colour": PORTRAIT,
            }.items()
        )
    }
    Image.fromarray(pixels["a"]).save(folder / "a.png")
    Image.fromarray(pixels["a"]).save(folder / ".hidden" / "b.png")
    Image.fromarray(pixels["street/a"]).save(folder / "street" / "a.bmp")
    Image.fromarray(pixels["portrait"]).save(folder / "portrait.webp", lossless=True)
    Image.fromarray(np.dstack([pixels["alpha"], draw(9, LANDSCAPE, 1)])).save(folder / "alpha.PNG")
    cv2.imwrite(str(folder / "deep colour.png"), pixels["deep colour"][..., ::-1].astype(np.uint16) * 256 + 99)
    deep = draw(20, LANDSCAPE, 1, 65536, np.uint16)[..., 0]
    Image.fromarray(deep).save(folder / "deep.png")
    pixels["deep"] = np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2)
    Image.fromarray(draw(21, PORTRAIT)).save(folder / "turned.jpg", exif=exif_with(6))
    pixels["turned"] = np.array(ImageOps.exif_transpose(Image.open(folder / "turned.jpg")))
    assert pixels["turned"].shape[:2] == LANDSCAPE
    for name, mode, suffix in (
        ("cmyk", "CMYK", "jpg"),
        ("grey", "L", "jpeg"),
        ("palette", "P", "png"),
        ("line", "1", "png"),
    ):
        Image.fromarray(draw(22, LANDSCAPE)).convert(mode).save(folder / f"{name}.{suffix}")
        pixels[name] = np.array(Image.open(folder / f"{name}.{suffix}").convert("RGB"))
    (folder / "cut.jpg").write_bytes((folder / "turned.jpg").read_bytes()[:900])
    (folder / "text.jpg").write_text("no image")
    (folder / "bomb.png").write_bytes(png((20_000, 20_000), (b"IDAT", zlib.compress(bytes(10_000)))))
    (folder / "notes.txt").write_text("not looked at")
    return folder, pixels


def check(prediction, image, scores_of):
    """The prediction (h, w) is the argmax for the image alone, unpadded, except for near ties."""
    x = resize(image, target_size(*image.shape[:2], (96, 64), True))
    scores = np.asarray(scores_of(normalize(x[None]), image.shape[:2]))[0]
    assert prediction.shape == image.shape[:2]
    lost = scores.max(-1) - np.take_along_axis(scores, prediction[..., None].astype(int), -1)[..., 0]
    assert lost.max() < 1e-4 * scores.std() and len(np.unique(prediction)) > 1


def test_predict_folder_of_images_of_every_kind(photos, tmp_path):
    """On two devices, from a checkpoint directory; files that cannot be read are listed."""
    from isnet_jax.datasets.scenes import Scenes

    folder, pixels = photos
    c = small_config(8, "scenes")
    model = create_model(c.model)
    variables = random_variables(model)
    save_variables(tmp_path / "run", c, variables, "x.pth")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_text("replaced")
    code, out, err = run(f"--checkpoint={tmp_path}/run", folder, f"--output={tmp_path}/out", devices=2)
    assert code == 1 and "Traceback" not in err
    assert f"{len(pixels) + 3} images" in out and f"{len(pixels)} images predicted" in out in out
    assert "most frequent classes: " in out
    assert any(name in out for name in Scenes.NAMES)
    for pattern in (
        "bomb.png has more than 100 megapixels",
        r"cut.jpg is damaged \(.*(truncated|ends early)",
        "text.jpg is not a readable JPEG, PNG, ",
        f"error: 3 of {len(pixels) + 3} images could not be predicted",
    ):
        assert re.search(pattern, err), err
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == {f"{name}{end}" for name in pixels for end in (".png", "_overlay.jpg")}
    predict = jax.jit(partial(inference.predict, model, average="logits"), static_argnums=2)
    scores_of = partial(predict, jax.device_put(variables))
    for name, image in pixels.items():
        file = Image.open(tmp_path / "out" / f"{name}.png")
        prediction = np.array(file)
        assert file.mode == "P" and file.getpalette()[:24] == np.array(Scenes.PALETTE).ravel().tolist()
        check(prediction, image, scores_of)
        shown = np.array(Image.open(tmp_path / "out" / f"{name}_overlay.jpg"), np.int32)
        assert shown.shape == image.shape
        expected = (image + np.array(Scenes.PALETTE)[prediction]) / 2
        assert np.median(np.abs(shown - expected)) < 12  # except for outlines and JPEG's losses


def test_predict_official_checkpoint_with_flip_in_cityscapes_format(photos, tmp_path):
    """TensorFlow is not installed: predicting does not need it."""
    pytest.importorskip("torch")
    from isnet_jax.datasets.cityscapes import Cityscapes

    folder, pixels = photos
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "tensorflow.py").write_text("raise ImportError('not installed')")
    model = create_model({"backbone": "resnet18", "num_classes": 19})
    variables = random_variables(model)
    pretrained.write_state_dict(tmp_path / "isnet.pth", torch_names.to_torch(variables, model))
    args = [
        f"--checkpoint={tmp_path}/isnet.pth",
        "--config=configs/cityscapes.py:resnet18",
        "--tta",
        "--format=cityscapes",
        "--config.test.tta.mode=whole",
        "--config.test.tta.scales=(1.0,)",
        "--config.test.resize=(96,64)",
        "--config.test.max_shape_buckets=1",
        "--config.augment.flip_pairs=((0,1),)",
    ]
    code, out, err = run(
        folder / "grey.jpeg", folder / "street", *args, f"--output={tmp_path}/out", path=[tmp_path / "fake"]
    )
    assert (code, err) == (0, "") and "2 images predicted" in out  # names of classes need no TensorFlow
    assert any(name in out for name in Cityscapes.NAMES)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "grey.png"]
    predict = jax.jit(partial(inference.predict, model, flip=True, flip_pairs=((0, 1),)), static_argnums=2)
    scores_of = partial(predict, jax.device_put(variables))
    for name, source in (("grey", "grey"), ("a", "street/a")):
        file = Image.open(tmp_path / "out" / f"{name}.png")
        assert file.mode == "L"
        ids = Cityscapes.TRAIN_IDS[np.array(file)]
        assert ids.max() < 19
        check(ids, pixels[source], scores_of)


def test_formats_invert_the_label_tables_of_the_data_sets():
    from isnet_jax.datasets.ade20k import Ade20k
    from isnet_jax.datasets.cityscapes import Cityscapes
    from isnet_jax.datasets.lip import Lip

    for name, builder in (("ade20k", Ade20k), ("cityscapes", Cityscapes), ("lip", Lip)):
        np.testing.assert_array_equal(
            builder.TRAIN_IDS[list(prediction_files.FORMATS[name])], np.arange(len(builder.NAMES))
        )


def test_predict_reports_mistakes_on_the_command_line(photos, tmp_path):
    folder, _ = photos
    (tmp_path / "x.pth").write_bytes(b"")
    for args, code, pattern in (
        (["--output=out", "--checkpoint=x"], 2, "IMAGE_OR_FOLDER is missing"),
        ([folder, f"--checkpoint={tmp_path}/x.pth", f"--output={tmp_path}/out"], 1, "add --config=FILE"),
        ([folder, f"--checkpoint={tmp_path}", f"--output={folder}/out"], 1, "choose a directory apart"),
    ):
        exit_code, _, err = run_inside(*args, module="predict")
        assert exit_code == code and err.startswith("error: ") and "Traceback" not in err, err
        assert re.search(pattern, unwrapped(err)), err
    assert not (tmp_path / "out").exists() and not (folder / "out").exists()


def test_find_images_refuses_missing_and_empty_inputs(photos, tmp_path):
    folder, _ = photos
    (tmp_path / "empty").mkdir()
    for inputs, pattern in (
        ([tmp_path / "none.jpg"], "none.jpg does not exist"),
        ([tmp_path / "empty"], "holds no images"),
    ):
        with pytest.raises(UserError, match=pattern):
            prediction_inputs.find_images(inputs)
    inputs = [folder / ".." / folder.name / "street", folder / "cut.jpg"]
    assert set(prediction_inputs.find_images(inputs)[0]) == {Path("a"), Path("cut")}


def test_check_output_refuses_to_touch_inputs_or_leave_the_directory(photos, tmp_path):
    folder, _ = photos

    def refused(inputs, output, pattern):
        with pytest.raises(UserError, match=pattern):
            prediction_inputs.check_output(output, prediction_inputs.find_images(inputs)[0], inputs)

    refused([folder / "a.png"], folder, "directory apart")
    refused([folder], folder / "street", "directory apart")
    inside = tmp_path / "data"
    (inside / "in" / "in").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(inside / "in" / "x.png")
    Image.new("RGB", (8, 8)).save(inside / "in" / "in" / "x.png")
    refused([inside / "in"], inside, "would be overwritten")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "street").symlink_to(folder)
    refused([folder], tmp_path / "out", "leads out of")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_decode_returns_upright_images_for_every_orientation(suffix, tmp_path):
    for orientation in range(1, 9):
        path = tmp_path / f"{orientation}.{suffix}"
        Image.fromarray(draw(0, LANDSCAPE)).save(path, exif=exif_with(orientation))
        header = decoding.read_header(path)
        expected = np.array(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        assert header == (expected.shape[:2], orientation)
        np.testing.assert_array_equal(decoding.decode(path, header), expected)


def test_decode_finds_the_orientation_after_the_pixels_of_a_png(tmp_path):
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in draw(0, LANDSCAPE)))
    (tmp_path / "x.png").write_bytes(png(LANDSCAPE, (b"IDAT", rows), (b"eXIf", exif_with(8).tobytes()[6:])))
    header = decoding.read_header(tmp_path / "x.png")
    assert header == (PORTRAIT, 8)
    np.testing.assert_array_equal(decoding.decode(tmp_path / "x.png", header), np.rot90(draw(0, LANDSCAPE)))


def test_recorded_config_is_read_back(tmp_path):
    c = config.default("resnet18")
    c.model.num_classes, c.data.name, c.augment.flip_pairs = 3, "folder", ((0, 1),)
    c.data.folder.update(name="x", classes=("a", "", "b", "c"))
    c.data.folder.splits = {"train": ("i", "l")}
    atomic_write_text(tmp_path / "config.json", json.dumps(c.to_dict() | {"train_examples": 3}))
    recorded = manager.recorded_config(tmp_path)
    assert {name: value for name, value in recorded.to_dict().items() if name in c} == c.to_dict()
    palette = ((128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert predictor.class_table(recorded) == (("a", "b", "c"), palette)
    recorded.data.folder.palette = ((300, 0, 0), (1, 2), 7)  # no colours: the file may come from anyone
    assert predictor.class_table(recorded) == (("a", "b", "c"), palette)


def test_recorded_config_upgrades_fields_of_earlier_versions(tmp_path):
    c = small_config(3, "folder", max_shape_buckets=5)
    old = c.to_dict()
    old["train"]["microbatches"], old["test"]["max_programs"] = 1, old["test"].pop("max_shape_buckets")
    del old["model"]["image_level_context"], old["model"]["semantic_level_context"]
    atomic_write_text(tmp_path / "config.json", json.dumps(old))
    assert manager.recorded_config(tmp_path).to_dict() == c.to_dict()
    assert not config.differences(c.to_dict(), old)  # a run may be resumed


def test_recorded_config_refuses_other_content(tmp_path):
    for text in ('{"model": 3}', '{"model": {"backbone": "resnet18", "num_classes": "many"}}', "{}"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match="does not hold a config"):
            manager.recorded_config(tmp_path)
