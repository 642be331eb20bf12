"""Devices as a mesh (data, spatial): batches are split over `data`, the height of images over `spatial`.

The compiler splits everything else by itself, halos of convolutions included. Parameters and optimizer state are on
every device, or split over `data`.
"""

import math
import re

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from isnet_jax.errors import UserError

AXES = "data", "spatial"
# Pixels of a strip, at least. XLA (jaxlib 0.10) computes wrong gradients of a strided convolution with fewer rows of
# output than devices: that begins at 8 pixels a strip, the network's stride, or 32 at a quarter of the scale.
MIN_STRIP = 32
MIN_SPLIT_SIZE = 2**14  # smaller parameters stay whole: to gather them costs more than they weigh


def parse(setting):
    """(data, spatial) of a `config.mesh` such as data=4,spatial=2, None of `auto`; raises UserError for other text."""
    if setting == "auto":
        return None
    found = re.fullmatch(r"data=([1-9]\d{0,5})(?:,spatial=([1-9]\d{0,5}))?", setting)
    if not found:
        raise UserError(f"config.mesh is {setting!r}; it must be auto, or as in data=4,spatial=2.")
    return int(found[1]), int(found[2] or 1)


def mesh_shape(setting, num_devices, batch_size=None):
    """(data, spatial) for a `config.mesh`; `auto` splits the batch and, where it has fewer images than
    there are devices, also each image, in 2, 4 or 8.

    batch_size: the global one, of which `data` must be a divisor; None where batches may be filled up. Raises UserError
    for a mesh that does not fit the devices or the batch.
    """
    shape = parse(setting)
    if shape is None:
        data = min(num_devices, batch_size or num_devices)
        shape = data, num_devices // data
        if math.prod(shape) != num_devices or (batch_size or data) % data or shape[1] not in (1, 2, 4, 8):
            fitting = max(n for n in range(1, num_devices + 1) if batch_size % n == 0)
            near = max(1, round(batch_size / num_devices)) * num_devices
            raise UserError(
                f"config.train.global_batch_size is {batch_size}, which {num_devices} devices do not share "
                f"evenly: set it to, say, {near}, or use {fitting} device{'s' if fitting > 1 else ''}, or "
                "choose yourself how images are cut (--config.mesh=data=D,spatial=S)."
            )
    elif math.prod(shape) != num_devices:
        raise UserError(
            f"config.mesh is {setting!r}, a mesh of {math.prod(shape)} devices, but there are "
            f"{num_devices}; set it to auto, or to a mesh of that many."
        )
    elif batch_size and batch_size % shape[0]:
        raise UserError(
            f"config.train.global_batch_size is {batch_size}, which is not a multiple of {shape[0]}, the "
            f"axis `data` of config.mesh = {setting!r}; change one of them."
        )
    return shape


def make_mesh(setting="auto", batch_size=None, devices=None):
    """Mesh over `devices`, by default all of them on all hosts; arguments and errors as of `mesh_shape`."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        mesh_shape(setting, len(devices), batch_size), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def describe(mesh):
    """As in `8 TPU v5e devices, 4 x 2 (data x spatial)`."""
    kind, shape = mesh.devices.flat[0].device_kind, ""
    if mesh.shape["spatial"] > 1:
        shape = f", {mesh.shape['data']} x {mesh.shape['spatial']} (data x spatial)"
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{mesh.size} {kind} device{'s' if mesh.size > 1 else ''}{processes}{shape}"


def replicated(mesh):
    """The sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh):
    """The sharding of arrays (B, ...) split over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def split_images(images, mesh):
    """Inside jit: images (B, H, W, C) split over the mesh, or over `data` alone where they are not `high_enough`."""
    axes = AXES if high_enough(images.shape[1], mesh) else AXES[:1]
    return jax.lax.with_sharding_constraint(images, NamedSharding(mesh, PartitionSpec(*axes)))


def high_enough(height, mesh):
    """Whether images can be cut in as many strips as `spatial` has devices."""
    return height >= MIN_STRIP * mesh.shape["spatial"]


def split_state(mesh, state, shard_parameters):
    """Shardings of a TrainState (of arrays or shapes): its large arrays split over `data`, or every one whole."""

    def split(leaf):
        axes = [axis for axis, n in enumerate(leaf.shape) if n % mesh.shape["data"] == 0]
        if not shard_parameters or leaf.size < MIN_SPLIT_SIZE or not axes:
            return replicated(mesh)
        axis = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))

    return jax.tree.map(split, state)


def local_parts(mesh):
    """Which parts along `data` this process holds devices of, ascending."""
    here = [[device.process_index == jax.process_index() for device in part] for part in mesh.devices]
    return np.flatnonzero(np.any(here, axis=1))


def local_rows(mesh, batch_size):
    """Rows of a global batch that this process provides: int (b,), ascending. With `spatial`, others may do so too."""
    return np.arange(batch_size).reshape(mesh.shape["data"], -1)[local_parts(mesh)].reshape(-1)


def to_devices(batch, mesh):
    """The `local_rows` of a batch, a dict of NumPy arrays (b, ...) -> global arrays (B, ...) split over `data`."""
    sharding, parts = split_batch(mesh), local_parts(mesh)

    def place(array):
        array = np.asarray(array)
        rows = len(array) // len(parts)  # of each part
        pieces = dict(zip(parts * rows, np.split(array, len(parts))))  # by the global number of their first row
        return jax.make_array_from_callback(
            (rows * mesh.shape["data"], *array.shape[1:]), sharding, lambda index: pieces[index[0].start or 0]
        )

    return {name: place(array) for name, array in batch.items()}


def from_devices(array):
    """The `local_rows` of a global array (B, ...) split over `data`: NumPy (b, ...)."""
    pieces = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])


def fill_up(batch_size, mesh):
    """The smallest batch size from `batch_size` on that the mesh splits evenly: the rest is filled up."""
    return -(-batch_size // mesh.shape["data"]) * mesh.shape["data"]
