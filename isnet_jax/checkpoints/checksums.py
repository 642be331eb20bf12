"""Checksums of the arrays of a checkpoint: sums of integers, which are the same in any order and on any mesh."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def checksum_tree(fields: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{field: tree of arrays} -> {field: uint32 checksums of its leaves, in tree order}, without fields of no leaves.

    Checksums are computed on the host, except for arrays that this process holds only in part.
    """

    def checksum(leaf):
        is_partial = isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)
        return jax.device_get(_on_devices(leaf)) if is_partial else checksum_array(np.asarray(leaf), np)

    return {
        name: np.array([checksum(leaf) for leaf in jax.tree.leaves(tree)], np.uint32)
        for name, tree in fields.items()
        if jax.tree.leaves(tree)
    }


def checksum_array(array: jax.Array | np.ndarray, xp: ModuleType) -> Any:
    """uint32 sum of the elements' bits, folded to 32 and each multiplied by an odd number that depends on its index.

    `xp` is the module to compute with, numpy or jax.numpy. Every single flipped bit changes the checksum; other damage
    goes undetected with a probability of 2^-32.
    """
    bits = array.view(f"uint{8 * array.dtype.itemsize}")
    if array.dtype.itemsize == 8:
        bits = bits ^ (bits >> 32)
    index = xp.zeros([1] * array.ndim, np.uint32)  # row-major index of each element
    for axis, length in enumerate(array.shape):
        along_axis = xp.arange(length, dtype=np.uint32).reshape([-1 if i == axis else 1 for i in range(array.ndim)])
        index = index * xp.uint32(length) + along_axis
    with np.errstate(over="ignore"):
        weights = (2 * index + 1) * xp.uint32(2654435761)
        return (bits.astype(np.uint32) * weights).sum(dtype=np.uint32)


_on_devices = jax.jit(lambda array: checksum_array(array, jnp))
