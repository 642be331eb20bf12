"""`isnet_jax.export`: files that compute what the network does, and predictions by them."""

import json
import sys

import numpy as np
import pytest
from cases import random_variables
from small_run import run_inside, unwrapped

import isnet_jax
from isnet_jax import config as configs
from isnet_jax.checkpoints.manager import save_variables
from isnet_jax.errors import UserError
from isnet_jax.evaluation import exporting
from isnet_jax.evaluation.exporting import export_checkpoint
from isnet_jax.exports import formats
from isnet_jax.models.isnet import create_model

NAMES = tuple("abcdefgh")
SIZES = (36, 44), (50, 31), (20, 90)  # networks see (41, 50), (50, 31), (14, 64)
ONLY_SIZE = 50, 64  # which the network sees as it is
SUFFIXED = {"onnx": "m.onnx", "stablehlo": "m.stablehlo"}
FILES = {**SUFFIXED, "savedmodel": "saved"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_network, one_device):
    c = configs.default("resnet18")
    c.model.num_classes, c.data.name, c.model.remat = len(NAMES), "folder", True
    c.data.folder.name, c.data.folder.classes, c.data.folder.splits = "x", NAMES, {"train": ("i", "l")}
    c.test.resize, c.test.max_shape_buckets = (64, 50), 2
    directory = tmp_path_factory.mktemp("checkpoint")
    save_variables(directory, c, random_variables(create_model(c.model)), "test")
    return directory


@pytest.fixture(scope="module", params=SUFFIXED)
def exported(request, checkpoint, tmp_path_factory):
    """A file that takes images of any size."""
    path = tmp_path_factory.mktemp("exported") / SUFFIXED[request.param]
    export_checkpoint(checkpoint, str(path), request.param)
    return path


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_predictions_equal_those_of_the_checkpoint(checkpoint, exported):
    """Of images that are resized for the network, at their own sizes."""
    images = [noise(*size, i) for i, size in enumerate(SIZES)]
    ours, theirs = isnet_jax.load(checkpoint), isnet_jax.load(exported)
    for expected, found in zip(ours.predict(images), theirs.predict(images)):
        assert len(np.unique(found)) > 1
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(theirs.probabilities(images[0]), ours.probabilities(images[0]), atol=1e-4)
    classes, values = theirs.probabilities(images[0], top=2)
    np.testing.assert_array_equal(classes[..., 0], ours.predict(images[0]))
    assert values.shape == (*SIZES[0], 2)
    assert theirs.classes == NAMES and theirs.palette == ours.palette and theirs.config.test == ours.config.test


def test_tiles_of_any_size(checkpoint, exported):
    """Those at the ends of an image are smaller."""
    image = noise(50, 90)
    expected = isnet_jax.load(checkpoint).probabilities(image, tile=48)
    found = isnet_jax.load(exported).probabilities(image, tile=48)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_file_is_described(checkpoint, exported):
    facts = json.loads(exported.with_name(f"{exported.name}.json").read_text())
    assert facts["classes"] == list(NAMES) and len(facts["palette"]) == len(NAMES) and facts["versions"]["jax"]
    assert facts["resize"]["long_short"] == [64, 50] and facts["resize"]["size"] is None
    assert facts["input"]["shape"] == ["batch", "height", "width", 3] and facts["input"]["dtype"] == "uint8"
    assert [(x["name"], x["dtype"]) for x in facts["outputs"]] == [("classes", "uint8"), ("score_map", "float32")]
    assert facts["checkpoint"]["name"] == checkpoint.name and str(checkpoint.parent) not in json.dumps(facts)
    assert facts["compared"]["largest_difference_of_scores"] < 1e-3 and facts["compared"]["images"] == 3


@pytest.mark.parametrize("kind", FILES)
def test_one_size(checkpoint, tmp_path, kind, capsys):
    """Of probabilities at the input's resolution, in the names and shapes that the description says."""
    path = tmp_path / "new" / FILES[kind]
    export_checkpoint(checkpoint, str(path), kind, size=ONLY_SIZE, scores="softmax")
    assert "scores differ by at most" in capsys.readouterr().out
    facts = json.loads(path.with_name(f"{path.name}.json").read_text())
    cards = {f"{path.name}.md"} if kind in SUFFIXED else set()  # or README.md in it
    assert {x.name for x in path.parent.iterdir()} == {path.name, f"{path.name}.json", *cards}
    text = (path.with_name(f"{path.name}.md") if cards else path / "README.md").read_text()
    assert "resized to height 50 and width 64" in text and f'load("{path.name}")' in text
    image = noise(*ONLY_SIZE)
    outputs = formats.open_to_run(kind, path)(image[None], [output["name"] for output in facts["outputs"]])
    assert [list(x.shape) for x in outputs] == [output["shape"] for output in facts["outputs"]]
    np.testing.assert_allclose(outputs[0].sum(-1), 1, rtol=1e-5)
    if kind in SUFFIXED:
        expected = isnet_jax.load(checkpoint).predict(image)
        np.testing.assert_array_equal(isnet_jax.load(path).predict(image), expected)
        np.testing.assert_array_equal(outputs[0].argmax(-1)[0], expected)
        assert isnet_jax.load(path).predict(noise(30, 70)).shape == (30, 70)  # resized to the only size
        assert "resized to 50x64" in isnet_jax.load(path).predictor().where
        with pytest.raises(UserError, match="--size=dynamic"):
            isnet_jax.load(path).predict(image, tile=48)


