"""browse: exactly the batches of the run, as pictures with their labels."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_run import overrides, run_inside, small_config

from isnet_jax import config
from isnet_jax.input import pipeline
from isnet_jax.input.data import open_data
from isnet_jax.models.isnet import ISNet
from isnet_jax.runtime import sharding
from isnet_jax.training import browsing, step
from isnet_jax.training.optimizer import make_optimizer, make_schedule


def browse(camvid, output, *more, **fields):
    words = "--config=configs/camvid.py:resnet18", f"--output={output}", *overrides(camvid, **fields), *more
    return run_inside(*words, module="browse")


def images_of_step(number, batch, seed):
    """What the train step after `number` others gives to the network."""

    class Seen(Exception):
        pass

    class Network(ISNet):
        def apply(self, variables, images, **_):
            raise Seen(np.asarray(images))

    network, c = Network("resnet18", 11), config.default("resnet18")
    schedule = make_schedule(c.train, 6)
    state = step.TrainState(jnp.int32(number), {"x": jnp.ones(1)}, {}, (), None)
    with pytest.raises(Seen) as seen:
        optimizer = make_optimizer(c.train, schedule)
        step.train_step(
            state, jax.tree.map(jnp.asarray, batch), model=network, optimizer=optimizer, schedule=schedule, seed=seed
        )
    return seen.value.args[0]


def test_browse_shows_what_the_train_step_sees(camvid, tmp_path, monkeypatch):
    """Images and padding as the network gets them, at the step and seed of the run; it is not built for that."""
    monkeypatch.setattr(ISNet, "__call__", None)
    fields = {"augment.scale_range": (0.3, 0.9), "seed": 5}  # small images, so that crops are padded
    code, out, err = browse(camvid, tmp_path / "b", "--step=3", "--num=10", **fields)
    assert (code, err) == (0, "") and f"10 examples of steps 3 to 4 of 6: {tmp_path}/b/index.html" in out
    c = small_config(camvid, **fields)
    data = open_data(c, sharding.make_mesh(devices=jax.devices()[:1]), "train", "val")
    page = (tmp_path / "b" / "index.html").read_text()
    names = re.findall(r"<figcaption>\d+\. (\S+)<br>", page)
    with pipeline.train_batches(data.training, c, 2, 4) as batches:
        for number, batch in enumerate(batches, 3):
            images = images_of_step(number - 1, {name: batch[name] for name in ("image", "label", "window")}, seed=5)
            for i in range(8 if number == 3 else 2):
                stem = tmp_path / "b" / f"step{number:06d}-{i:03d}"
                shown = np.asarray(Image.open(f"{stem}-image.png"))
                top, left, height, width = batch["window"][i]
                mask = np.zeros((32, 32, 1), bool)
                mask[top : top + height, left : left + width] = True
                normalised = (shown - np.array(browsing.photometry.MEAN)) / browsing.photometry.STD
                np.testing.assert_allclose(np.where(mask, normalised, 0), images[i], atol=1e-5)
                assert Image.open(f"{stem}-labels.png").size == (32, 32)
                assert names.pop(0) == data.training.name(int(batch["index"][i]))
    assert names == [] and not list((tmp_path / "b").glob("step000004-002*"))


def test_browse_tells_shares_of_ignored_pixels_padding_and_classes(tmp_path):
    image, label = np.zeros((10, 10, 3), np.uint8), np.full((10, 10), 255, np.uint8)
    label[:5, :6] = 1
    example = {"image": image, "label": label, "window": np.array([0, 0, 5, 10])}
    card = browsing._write(
        tmp_path, {**example, "step": 1, "position": 0, "name": "a"}, ["road", "sky"], [[0, 0, 0], [9, 9, 9]]
    )
    assert (card["ignored"], card["padding"], card["classes"]) == (0.7, 0.5, [("sky", [9, 9, 9], 0.3)])


def test_browse_escapes_names(tmp_path, camvid):
    page = browsing.ENVIRONMENT.get_template("browse.html").render(
        title="<b>", config=small_config(camvid), data=type("Data", (), {"training": []}), cards=[], classes=[]
    )
    assert "<b>" not in page and "&lt;b&gt;" in page


@pytest.mark.parametrize(
    "arguments, code, pattern",
    [
        (["--step=7"], 1, "--step=7 is beyond the run, which has 6 steps"),
        (["--num=0"], 2, "num"),
        (["--config.data.eval_split=x"], 1, "no split 'x'"),
    ],
)
def test_browse_reports_mistakes_in_one_paragraph(arguments, code, pattern, camvid, tmp_path):
    found, _, err = browse(camvid, tmp_path / "b", *arguments)
    assert found == code and re.search(pattern, " ".join(err.split())) and "Traceback" not in err


def test_browse_reports_an_output_that_cannot_be_written(camvid, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = browse(camvid, tmp_path / "file")
    assert code == 1 and "choose another --output" in " ".join(err.split())
