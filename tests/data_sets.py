"""Drawn and real data sets in the trees they come in, and what is checked of their records."""

import contextlib
import io

import numpy as np
import pytest
import scipy.io
from paths import SHARED
from PIL import Image

from isnet_jax import datasets
from isnet_jax.errors import UserError

DATA = SHARED / "data"


needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"the real samples are not at {DATA}")


def read_png(path):
    return np.array(Image.open(path))


def records(builder, split):
    from isnet_jax.datasets import common

    return builder.as_data_source(split, decoders=common.ENCODED)


def labels(builder, split):
    """Returns {name: label} of the records."""
    return {
        record["name"].decode(): np.array(Image.open(io.BytesIO(record["label"]))) for record in records(builder, split)
    }


def check_split(builder, split, images, expected):
    """images: {name: path}; expected: {name: train ids}."""
    assert [record["name"].decode() for record in records(builder, split)] == sorted(images)
    for record in records(builder, split):
        name = record["name"].decode()
        label = np.array(Image.open(io.BytesIO(record["label"])))
        np.testing.assert_array_equal(label, expected[name])
        assert label.dtype == np.uint8 and record["image"] == images[name].read_bytes()
        assert (record["height"], record["width"]) == label.shape


def link(tree):
    """Makes symbolic links, {place: original}."""
    for place, original in tree.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(original)


def refusal(name, tree, *parts, **more):
    """Prepares the tree, expects a UserError, and these parts in it or in what is told before."""
    told = io.StringIO()
    with pytest.raises(UserError) as error, contextlib.redirect_stderr(told):
        datasets.load(name, tree.parent / "data", tree, **more)
    message = f"{told.getvalue()}{error.value}"
    for part in parts:
        assert str(part) in message, message
    return str(error.value)


def builder_class(name):
    module, _, class_name = datasets.CLASSES[name].partition(".")
    return getattr(__import__(f"isnet_jax.datasets.{module}", fromlist=[class_name]), class_name)


def draw(tree, images=(), labels=(), value=1):
    """Writes images of 4 x 5 and labels full of a value."""
    for place in images:
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4)).save(tree / place)
    for place in labels:
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        label = np.full((4, 5), value, np.uint8)
        if place.endswith(".mat"):
            scipy.io.savemat(tree / place, {"S": label})
        else:
            Image.fromarray(label).save(tree / place)