def test_savedmodel_takes_any_size(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "SIZES", (SIZES[0],) * 3)  # TensorFlow compiles for each
    path = tmp_path / "saved"
    export_checkpoint(checkpoint, str(path), "savedmodel", scores="logits")
    image = noise(33, 47)[None]
    logits, score_map = formats.open_to_run("savedmodel", path)(image, ["logits", "score_map"])
    assert logits.shape == (1, 33, 47, len(NAMES)) and score_map.shape == (1, 5, 6, len(NAMES))


def test_bfloat16(checkpoint, tmp_path):
    path = tmp_path / "m.stablehlo"
    export_checkpoint(checkpoint, str(path), "stablehlo", size=ONLY_SIZE, dtype="bfloat16")
    assert json.loads((tmp_path / "m.stablehlo.json").read_text())["dtype"] == "bfloat16"


def test_a_file_that_computes_something_else_is_removed(checkpoint, tmp_path, monkeypatch):
    opened = formats.open_to_run

    def wrong(kind, path):
        run = opened(kind, path)
        return lambda image, names: [run(image, names)[0], run(image, names)[1] * np.float32(1.1)]

    monkeypatch.setattr(exporting.formats, "open_to_run", wrong)
    with pytest.raises(UserError, match="score_map is not what the network computes"):
        export_checkpoint(checkpoint, str(tmp_path / "m.onnx"), "onnx", size=(32, 32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "kind, name, options, message",
    [
        ("onnx", "m.pb", {}, "must end in .onnx"),
        ("onnx", "m.onnx", {"dtype": "bfloat16"}, "no convolution of that dtype"),
        ("savedmodel", "m.onnx", {}, "suffix of another format"),
        ("savedmodel", ".", {}, "exists"),
        ("onnx", "m.onnx", {"ema": True}, "moving averages"),
    ],
)
def test_what_cannot_be_exported_is_refused(checkpoint, tmp_path, kind, name, options, message):
    with pytest.raises(UserError, match=message):
        export_checkpoint(checkpoint, str(tmp_path / name), kind, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library, kind", [("onnx", "onnx"), ("onnxruntime", "onnx"), ("tensorflow", "savedmodel")])
def test_missing_libraries_are_named(checkpoint, tmp_path, monkeypatch, library, kind):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f"needs {library}, .*pip install"):
        export_checkpoint(checkpoint, str(tmp_path / FILES[kind]), kind, size=(32, 32))
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_foreign_files_are_refused(exported, tmp_path):
    path, described = tmp_path / exported.name, tmp_path / f"{exported.name}.json"

    def refused(message):
        with pytest.raises(UserError, match=message):
            isnet_jax.load(path)

    refused("does not exist")
    content = bytearray(exported.read_bytes())
    path.write_bytes(content)
    refused("is missing; isnet_jax.export writes it")
    text = exported.with_name(described.name).read_text()
    described.write_text(text)
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused("is not the file that .* describes")
    described.write_text(text[:-9])
    refused("is damaged")
    for facts in ({}, {**json.loads(text), "resize": {"size": [40]}}, {**json.loads(text), "config": {}}):
        described.write_text(json.dumps(facts))
        refused("is damaged|does not hold a config")


def test_options_of_checkpoints_are_refused(exported):
    with pytest.raises(UserError, match="leave out --ema"):
        isnet_jax.load(exported, ema=True)
    with pytest.raises(UserError, match="leave out --config"):
        isnet_jax.load(exported, config="ade20k")
    with pytest.raises(UserError, match="leave out --tta"):
        isnet_jax.load(exported).predict(noise(32, 32), tta=True)


@pytest.mark.parametrize("size", ["0x5", "5", "axb", "100000x1"])
def test_command_refuses_sizes(size):
    code, _, err = run_inside("--checkpoint=x", "--format=onnx", "--output=m.onnx", f"--size={size}", module="export")
    assert code == 2 and "must be dynamic, or height x width" in unwrapped(err)
