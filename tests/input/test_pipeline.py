"""Batches: training batches are pure functions of (seed, step), and evaluation drops nothing."""

import os
import runpy
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import tensorflow as tf
from paths import ROOT

from isnet_jax import UserError, config
from isnet_jax.input import augment, pipeline, records, resizing


class InMemory:
    """A split in memory: PNG-encoded images of several sizes, whose labels are their red channel // 32."""

    def __init__(self, count, sizes=((40, 56), (33, 47), (64, 48))):
        rng = np.random.default_rng(0)
        self.records = []
        for i in range(count):
            height, width = sizes[i % len(sizes)]
            image = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3)).repeat(8, 0).repeat(8, 1)
            image = image[:height, :width].astype(np.uint8)
            image[0, 0, 2] = i  # identifies the image
            self.records.append(
                {
                    "image": tf.io.encode_png(image).numpy(),
                    "height": height,
                    "width": width,
                    "label": tf.io.encode_png(image[..., :1] // 32).numpy(),
                }
            )

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]

    def __getitems__(self, indices):
        return [self.records[i] for i in indices]


def small_config(**changes):
    c = config.default()
    c.augment.resize, c.augment.crop_size, c.train.global_batch_size, c.test.batch_size = (80, 40), (32, 48), 4, 4
    c.test.resize = ()
    c.update_from_flattened_dict(changes)
    return c


STORED = InMemory(11)
SOURCE = records.Records(STORED)


def collect(start, stop, processes=1, **changes):
    """Global batches at steps start..stop-1, concatenated from the parts of all processes."""
    parts = [
        list(pipeline.train_batches(SOURCE, small_config(**changes), start, stop, rows))
        for rows in np.split(np.arange(4), processes)
    ]
    return [
        {name: np.concatenate([part[i][name] for part in parts]) for name in parts[0][0]} for i in range(stop - start)
    ]


def assert_same(a, b):
    for batch_a, batch_b in zip(a, b, strict=True):
        for name in batch_a:
            np.testing.assert_array_equal(batch_a[name], batch_b[name], name)


def test_train_batches_depend_on_seed_and_step_only():
    whole = collect(0, 5)  # two steps an epoch: step 3 is in the middle of one
    assert_same(whole[3:], collect(3, 5))
    for processes in (2, 4):
        assert_same(whole, collect(0, 5, processes))
    other = collect(0, 5, seed=1)
    assert any((a["image"] != b["image"]).any() for a, b in zip(whole, other))


def test_batch_indices_visit_each_example_at_most_once_an_epoch():
    """11 examples in batches of 4: two steps an epoch, and the last three of its order are dropped."""
    orders = [
        np.concatenate([pipeline.batch_indices(step, 11, 4, 0)[1] for step in (2 * e, 2 * e + 1)]) for e in range(40)
    ]
    assert all(len(set(order)) == 8 for order in orders)
    assert len({tuple(order) for order in orders}) == 40
    assert set(np.concatenate(orders)) == set(range(11))
    draws = {augment.generator((0, epoch, index)).random() for epoch in range(20) for index in range(11)}
    assert len(draws) == 220


