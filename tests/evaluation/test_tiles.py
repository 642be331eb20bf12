"""Predictions in tiles: blended scores are those of the whole image where no tile's border is seen."""

import itertools
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from cases import random_variables
from PIL import Image

import isnet_jax
from isnet_jax import config as configs
from isnet_jax.checkpoints.manager import save_variables
from isnet_jax.datasets import decoding
from isnet_jax.errors import UserError
from isnet_jax.evaluation import inference, pictures, prediction_files, tiles
from isnet_jax.evaluation.predictor import CLASSES, PROBABILITIES, Source
from isnet_jax.evaluation.segmenter import max_pixels, source
from isnet_jax.evaluation.tiled_predictor import TiledPredictor
from isnet_jax.models.isnet import create_model
from isnet_jax.runtime import limits

NAMES = tuple("abcde")
STRIDE = 8
SIZES = (100, 150), (64, 48), (30, 50), (201, 97), (9, 1)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def as_source(image):
    return Source(image.shape[:2], lambda: image)


def local_scores(pixels, dtype=np.float64):
    """A network that sees one pixel of each cell: (h, w, 3) -> (ceil(h / 8), ceil(w / 8), K)."""
    x = pixels[::STRIDE, ::STRIDE].astype(dtype)
    return np.stack([np.sin(x[..., 0] * (k + 1)) + x[..., 1] / 99 * k for k in range(len(NAMES))], -1).astype(dtype)


def stub(function, tile=(64, 48), overlap=16):
    return TiledPredictor(
        tiles.make_tiling(tile, overlap), lambda cut, count: (function(tile) for tile in cut), STRIDE, "a stub"
    )


def predict(predictor, image, output):
    [(index, pixels, result)] = predictor([as_source(image)], pytest.fail, output)
    assert index == 0 and pixels is image
    return result


@pytest.mark.parametrize("stride", [4, 8])
def test_tiles_cover_an_axis_and_their_weights_sum_to_one(stride):
    for tile, length in itertools.product((8, 16, 64), range(1, 400, 7)):
        for overlap in range(0, tile, 8):
            axis = tiles.place(length, tile, overlap, stride)
            total = np.zeros(axis.cells)
            for start, first, weights in zip(axis.starts, axis.first_cells, axis.weights):
                assert start == first * stride and start % tiles.GRID == 0
                assert (weights > 0).all() and len(weights) <= tile // stride
                total[first : first + len(weights)] += weights
            np.testing.assert_allclose(total, 1)
            assert max(np.diff(axis.starts), default=0) <= tile - overlap
            assert length <= axis.starts[-1] + tile < max(length, tile) + tiles.GRID
    ramp = tiles.place(96, 64, 32, 8).weights[0]
    np.testing.assert_allclose(ramp, [1, 1, 1, 1, 7 / 8, 5 / 8, 3 / 8, 1 / 8])


@pytest.mark.parametrize("size", SIZES)
def test_local_scores_give_the_prediction_of_the_whole_image(size, x64):
    image, predictor = noise(*size), stub(local_scores)
    whole = [(jnp.asarray(local_scores(image)[None]), None)]
    expected = np.asarray(inference.predict_probabilities(whole, size, average="logits"))[0]
    np.testing.assert_allclose(predict(predictor, image, PROBABILITIES), expected, atol=1e-9)
    np.testing.assert_array_equal(predict(predictor, image, CLASSES), expected.argmax(-1))
    classes, values = predict(predictor, image, 3)
    np.testing.assert_array_equal(classes[..., 0], expected.argmax(-1))
    np.testing.assert_allclose(values, np.sort(expected, -1)[..., ::-1][..., :3], atol=1e-9)


