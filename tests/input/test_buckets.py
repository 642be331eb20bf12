"""The choice of shape buckets: its limit, its fit, and the padding it leaves on sizes like ADE20K's."""

import csv
import itertools

import numpy as np
import pytest
from paths import SHARED

from isnet_jax.input import buckets
from isnet_jax.input.resizing import target_size

SIZES = SHARED / "data/extras/ade20k/train_sizes.csv"
WEIGHTS = 1.0, 0.1  # relative costs of a pixel of the network's input, and of the label


def relative_padding(chosen, sizes, weights=(1.0,)):
    """The share by which the examples cost more in their buckets than without padding."""
    return buckets.cost(chosen.sizes[chosen.which], weights).sum() / buckets.cost(sizes, weights).sum() - 1


def test_choose_buckets_fits_every_example_within_the_limit():
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 700, (300, 4))
    for max_buckets in (1, 3, 8):
        chosen = buckets.choose_buckets(sizes, max_buckets, WEIGHTS)
        assert len(chosen.sizes) <= max_buckets
        assert (sizes <= chosen.sizes[chosen.which]).all()
        for i, bucket in enumerate(chosen.sizes):  # none is larger than its examples
            np.testing.assert_array_equal(sizes[chosen.which == i].max(0), bucket)
        assert (np.diff(buckets.cost(chosen.sizes, WEIGHTS)) >= 0).all()


def test_choose_buckets_does_not_pad_few_sizes():
    sizes = np.array([(473, 473, 220, 154), (473, 473, 377, 130), (473, 473, 220, 154)])
    chosen = buckets.choose_buckets(sizes, 2, WEIGHTS)
    np.testing.assert_array_equal(chosen.sizes[chosen.which], sizes)
    assert relative_padding(chosen, sizes, WEIGHTS) == 0


def test_choose_buckets_merges_what_costs_less_than_a_bucket():
    sizes = np.array([(100, 100)] * 3 + [(104, 100)] * 3 + [(200, 300)])
    assert len(buckets.choose_buckets(sizes, 8).sizes) == 3
    chosen = buckets.choose_buckets(sizes, 8, bucket_cost=1201)  # merging the first two costs 3 x 400 pixels
    np.testing.assert_array_equal(chosen.sizes, [(104, 100), (200, 300)])
    assert len(buckets.choose_buckets(sizes, 8, bucket_cost=1200).sizes) == 3
    assert len(buckets.choose_buckets(sizes, 8, bucket_cost=1e9).sizes) == 1


def test_choose_buckets_comes_near_the_best_partition():
    """Compared with all ways to put seven sizes into two buckets."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(20):
        sizes = rng.integers(100, 600, (7, 2))
        best = min(
            sum(len(part) * buckets.cost(part.max(0)) for part in (sizes[mask], sizes[~mask]) if len(part))
            for mask in map(np.array, itertools.product([False, True], repeat=7))
        )
        chosen = buckets.choose_buckets(sizes, 2)
        ratios.append(buckets.cost(chosen.sizes[chosen.which]).sum() / best)
    assert min(ratios) >= 1 and np.mean(ratios) < 1.03


def padding_of_eight_buckets(original):
    """Padding of the network's input, for (height, width) of images under ADE20K's official test setting."""
    sizes = np.concatenate([[target_size(h, w, (2048, 512), True) for h, w in original.tolist()], original], axis=1)
    assert len(np.unique(sizes, axis=0)) > 3000
    chosen = buckets.choose_buckets(sizes, 8, WEIGHTS)
    assert len(chosen.sizes) == 8 and (sizes <= chosen.sizes[chosen.which]).all()
    network = relative_padding(chosen._replace(sizes=chosen.sizes[:, :2]), sizes[:, :2])
    print(
        f"8 shape buckets: {100 * network:.2f} % padding of the network's input, "
        f"{100 * relative_padding(chosen, sizes, WEIGHTS):.2f} % with labels at a tenth"
    )
    return network


def test_padding_on_the_sizes_of_ade20k():
    """All 20,210 training images; docs/performance.md states the result."""
    if not SIZES.exists():
        pytest.skip(f"the list of sizes is not at {SIZES}")
    with open(SIZES) as file:
        original = np.array([(int(row["height"]), int(row["width"])) for row in csv.DictReader(file)])
    assert len(original) == 20210
    assert padding_of_eight_buckets(original) < 0.06


def test_padding_on_generated_sizes():
    """Sizes distributed like ADE20K's: a few frequent ones, and short sides and aspect ratios that vary widely."""
    rng, count = np.random.default_rng(0), 20000
    frequent = np.array([(512, 683), (256, 256), (512, 768), (683, 512), (480, 640)])
    short = np.where(rng.random(count) < 0.5, 512, rng.integers(200, 512, count))
    ratio = np.where(rng.random(count) < 0.4, 4 / 3, np.clip(rng.normal(1.4, 0.2, count), 1, 3.9))
    varied = np.stack([short, (short * ratio).astype(int)], axis=1)
    portrait = rng.random(count) < 0.3
    varied[portrait] = varied[portrait, ::-1]
    some = rng.random(count) < 0.5
    original = np.where(some[:, None], frequent[rng.choice(5, count, p=[0.5, 0.33, 0.07, 0.06, 0.04])], varied)
    assert padding_of_eight_buckets(original) < 0.05