def test_train_batches_keep_image_and_label_aligned():
    """Blocks are at least 8 pixels wide: away from their borders the label is still the red channel // 32."""
    agreed = total = 0
    for batch in collect(0, 20):
        for image, label, (top, left, height, width) in zip(batch["image"], batch["label"], batch["window"]):
            inside = np.zeros(label.shape, bool)
            inside[top : top + height, left : left + width] = True
            assert (label[~inside] == 255).all() and (image[~inside] == 0).all()
            assert (top, left) == ((32 - height) // 2, (48 - width) // 2)  # centred
            red = image[..., 0].astype(int)
            flat = np.zeros_like(inside)  # where the image is locally constant
            flat[1:-1, 1:-1] = (
                (red[1:-1, 1:-1] == red[:-2, 1:-1])
                & (red[1:-1, 1:-1] == red[2:, 1:-1])
                & (red[1:-1, 1:-1] == red[1:-1, :-2])
                & (red[1:-1, 1:-1] == red[1:-1, 2:])
            )
            flat &= inside
            agreed += (label[flat] == red[flat] // 32).sum()
            total += flat.sum()
    assert total > 10_000 and agreed > 0.99 * total


def test_eval_batches_drop_nothing_and_fill_up_the_last_batch_of_each_bucket():
    sizes = [(record["height"], record["width"]) for record in STORED.records]
    sizes = pipeline.eval_sizes(sizes, small_config())
    for num_buckets, done in ((1, ()), (2, ()), (3, ()), (2, (0, 3, 10))):
        c = small_config()
        plan, chosen = pipeline.eval_plan(sizes, 4, num_buckets, done)
        assert len(chosen.sizes) == num_buckets and len({entry.shape for entry in plan}) == num_buckets
        batches = list(pipeline.eval_batches(SOURCE, c, plan))
        index = np.concatenate([batch["index"] for batch in batches])
        assert sorted(index[index >= 0]) == sorted(set(range(11)) - set(done))
        for entry, batch in zip(plan, batches, strict=True):
            assert batch["image"].shape == (4, *entry.shape, 3) and batch["label"].shape == (4, *entry.label_shape)
            in_bucket = (chosen.sizes[chosen.which] == [*entry.shape, *entry.label_shape]).all(1)
            assert entry.padded == (sizes[in_bucket, :2] != entry.shape).any()
            for i, (h, w), image, label in zip(batch["index"], batch["label_size"], batch["image"], batch["label"]):
                if i < 0:
                    assert (label == 255).all()
                else:
                    assert image[0, 0, 2] == i and (label[:h, :w] == image[:h, :w, 0] // 32).all()
                    assert (label[h:] == 255).all() and (label[:, w:] == 255).all()
        halves = [list(pipeline.eval_batches(SOURCE, c, plan, rows)) for rows in ([0, 1], [2, 3])]
        joined = [np.concatenate([a["index"], b["index"]]) for a, b in zip(*halves, strict=True)]
        assert np.concatenate(joined).tolist() == index.tolist()


def test_batches_left_open_let_the_interpreter_exit():
    """Threads of tf.data that still need Python when the interpreter exits would hang or abort it."""
    code = """
import sys
sys.path[:0] = ["tests", "tests/input"]
from test_pipeline import SOURCE, small_config
from isnet_jax.input import pipeline
batches = pipeline.train_batches(SOURCE, small_config(), 0, 10**6)
next(batches)
raise ValueError("left open")
"""
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 1 and "left open" in done.stderr and "terminate" not in done.stderr


def test_batches_start_no_thread_that_tunes(monkeypatch):
    """It sleeps for up to a minute, and the end of a run of many steps would wait for it."""
    options, iterate = [], tf.data.Dataset.as_numpy_iterator
    monkeypatch.setattr(
        tf.data.Dataset, "as_numpy_iterator", lambda dataset: options.append(dataset.options()) or iterate(dataset)
    )
    pipeline.train_batches(SOURCE, small_config(), 0, 1).close()
    assert options[0].autotune.enabled is False


def test_batches_keep_opencv_to_one_thread_from_first_use_on():
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        runpy.run_path(resizing.__file__)  # importing it changes nothing
        assert cv2.getNumThreads() == 2
        pipeline.train_batches(SOURCE, small_config(), 0, 1).close()
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)


def test_batches_name_a_record_that_cannot_be_decoded():
    stored = InMemory(4)
    stored.records[2]["image"] = stored.records[2]["image"][:40]
    source = records.Records(stored, ["a", "b", "c", "d"], "the shards")
    with pytest.raises(UserError, match="example c in the shards cannot be decoded: .*isnet_jax.prepare --check"):
        list(pipeline.train_batches(source, small_config(), 0, 1))
    plan, _ = pipeline.eval_plan(np.full((4, 4), 64), 4, 1)
    with pytest.raises(UserError, match="example c in the shards cannot be decoded"):
        list(pipeline.eval_batches(source, small_config(), plan))


class Flaky(InMemory):
    """A source of four examples; example 2 fails `failures` times, as network storage does."""

    def __init__(self, failures):
        super().__init__(4)
        self.left, self.tries = failures, 0

    def __getitems__(self, indices):
        if 2 in indices:
            self.tries += 1
            if self.left:
                self.left -= 1
                raise OSError(5, "Input/output error")
        return super().__getitems__(indices)


def test_records_retry_a_flaky_read_and_then_name_the_example(monkeypatch, capsys):
    monkeypatch.setattr(records, "RETRY_DELAYS", (0.01, 0.02, 0.03))
    whole = list(pipeline.train_batches(records.Records(InMemory(4)), small_config(), 0, 3))
    source = records.Records(Flaky(3), "abcd", "/mnt/shards")
    assert_same(whole, list(pipeline.train_batches(source, small_config(), 0, 3)))
    assert "example c cannot be read ([Errno 5] Input/output error); trying again in 0.0" in capsys.readouterr().err
    flaky = Flaky(10**6)
    with pytest.raises(UserError, match="example c cannot be read from /mnt/shards after 4 tries: .*Input/output"):
        list(pipeline.train_batches(records.Records(flaky, "abcd", "/mnt/shards"), small_config(), 0, 1))
    assert flaky.tries == 5  # the batch, then the example four times


def test_records_warn_of_a_slow_read_while_it_lasts(monkeypatch, capsys):
    class Slow(InMemory):
        def __getitems__(self, indices):
            while not (warning := capsys.readouterr().err):
                time.sleep(0.01)
            assert "reading a, b, c, ... from /mnt/shards has taken more than 0.05 s so far" in warning
            return super().__getitems__(indices)

    monkeypatch.setattr(records, "SLOW_SECONDS", 0.05)
    assert len(records.Records(Slow(4), "abcd", "/mnt/shards").__getitems__([0, 1, 2, 3])) == 4
    monkeypatch.setattr(records, "SLOW_SECONDS", 30)
    records.Records(InMemory(4)).__getitems__([0])
    assert capsys.readouterr().err == ""