def test_constant_scores_stay_constant():
    scores = np.arange(5, dtype=np.float32)
    predictor = stub(lambda pixels: np.broadcast_to(scores, (*(-(-n // STRIDE) for n in pixels.shape[:2]), 5)))
    found = predict(predictor, noise(100, 150), PROBABILITIES)
    np.testing.assert_allclose(found, np.broadcast_to(np.exp(scores) / np.exp(scores).sum(), (100, 150, 5)), rtol=1e-5)


def test_memory_holds_the_scores_of_one_row_of_tiles():
    """However high the image."""
    rows, columns = (tiles.place(length, 64, 16, STRIDE) for length in (3000, 300))
    maps = (np.ones((8, 8, 5), np.float32) for _ in itertools.product(rows.starts, columns.starts))
    end = 0
    for first, band in tiles.blend(maps, rows, columns):
        assert first == max(0, end - 1) and band.base.shape == (8 + 1, columns.cells, 5)
        np.testing.assert_allclose(band, 1, rtol=1e-6)
        end = first + len(band)
    assert end == rows.cells and next(maps, None) is None


def test_each_tile_is_counted_and_images_keep_their_order():
    images, counted = [noise(*size, i) for i, size in enumerate(SIZES)], []
    predictor, sources = stub(local_scores), [as_source(image) for image in images]
    results = list(predictor(sources, pytest.fail, CLASSES, lambda: counted.append(1)))
    assert [index for index, *_ in results] == list(range(len(SIZES)))
    assert len(counted) == predictor.num_tiles(sources) == 2 * 5 + 1 + 2 + 4 * 3 + 1


@pytest.fixture(scope="module")
def make_checkpoint(tmp_path_factory, tiny_network, one_device):
    """A function of fields of config.model -> the directory of a checkpoint."""

    def make(**fields):
        c = configs.default("resnet18")
        c.model.update(num_classes=len(NAMES), **fields)
        c.data.name, c.data.folder.name, c.data.folder.classes = "folder", "x", NAMES
        c.data.folder.splits = {"train": ("i", "l")}
        c.test.resize, c.test.batch_size = (), 2
        directory = tmp_path_factory.mktemp("checkpoint")
        save_variables(directory, c, random_variables(create_model(c.model)), "test")
        return directory

    return make


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint):
    return make_checkpoint()


@pytest.fixture(scope="module")
def segmenter(checkpoint):
    return isnet_jax.load(checkpoint)


@pytest.mark.parametrize("shortcut", [False, True])  # scores at stride 8 or 4
def test_without_global_context_tiles_agree_with_the_whole_image_beyond_the_receptive_field(make_checkpoint, shortcut):
    """Columns that only one tile covers are more than a receptive field, some 440 pixels, away from its border."""
    local = isnet_jax.load(make_checkpoint(image_level_context=False, semantic_level_context=False, shortcut=shortcut))
    image = noise(20, 1608 if shortcut else 1604)  # its resize to stride 4 follows the ratio of rounded sizes
    axis = tiles.place(image.shape[1], 1024, 256, STRIDE)
    assert axis.starts == [0, 584]
    whole, tiled = local.probabilities(image), local.probabilities(image, tile=(24, 1024), tile_overlap=16)
    assert len(np.unique(whole.argmax(-1))) > 1
    for columns in slice(0, 584 - STRIDE), slice(1024 + STRIDE, None):
        np.testing.assert_allclose(tiled[:, columns], whole[:, columns], atol=1e-4)
    assert np.abs(tiled - whole).max() > 1e-3  # at the border of a tile


def test_images_no_larger_than_a_tile_are_predicted_as_without(segmenter):
    images = [noise(36, 44), noise(48, 48, 1), noise(13, 9, 2)]
    for image, mask in zip(images, segmenter.predict(images, tile=48)):
        np.testing.assert_array_equal(mask, segmenter.predict(image))


def test_images_of_all_sizes_share_a_program_and_any_batch(segmenter, checkpoint):
    images = [noise(70, 44), noise(30, 100, 1), noise(13, 9, 2)]
    with mock.patch.object(inference, "score_maps", wraps=inference.score_maps) as traced:
        together = segmenter.predict(images, tile=(40, 56))
    assert traced.call_count == 1
    c = segmenter.config.copy_and_resolve_references()
    c.test.batch_size = 3
    for image, mask in zip(images, together):
        np.testing.assert_array_equal(mask, segmenter.predict(image, tile=(40, 56)))
    for mask, other in zip(together, isnet_jax.load(checkpoint, c).predict(images, tile=(40, 56))):
        np.testing.assert_array_equal(mask, other)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"tile": 1001}, "a side of 1001 pixels; it must be a multiple of 8, such as 1000"),
        ({"tile": (64, 0)}, "a side of 0 pixels"),
        ({"tile": 80_000}, "--tile=80000x80000 is larger than any image"),
        ({"tile": 64, "tile_overlap": 64}, "--tile_overlap is 64; .* from 0 to 56"),
        ({"tile": 64, "tile_overlap": 12}, "--tile_overlap is 12"),
        ({"tile": 64, "tile_overlap": -8}, "--tile_overlap is -8"),
        ({"tile_overlap": 8}, "add --tile"),
        ({"tile": 64, "tta": True}, "leave out --tta"),
        ({"tile": 64, "slide": True}, "leave out --slide"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        prediction_files.predict_images(["missing.jpg"], tmp_path / "out", "missing", **arguments)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest resets our own filter
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "gif", "bmp"])
def test_only_tiles_lift_the_bound_on_pixels(segmenter, tmp_path, monkeypatch, suffix):
    """Pillow's bound, which holds for the whole process, is as before afterwards."""
    monkeypatch.setattr(limits, "MAX_PIXELS", 1_500_000)
    monkeypatch.setattr(limits, "MAX_TILED_PIXELS", 4_000_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600_000)
    path = tmp_path / f"large.{suffix}"
    Image.fromarray(noise(32, 40).repeat(40, 0).repeat(40, 1)).save(path)  # 2 megapixels
    with pytest.raises(UserError, match="megapixels.*predict --tile=1024"):
        segmenter.predict(path)
    assert source(path, max_pixels(tiles.make_tiling(64))).read().shape == (1280, 1600, 3)
    assert Image.MAX_IMAGE_PIXELS == 600_000
    with pytest.raises(UserError, match="more than 2 megapixels"):
        decoding.read_header(path, 2_000_000)


def test_predict_writes_predictions_in_tiles(segmenter, checkpoint, tmp_path):
    (tmp_path / "in").mkdir()
    image = noise(70, 100)
    Image.fromarray(image).save(tmp_path / "in/a.png")
    prediction_files.predict_images([str(tmp_path / "in")], tmp_path / "out", str(checkpoint), tile=(40, 56), top=2)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"a.png", "a_overlay.jpg", "a_confidence.png", "a_scores.npz"}
    expected = segmenter.predict(image, tile=(40, 56))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/a.png")), expected)
    scores = np.load(tmp_path / "out/a_scores.npz")
    np.testing.assert_array_equal(scores["classes"][..., 0], expected)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "CMYK"])
def test_bands_change_no_pixel(mode, monkeypatch):
    """Of large images, which are decoded and drawn in bands."""
    image = Image.fromarray(noise(23, 17)).convert(mode)
    monkeypatch.setattr(decoding, "BAND_PIXELS", 50)
    np.testing.assert_array_equal(decoding.rgb(image), np.asarray(image.convert("RGB")))


def test_bands_of_pictures_have_the_outlines_of_the_whole(monkeypatch):
    image, classes = noise(23, 17), np.random.default_rng(1).integers(0, 2, (23, 17)).astype(np.uint8)
    whole = pictures.overlay(image, classes, [(0, 0, 0), (255, 0, 0)])
    monkeypatch.setattr(pictures, "BAND_PIXELS", 50)
    np.testing.assert_array_equal(pictures.overlay(image, classes, [(0, 0, 0), (255, 0, 0)]), whole)
    np.testing.assert_array_equal(pictures.look_up(np.array([7, 9]), classes), np.array([7, 9])[classes])
