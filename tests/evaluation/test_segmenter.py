"""`isnet_jax.load`: a trained network as an object, equal to the command `predict`."""

import concurrent.futures
import functools
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import isnet_jax
from isnet_jax import config as configs
from isnet_jax.checkpoints.manager import save_variables
from isnet_jax.errors import UserError
from isnet_jax.evaluation import inference, prediction_files, predictor
from isnet_jax.input.photometry import normalize
from isnet_jax.models.isnet import create_model

SIZE = 36, 44  # of most images: one compilation
NAMES = tuple("abcdefgh")


def tiny_config():
    c = configs.default("resnet18")
    c.model.num_classes, c.data.name = len(NAMES), "folder"
    c.data.folder.name, c.data.folder.classes, c.data.folder.splits = "x", NAMES, {"train": ("i", "l")}
    c.test.resize, c.test.max_shape_buckets = (), 2
    c.test.tta.scales, c.test.tta.average = (1.0, 0.5), "softmax"
    c.test.tta.crop_size, c.test.tta.stride = (24, 24), (16, 16)
    return c


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_network, one_device):
    c = tiny_config()
    model = create_model(c.model)
    variables = jax.jit(lambda: model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32)))()
    directory = tmp_path_factory.mktemp("checkpoint")
    save_variables(directory, c, jax.device_get(variables), "test")
    return directory


@pytest.fixture(scope="module")
def segmenter(checkpoint):
    return isnet_jax.load(checkpoint)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def expected(segmenter):
    """The probabilities of `noise(*SIZE)` by the functions of `inference`, without padding."""
    images = normalize(noise(*SIZE)[None])
    predict = functools.partial(inference.predict, segmenter.model, output_shape=SIZE, average="logits")
    return np.asarray(jax.jit(lambda v: jax.nn.softmax(predict(v, images)))(segmenter._variables))[0]


def test_images_in_all_forms_give_the_same_mask(segmenter, expected, tmp_path):
    image = noise(*SIZE)
    Image.fromarray(image).save(tmp_path / "a.png")
    mask = segmenter.predict(image)
    assert mask.dtype == np.uint8 and mask.shape == SIZE
    np.testing.assert_array_equal(mask, expected.argmax(-1))
    for form in tmp_path / "a.png", str(tmp_path / "a.png"), Image.open(tmp_path / "a.png"), Image.fromarray(image):
        np.testing.assert_array_equal(segmenter.predict(form), mask)


def test_a_photograph_is_predicted_as_viewers_show_it(segmenter, tmp_path):
    image = noise(*SIZE)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(image, -1)  # of another shape, in which another mask would be seen
    for form in tmp_path / "a.png", Image.open(tmp_path / "a.png"), np.ascontiguousarray(upright):
        np.testing.assert_array_equal(segmenter.predict(form), segmenter.predict(upright))


def test_images_of_mixed_sizes_are_predicted_as_if_alone(segmenter, expected):
    images = [noise(*SIZE), noise(30, 40, 1), noise(24, 44, 2)]
    masks = segmenter.predict(images)
    assert isinstance(masks, list) and segmenter.predict([]) == []
    np.testing.assert_array_equal(next(iter(segmenter.predict(image for image in images))), masks[0])
    for image, mask in zip(images, masks):
        assert mask.shape == image.shape[:2]
        np.testing.assert_array_equal(mask, segmenter.predict(image))
    np.testing.assert_array_equal(masks[0], expected.argmax(-1))


def test_threads_share_a_few_programs(segmenter):
    sizes = [(SIZE[0] - i, SIZE[1] - i) for i in range(6)]
    alone = [segmenter.predict(noise(*size)) for size in sizes]
    compiled = segmenter.predictor()._step._cache_size()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda size: segmenter.predict(noise(*size)), sizes))
    for a, b in zip(alone, together):
        np.testing.assert_array_equal(a, b)
    assert segmenter.predictor()._step._cache_size() == compiled <= 6


def test_probabilities(segmenter, expected):
    image = noise(*SIZE)
    found = segmenter.probabilities(image)
    assert found.dtype == np.float32 and found.shape == (*SIZE, len(NAMES))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.argmax(-1), segmenter.predict(image))
    classes, values = segmenter.probabilities(image, top=3)
    assert classes.dtype == np.uint8 and classes.shape == values.shape == (*SIZE, 3)
    np.testing.assert_allclose(values, np.sort(found, -1)[..., ::-1][..., :3], rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(found, classes.astype(int), -1), values, rtol=1e-5)


