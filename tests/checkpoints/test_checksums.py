"""Tests of checkpoints.checksums."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from isnet_jax.checkpoints.checksums import checksum_array, checksum_tree

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int32, np.int64, np.uint8]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_checksum_array_detects_every_flipped_bit(dtype):
    array = np.random.default_rng(0).normal(size=(2, 3)).astype(dtype)
    checksum = checksum_array(array, np)
    for bit in range(8 * array.nbytes):
        damaged = array.copy()
        damaged.view(np.uint8).reshape(-1)[bit // 8] ^= 1 << bit % 8
        assert checksum_array(damaged, np) != checksum


def test_checksum_array_depends_on_positions():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    checksum = checksum_array(array, np)
    assert checksum_array(array[::-1], np) != checksum and checksum_array(array[:, ::-1], np) != checksum


def test_checksum_array_agrees_on_host_and_device():
    for array in (np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 5, np.int32(-7), np.zeros((0, 3), np.float32)):
        assert checksum_array(np.asarray(array), np) == checksum_array(jnp.asarray(array), jnp)


def test_checksum_tree_leaves_out_empty_fields():
    arrays = {"a": np.ones(3, np.float32), "b": np.zeros((), np.int32)}
    sums = checksum_tree({"params": arrays, "batch_stats": {}, "step": jnp.int32(5)})
    assert {name: (value.shape, value.dtype) for name, value in sums.items()} == {
        "params": ((2,), np.uint32),
        "step": ((1,), np.uint32),
    }
