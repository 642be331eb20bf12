"""Batches: pure functions of (seed, step), with geometry and photometry as the protocol states them."""
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from isnet_jax import augment, config, input_pipeline, photometry


class Records:
    """A split in memory: image i of a size of its own, PNG-encoded, whose label is its red channel // 32."""

    def __init__(self, count, sizes=((40, 56), (33, 47), (64, 48))):
        rng = np.random.default_rng(0)
        self.records = []
        for i in range(count):
            height, width = sizes[i % len(sizes)]
            image = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3)).repeat(8, 0).repeat(8, 1)
            image = image[:height, :width].astype(np.uint8)
            image[0, 0, 2] = i  # which one it is
            self.records.append({"image": tf.io.encode_png(image).numpy(), "height": height, "width": width,
                                 "label": tf.io.encode_png(image[..., :1] // 32).numpy()})

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


SOURCE = Records(11)


def collect(start, stop, processes=1, **changes):
    """Global batches at steps start..stop-1, the processes' parts put together."""
    parts = [list(input_pipeline.train_batches(SOURCE, small_config(**changes), start, stop, p, processes))
             for p in range(processes)]
    return [{name: np.concatenate([part[i][name] for part in parts]) for name in parts[0][0]}
            for i in range(stop - start)]


def assert_same(a, b):
    for batch_a, batch_b in zip(a, b, strict=True):
        for name in batch_a:
            np.testing.assert_array_equal(batch_a[name], batch_b[name], name)


def test_a_batch_depends_on_seed_and_step_alone():
    whole = collect(0, 5)  # two steps an epoch: step 3 is in mid-epoch
    assert_same(whole[3:], collect(3, 5))
    for processes in (2, 4):
        assert_same(whole, collect(0, 5, processes))
    other = collect(0, 5, seed=1)
    assert any((a["image"] != b["image"]).any() for a, b in zip(whole, other))


def test_every_example_at_most_once_an_epoch_and_epochs_differ():
    """11 examples, batches of 4: two steps, the last three of the epoch's order dropped."""
    orders = [np.concatenate([input_pipeline.batch_indices(step, 11, 4, 0)[1] for step in (2 * e, 2 * e + 1)])
              for e in range(40)]
    assert all(len(set(order)) == 8 for order in orders)
    assert len({tuple(order) for order in orders}) == 40
    assert set(np.concatenate(orders)) == set(range(11))
    seeds = {tuple(input_pipeline.example_seed(0, e, i)) for e in range(20) for i in range(11)}
    assert len(seeds) == 220


def test_image_and_label_stay_aligned_through_the_geometry():
    """Blocks are 8 pixels or more: away from their borders the label is still the red channel // 32."""
    agreed = total = 0
    for batch in collect(0, 20):
        for image, label, (top, left, height, width) in zip(batch["image"], batch["label"], batch["window"]):
            inside = np.zeros(label.shape, bool)
            inside[top:top + height, left:left + width] = True
            assert (label[~inside] == 255).all() and (image[~inside] == 0).all()
            assert (top, left) == ((32 - height) // 2, (48 - width) // 2)  # centred
            red = image[..., 0].astype(int)
            flat = np.zeros_like(inside)  # where the image is locally constant
            flat[1:-1, 1:-1] = ((red[1:-1, 1:-1] == red[:-2, 1:-1]) & (red[1:-1, 1:-1] == red[2:, 1:-1])
                                & (red[1:-1, 1:-1] == red[1:-1, :-2]) & (red[1:-1, 1:-1] == red[1:-1, 2:]))
            flat &= inside
            agreed += (label[flat] == red[flat] // 32).sum()
            total += flat.sum()
    assert total > 10_000 and agreed > 0.99 * total


def plain_statement(image, label, seed, c):
    """The protocol's geometry in NumPy and OpenCV, with the numbers `augment` draws: (image, label, window)."""
    cv2 = pytest.importorskip("cv2")
    def draw(stream, shape=()):
        return tf.random.stateless_uniform(shape, [seed[0], seed[1] ^ (stream << 8)], dtype=tf.float64).numpy()

    low, high = c.scale_range
    r = low + (high - low) * draw(1)
    long, short = (int(n * r) for n in c.resize)
    h, w = label.shape
    s = min(long / max(h, w), short / min(h, w))
    size = int(h * s + 0.5), int(w * s + 0.5)

    def source(n_out, n_in):
        x = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
        i = np.minimum(np.floor(x).astype(int), max(n_in - 2, 0))
        return i, np.minimum(i + 1, n_in - 1), x - i

    (y0, y1, fy), (x0, x1, fx) = source(size[0], h), source(size[1], w)
    f = image.astype(float)
    rows = f[y0] * (1 - fy)[:, None, None] + f[y1] * fy[:, None, None]
    image = rows[:, x0] * (1 - fx)[:, None] + rows[:, x1] * fx[:, None]
    label = cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)
    ch, cw = min(c.crop_size[0], size[0]), min(c.crop_size[1], size[1])
    for attempt in range(10):
        key = [seed[0], (seed[1] ^ (2 << 8)) + attempt]
        u = tf.random.stateless_uniform((2,), key, dtype=tf.float64).numpy()
        top, left = int(u[0] * (size[0] - ch + 1)), int(u[1] * (size[1] - cw + 1))
        crop = label[top:top + ch, left:left + cw]
        _, counts = np.unique(crop[crop != 255], return_counts=True)
        if len(counts) > 1 and counts.max() / counts.sum() < c.max_class_share:
            break
    image, label = image[top:top + ch, left:left + cw], crop
    if draw(3) < 0.5:
        image, label = image[:, ::-1], label[:, ::-1].copy()
        swapped = label.copy()
        for a, b in c.flip_pairs:
            swapped[label == a], swapped[label == b] = b, a
        label = swapped
    top, left = (c.crop_size[0] - ch) // 2, (c.crop_size[1] - cw) // 2
    out_image, out_label = np.zeros((*c.crop_size, 3)), np.full(c.crop_size, 255)
    out_image[top:top + ch, left:left + cw], out_label[top:top + ch, left:left + cw] = image, label
    return out_image, out_label, (top, left, ch, cw)


@pytest.mark.parametrize("pairs", [(), ((0, 1), (2, 3))])
def test_geometry_equals_the_plain_statement(pairs):
    c = small_config(**{"augment.flip_pairs": pairs, "augment.max_class_share": 0.4}).augment
    rng = np.random.default_rng(1)
    step = tf.function(lambda image, label, seed: augment.augment(image, label, tf.unstack(seed, 2), c),
                       input_signature=[tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((None, None), tf.uint8),
                                        tf.TensorSpec((2,), tf.int32)])
    for i in range(150):
        height, width = rng.integers(20, 70, 2)
        image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        label = rng.integers(0, 5, (height // 6 + 1, width // 6 + 1)).repeat(6, 0).repeat(6, 1)[:height, :width]
        label = np.where(rng.random(label.shape) < 0.1, 255, label).astype(np.uint8)
        seed = input_pipeline.example_seed(0, 0, i)
        found = step(tf.constant(image), tf.constant(label), tf.constant(seed))
        expected = plain_statement(image, label, [int(x) for x in seed], c)
        assert tuple(found["window"].numpy()) == expected[2]
        np.testing.assert_array_equal(found["label"], expected[1])
        assert np.abs(found["image"].numpy() - expected[0]).max() <= 0.51  # rounded to integers


def test_rotation_turns_image_and_label_together():
    c = small_config(**{"augment.rotate_probability": 1.0, "augment.crop_size": (40, 40)}).augment
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, 20:] = 250
    label = (image[..., 0] // 250).astype(np.uint8)
    turned = 0
    for i in range(6):
        found = augment.augment(tf.constant(image), tf.constant(label),
                                tf.unstack(tf.constant(input_pipeline.example_seed(0, 0, i)), num=2), c)
        label_out, red = found["label"].numpy(), found["image"].numpy()[..., 0].astype(int)
        turned += (label_out == 255).any()
        assert (np.abs(red / 250 - label_out)[label_out != 255] < 0.6).mean() > 0.97
    assert turned >= 5  # corners are filled with 255


def test_evaluation_drops_nothing_and_pads_the_last_batch():
    canvas = input_pipeline.eval_canvas(SOURCE, small_config())
    batches = list(input_pipeline.eval_batches(SOURCE, small_config(), canvas))
    assert [batch["image"].shape for batch in batches] == [(4, 64, 56, 3)] * 3
    index = np.concatenate([batch["index"] for batch in batches])
    assert index.tolist() == [*range(11), -1]
    assert (batches[-1]["label"][3] == 255).all()
    for batch in batches[:2]:
        for i, (h, w), image, label in zip(batch["index"], batch["label_size"], batch["image"], batch["label"]):
            assert image[0, 0, 2] == i and (label[:h, :w] == image[:h, :w, 0] // 32).all()
            assert (label[h:] == 255).all() and (label[:, w:] == 255).all()
    halves = [list(input_pipeline.eval_batches(SOURCE, small_config(), canvas, p, 2)) for p in (0, 1)]
    joined = [np.concatenate([a["index"], b["index"]]) for a, b in zip(*halves, strict=True)]
    assert np.concatenate(joined).tolist() == index.tolist()


def test_photometry_equals_opencv():
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    x[:8] = x[:8, :, :1]  # greys
    h, s, v = (np.asarray(c) for c in photometry.rgb_to_hsv(x.astype(np.float32)))
    np.testing.assert_array_equal(np.stack([h, s, v], -1), cv2.cvtColor(x, cv2.COLOR_RGB2HSV))
    hsv = np.stack([rng.integers(0, 180, (64, 64)), *rng.integers(0, 256, (2, 64, 64))], -1).astype(np.uint8)
    back = np.asarray(photometry.hsv_to_rgb(*np.moveaxis(hsv.astype(np.float32), -1, 0)))
    assert np.abs(back - cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)).max() <= 1


def test_photometry_distribution_and_padding():
    import jax
    images = np.full((4000, 1, 1, 3), 100, np.uint8) + np.array([0, 20, 50], np.uint8)
    out = np.asarray(photometry.distort(jax.random.key(0), images))[:, 0, 0]
    assert (out == np.floor(out)).all() and out.min() >= 0 and out.max() <= 255
    unchanged = (out == images[:, 0, 0]).all(1).mean()
    assert 1 / 16 < unchanged < 1 / 16 + 0.06  # four coins; a drawn change may round to none
    windows = np.array([[0, 0, 1, 1], [0, 0, 0, 0]])
    x = np.asarray(photometry.normalize(images[:2], windows))
    assert (x[1] == 0).all()
    np.testing.assert_allclose(x[0, 0, 0], (images[0, 0, 0] - photometry.MEAN) / np.array(photometry.STD), rtol=1e-5)