def test_probabilities_with_tta_sum_to_one(segmenter):
    image = noise(*SIZE)
    found = segmenter.probabilities(image, tta=True)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found.argmax(-1), segmenter.predict(image, tta=True))


def test_predict_writes_probabilities(segmenter, checkpoint, tmp_path):
    image = noise(*SIZE)
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in/a.png")
    prediction_files.predict_images([str(tmp_path / "in")], tmp_path / "out", str(checkpoint), top=100)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"a.png", "a_overlay.jpg", "a_confidence.png", "a_scores.npz"}
    found, expected = segmenter.probabilities(image), np.load(tmp_path / "out/a_scores.npz")
    np.testing.assert_array_equal(expected["classes"][..., 0], segmenter.predict(image))
    sorted_values = np.take_along_axis(found, expected["classes"].astype(int), -1)
    np.testing.assert_allclose(expected["probabilities"], sorted_values, atol=1e-3)
    np.testing.assert_allclose(np.asarray(Image.open(tmp_path / "out/a_confidence.png")), 255 * found.max(-1), atol=1)


def test_windows_at_a_single_scale(segmenter):
    image = noise(*SIZE)
    predict = functools.partial(inference.predict, segmenter.model, output_shape=SIZE, average="logits")
    windows = {"mode": "slide", "crop_size": (24, 24), "stride": (16, 16)}
    scores = jax.jit(lambda v: predict(v, normalize(image[None]), **windows))(segmenter._variables)
    source = predictor.Source(SIZE, lambda: image)
    [(_, _, mask)] = segmenter.predictor(slide=True)([source], pytest.fail)
    np.testing.assert_array_equal(mask, np.asarray(scores)[0].argmax(-1))
    whole = configs.inference_settings(segmenter.config)
    assert configs.inference_settings(segmenter.config, slide=True) == {**whole, **windows}
    c = configs.default()
    assert configs.inference_settings(c, slide=True)["stride"] == (341, 341)  # of windows of 512, as in training


def test_classes_colours_and_overlay(segmenter):
    assert segmenter.classes == NAMES and len(segmenter.palette) == len(NAMES)
    assert segmenter.config.data.folder.classes == NAMES
    image, mask = noise(20, 30), np.zeros((20, 30), np.uint8)
    overlay = segmenter.overlay(image, mask)
    np.testing.assert_allclose(overlay, (image + np.array(segmenter.palette[0])) / 2, atol=1)
    with pytest.raises(UserError, match="The mask is"):
        segmenter.overlay(image, mask[1:])


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((4, 4), np.uint8), r"uint8 \(4, 4\).*Image.fromarray"),
        (np.zeros((4, 4, 3)), "float64"),
        (np.zeros((0, 4, 3), np.uint8), "0 x 4 pixels"),
        (Image.new("F", (4, 4)), "32 bits"),
        ("missing.png", "missing.png"),
        ([None], "NoneType"),
    ],
)
def test_what_is_no_image_is_refused(segmenter, image, message):
    with pytest.raises(UserError, match=message):
        segmenter.predict(image)


@pytest.mark.parametrize("top", [0, -1, len(NAMES) + 1])
def test_top_must_be_a_number_of_classes(segmenter, top):
    with pytest.raises(UserError, match="from 1 to 8"):
        segmenter.probabilities(noise(8, 8), top=top)


def test_files_need_a_config(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(UserError, match="does not record how the network is built"):
        isnet_jax.load(tmp_path / "a.pth")


def test_config_is_checked(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"")
    c = configs.default()
    c.model.num_classes, c.test.batch_size = 8, 0
    with pytest.raises(UserError, match="config.test.batch_size is 0"):
        isnet_jax.load(tmp_path / "a.pth", c)


def test_class_tables_need_no_tensorflow():
    code = (
        "import sys, isnet_jax; from isnet_jax import config; from isnet_jax.evaluation import predictor, segmenter;"
        "c = config.default(); c.data.name, c.model.num_classes = 'ade20k', 150;"
        "assert predictor.class_table(c).names[0] == 'wall'; assert isnet_jax.load is segmenter.load;"
        "assert not {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_known_shapes_are_taken_where_that_costs_little():
    shapes = predictor.KnownShapes(enough=2)
    assert shapes.padded(np.array([[64, 64, 64, 64]])) == [(64, 64, 64, 64)]
    assert shapes.padded(np.array([[60, 62, 60, 62], [10, 10, 10, 10]])) == [(64, 64, 64, 64), (10, 10, 10, 10)]
    assert shapes.padded(np.array([[100, 70, 90, 60]])) == [(128, 128, 128, 64)]  # there are enough: rounded up
