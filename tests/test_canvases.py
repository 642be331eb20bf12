"""The canvas optimiser: budget, fit, and what it saves on the real sizes of ADE20K."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest

from isnet_jax import canvases

SIZES = Path(__file__).parents[2] / "shared/data/extras/ade20k/train_sizes.csv"


def test_every_example_fits_and_the_budget_is_kept():
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 700, (300, 4))
    for budget in (1, 3, 8):
        found = canvases.choose(sizes, budget, (1, 0.1))
        assert len(found.sizes) <= budget
        assert (sizes <= found.sizes[found.which]).all()
        for i, canvas in enumerate(found.sizes):  # none is larger than what it holds
            np.testing.assert_array_equal(sizes[found.which == i].max(0), canvas)
        assert (np.diff(canvases.cost(found.sizes, (1, 0.1))) >= 0).all()


def test_few_sizes_are_not_padded():
    sizes = np.array([(473, 473, 220, 154), (473, 473, 377, 130), (473, 473, 220, 154)])
    found = canvases.choose(sizes, 2, (1, 0.1))
    np.testing.assert_array_equal(found.sizes[found.which], sizes)
    assert canvases.overhead(found, sizes, (1, 0.1)) == 0


def test_merging_comes_near_the_best_partition():
    """Against all ways to share two canvases among seven sizes."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(20):
        sizes = rng.integers(100, 600, (7, 2))
        best = min(
            sum(len(part) * canvases.cost(part.max(0)) for part in (sizes[mask], sizes[~mask]) if len(part))
            for mask in map(np.array, itertools.product([False, True], repeat=7))
        )
        found = canvases.choose(sizes, 2)
        ratios.append(canvases.cost(found.sizes[found.which]).sum() / best)
    assert min(ratios) >= 1 and np.mean(ratios) < 1.03


def test_padding_on_the_sizes_of_ade20k():
    """Of all 20,210 training images under the official test setting, and what README says of them."""
    if not SIZES.exists():
        pytest.skip(f"the list of sizes is not at {SIZES}")
    from isnet_jax.resizing import target_size

    with open(SIZES) as file:
        original = np.array([(int(row["height"]), int(row["width"])) for row in csv.DictReader(file)])
    sizes = np.concatenate([[target_size(h, w, (2048, 512), True) for h, w in original.tolist()], original], axis=1)
    assert len(sizes) == 20210 and len(np.unique(sizes, axis=0)) > 3000
    found = canvases.choose(sizes, 8, (1, 0.1))
    network = canvases.overhead(found._replace(sizes=found.sizes[:, :2]), sizes[:, :2])
    print(
        f"8 programs: {100 * network:.2f} % padding of the network's input, "
        f"{100 * canvases.overhead(found, sizes, (1, 0.1)):.2f} % with labels at a tenth"
    )
    assert len(found.sizes) == 8 and network < 0.06
