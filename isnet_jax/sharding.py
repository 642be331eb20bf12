"""Devices as a mesh with one axis, `data`: batches are split over it, everything else is on every device."""
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from isnet_jax.errors import UserError


def make_mesh(devices=None):
    """Mesh ("data",) over `devices`, by default all of them, on all hosts."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh):
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh):
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(batch_size, mesh, field):
    if batch_size < 1 or batch_size % mesh.size:
        raise UserError(f"{field} is {batch_size}, which is not a positive multiple of the {mesh.size} devices in use; "
                        f"set it to, say, {max(1, round(batch_size / mesh.size)) * mesh.size}.")


def to_devices(batch, mesh):
    """This process's part of a batch, a dict of NumPy arrays (b, ...) -> global arrays (B, ...) over the mesh."""
    sharding = split_batch(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, np.asarray(array)) for name, array in batch.items()}
