"""The device mesh (data, spatial): batches are split over `data`, the height of images over `spatial`.

GSPMD propagates these shardings through the network and inserts the halo exchanges of convolutions. Parameters and
optimizer state are replicated, or split over `data`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped
from ml_collections import ConfigDict

from isnet_jax.errors import UserError

AXES = "data", "spatial"
# XLA (jaxlib 0.10) computes wrong gradients of a strided convolution whose output has fewer rows than devices. That
# begins at strips of 8 pixels, the network's stride, or of 32 at a quarter of the scale.
MIN_STRIP_HEIGHT = 32
MIN_SPLIT_SIZE = 2**14  # smaller parameters are replicated: gathering them costs more than the memory is worth

Tree = TypeVar("Tree")


def parse_mesh(setting: str) -> tuple[int, int] | None:
    """(data, spatial) of a `config.mesh` such as data=4,spatial=2; None for auto.

    Raises UserError for any other text.
    """
    if setting == "auto":
        return None
    found = re.fullmatch(r"data=([1-9]\d{0,5})(?:,spatial=([1-9]\d{0,5}))?", setting)
    if not found:
        raise UserError(f"config.mesh is {setting!r}; it must be auto, or as in data=4,spatial=2.")
    return int(found[1]), int(found[2] or 1)


def mesh_shape(setting: str, num_devices: int, batch_size: int | None = None) -> tuple[int, int]:
    """(data, spatial) for a `config.mesh`.

    `auto` splits the batch. If the batch has fewer images than there are devices, it also splits each image into 2, 4
    or 8 strips. batch_size: the global one, which `data` must divide; None if batches may be padded. Raises UserError
    for a mesh that does not fit the devices or the batch.
    """
    shape = parse_mesh(setting)
    if shape is None:
        data = min(num_devices, batch_size or num_devices)
        shape = data, num_devices // data
        if batch_size and (math.prod(shape) != num_devices or batch_size % data or shape[1] not in (1, 2, 4, 8)):
            divisor = max(n for n in range(1, num_devices + 1) if batch_size % n == 0)
            multiple = max(1, round(batch_size / num_devices)) * num_devices
            raise UserError(
                f"config.train.global_batch_size is {batch_size}, which {num_devices} devices do not share "
                f"evenly: set it to {multiple}, for example, or use {divisor} device{'s' if divisor > 1 else ''}, or "
                "choose yourself how images are split (--config.mesh=data=D,spatial=S)."
            )
    elif math.prod(shape) != num_devices:
        raise UserError(
            f"config.mesh is {setting!r}, a mesh of {math.prod(shape)} devices, but there are "
            f"{num_devices}; set it to auto, or to a mesh of {num_devices}."
        )
    elif batch_size and batch_size % shape[0]:
        raise UserError(
            f"config.train.global_batch_size is {batch_size}, which is not a multiple of {shape[0]}, the "
            f"`data` axis of config.mesh = {setting!r}; change one of them."
        )
    return shape


def make_mesh(
    setting: str = "auto", batch_size: int | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Mesh over `devices`, by default all devices of all hosts; other arguments and errors as in `mesh_shape`."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        mesh_shape(setting, len(devices), batch_size), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def training_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh of a training run.

    Raises UserError if the mesh does not fit the devices or the global batch, or if its strips of a crop are too low.
    """
    options = {} if devices is None else {"devices": devices}
    mesh = make_mesh(config.mesh, config.train.global_batch_size, **options)
    if not fits_spatial_axis(config.augment.crop_size[0], mesh):
        raise UserError(
            f"config.augment.crop_size is {tuple(config.augment.crop_size)} (height, width), which is too low for the "
            f"{mesh.shape['spatial']} strips of the mesh, each of at least {MIN_STRIP_HEIGHT} pixels; set config.mesh "
            "so that `spatial` is smaller."
        )
    return mesh


def describe(mesh: Mesh) -> str:
    """One line, as in `8 TPU v5e devices, 4 x 2 (data x spatial)`."""
    kind, shape = mesh.devices.flat[0].device_kind, ""
    if mesh.shape["spatial"] > 1:
        shape = f", {mesh.shape['data']} x {mesh.shape['spatial']} (data x spatial)"
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{mesh.size} {kind} device{'s' if mesh.size > 1 else ''}{processes}{shape}"


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays (B, ...) that are split over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def shard_images(images: Shaped[Array | np.ndarray, "b h w c"], mesh: Mesh) -> Shaped[Array, "b h w c"]:
    """Inside jit: images split over the mesh, or over `data` alone unless `fits_spatial_axis`."""
    axes = AXES if fits_spatial_axis(images.shape[1], mesh) else AXES[:1]
    return jax.lax.with_sharding_constraint(images, NamedSharding(mesh, PartitionSpec(*axes)))


def fits_spatial_axis(height: int, mesh: Mesh) -> bool:
    """Whether images of this height can be split into one strip per device of `spatial`."""
    return height >= MIN_STRIP_HEIGHT * mesh.shape["spatial"]


def state_shardings(mesh: Mesh, state: Tree, shard_parameters: bool) -> Tree:
    """Shardings of a TrainState of arrays or shapes: replicated, or its large arrays split over `data`."""

    def shard(leaf):
        axes = [axis for axis, n in enumerate(leaf.shape) if n % mesh.shape["data"] == 0]
        if not shard_parameters or leaf.size < MIN_SPLIT_SIZE or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "data"))

    return jax.tree.map(shard, state)


def local_parts(mesh: Mesh) -> np.ndarray:
    """Indices along `data` of the parts that this process has devices of: int (n,), ascending."""
    is_local = [[device.process_index == jax.process_index() for device in part] for part in mesh.devices]
    return np.flatnonzero(np.any(is_local, axis=1))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Rows of a global batch that this process provides: int (b,), ascending.

    With `spatial`, other processes may provide the same rows.
    """
    return np.arange(batch_size).reshape(mesh.shape["data"], -1)[local_parts(mesh)].reshape(-1)


def to_devices(
    batch: Mapping[str, Shaped[np.ndarray, "rows ..."]], mesh: Mesh
) -> dict[str, Shaped[Array, "batch ..."]]:
    """Global arrays (B, ...) split over `data`, from the `local_rows` (b, ...) of each."""
    sharding, parts = batch_sharding(mesh), local_parts(mesh)

    def place(array):
        size = len(array) // len(parts)  # rows of each part
        pieces = dict(zip(parts * size, np.split(array, len(parts))))  # by the global index of their first row
        return jax.make_array_from_callback(
            (size * mesh.shape["data"], *array.shape[1:]), sharding, lambda index: pieces[index[0].start or 0]
        )

    with jax.transfer_guard("allow"):  # this is the explicit transfer; JAX takes the callback for a hidden one
        return {name: place(array) for name, array in batch.items()}


def from_devices(array: Shaped[Array, "batch ..."]) -> Shaped[np.ndarray, "rows ..."]:
    """The `local_rows` (b, ...) of a global array (B, ...) that is split over `data`."""
    pieces = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])


def eval_batch_size(batch_size: int, mesh: Mesh) -> int:
    """Images of an evaluation's batch: at least `batch_size`, but one per device on a CPU.

    A CPU computes an image as fast alone as in a batch.
    """
    return round_up_batch_size(1 if mesh.devices.flat[0].platform == "cpu" else batch_size, mesh)


def round_up_batch_size(batch_size: int, mesh: Mesh) -> int:
    """The smallest batch size from `batch_size` up that `data` divides; the additional rows are padding."""
    return -(-batch_size // mesh.shape["data"]) * mesh.shape["data"]
