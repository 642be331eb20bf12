"""A checksum of every array of a checkpoint, the same on every mesh: integers are summed, in whatever order."""

import jax
import jax.numpy as jnp
import numpy as np


def of_tree(fields):
    """{field: uint32 (leaves,)} of {field: tree of arrays}, on the host, but for arrays it has only parts of."""

    def one(leaf):
        spread = isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)
        return jax.device_get(_on_devices(leaf)) if spread else of_array(np.asarray(leaf), np)

    return {
        name: np.array([one(leaf) for leaf in jax.tree.leaves(tree)], np.uint32)
        for name, tree in fields.items()
        if jax.tree.leaves(tree)
    }


def of_array(array, xp):
    """uint32: the sum of the array's bits, each 32 of them times an odd number that depends on their place.

    No single flipped bit leaves it as it is, and other damage one time in four billion.
    """
    bits = array.view(f"uint{8 * array.dtype.itemsize}")
    if array.dtype.itemsize == 8:
        bits = bits ^ (bits >> 32)
    index = xp.zeros([1] * array.ndim, np.uint32)  # of each element, row by row
    for axis, length in enumerate(array.shape):
        along = xp.arange(length, dtype=np.uint32).reshape([-1 if i == axis else 1 for i in range(array.ndim)])
        index = index * xp.uint32(length) + along
    with np.errstate(over="ignore"):
        weight = (2 * index + 1) * xp.uint32(2654435761)
        return (bits.astype(np.uint32) * weight).sum(dtype=np.uint32)


_on_devices = jax.jit(lambda array: of_array(array, jnp))
