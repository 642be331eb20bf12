"""Which attention trains fastest on this machine: measured at the start of a run, where there is a choice."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from isnet_jax.models.attention import IMPLEMENTATIONS
from isnet_jax.models.isnet import HEAD_CHANNELS, ISNet
from isnet_jax.models.layers import Array
from isnet_jax.runtime import distributed
from isnet_jax.runtime.console import say
from isnet_jax.runtime.files import atomic_write_text, read_json

REPEATS = 5
TOLERANCE = 0.02  # of an output or a gradient, relative to its norm: bfloat16 has 8 significant bits


def with_fastest_attention(model: ISNet, config: ConfigDict, mesh: Mesh, record: Path | None = None) -> ISNet:
    """`model` with the fastest attention for the crops of `config.augment`, the same on all processes.

    Only bfloat16 networks on GPUs whose images are not split have a choice. `record` is a file that keeps it, so that a
    resumed run computes alike.
    """
    on_gpu = mesh.local_devices[0].platform == "gpu"
    if not (on_gpu and mesh.shape["spatial"] == 1 and model.dtype == "bfloat16" and model.image_level_context):
        return model
    names, recorded = list(IMPLEMENTATIONS), None
    if record:
        with contextlib.suppress(OSError, ValueError):  # without the choice, or with a damaged one, it is made again
            recorded = read_json(record)
    index = int(distributed.broadcast_from_first(names.index(recorded) if recorded in names else -1))
    if index < 0:
        height, width = (-(-side // 8) for side in config.augment.crop_size)
        shape = config.train.global_batch_size // mesh.shape["data"], height * width, HEAD_CHANNELS // 2
        seconds = measure(IMPLEMENTATIONS, shape, jnp.bfloat16, mesh.local_devices[0])
        index = int(distributed.broadcast_from_first(names.index(min(seconds, key=seconds.__getitem__))))
        say(f"attention: {names[index]} ({', '.join(f'{name} {1e3 * x:.2f} ms' for name, x in seconds.items())})")
        if record and distributed.is_first():
            atomic_write_text(record, json.dumps(names[index]))
    return model.clone(attention=names[index])


def measure(
    implementations: Mapping[str, Callable[..., Array]],
    shape: tuple[int, int, int],
    dtype: jnp.dtype,
    device: jax.Device,
) -> dict[str, float]:
    """Seconds that each implementation takes for an output and its gradients, for queries of `shape` (B, N, D).

    The first one is the reference. Left out are those that raise, as where a library or a GPU lacks them, and those
    that compute something else.
    """
    inputs = [jax.device_put(jax.random.normal(jax.random.key(i), shape, dtype), device) for i in range(4)]
    seconds, reference = {}, None
    for name, function in implementations.items():
        step = jax.jit(lambda query, key, value, grad, function=function: _step(function, query, key, value, grad))
        try:
            outputs = jax.block_until_ready(step(*inputs))
            started = time.perf_counter()
            for _ in range(REPEATS):
                last = step(*inputs)
            jax.block_until_ready(last)
        except Exception:
            if reference is None:
                raise
            continue
        elapsed = (time.perf_counter() - started) / REPEATS
        reference = outputs if reference is None else reference
        if all(map(_agree, outputs, reference)):
            seconds[name] = elapsed
    return seconds


def _step(function: Callable, query: jax.Array, key: jax.Array, value: jax.Array, grad: jax.Array) -> list[jax.Array]:
    """The output, and the gradients of query, key and value."""
    output, transpose = jax.vjp(function, query, key, value)
    return [output, *transpose(grad)]


def _agree(found: jax.Array, expected: jax.Array) -> bool:
    found, expected = found.astype(jnp.float32), expected.astype(jnp.float32)
    return bool(jnp.linalg.norm(found - expected) <= TOLERANCE * jnp.linalg.norm(expected))
