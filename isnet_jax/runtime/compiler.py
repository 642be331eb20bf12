"""XLA settings: the compilation cache, and compiler options for CPUs and TPUs."""

import functools
import os
import platform
import zlib
from pathlib import Path

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_OPTIONS = {
    # YNNPACK for reductions only: its convolutions are slower than Eigen's, and without it reductions become slow
    # windows.
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"},
    # A small batch is not spread by cutting images into strips: that pads and copies the maps around each convolution.
    "tpu": {"xla_tpu_run_space_to_batch": "false", "xla_tpu_run_space_to_batch_on_new_platforms": "false"},
}


def enable_cache() -> None:
    """Keeps compiled programs in the user's cache, if there is one and JAX is told no other place.

    To be called before compiling. A workdir would not do: it may come from someone else, and a program is code.
    Programs for a CPU may use all of its instructions, so that each kind of CPU has a directory of its own.
    """
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    kind = f"-{cpu_kind()}" if jax.default_backend() == "cpu" else ""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        directory = home / "isnet_jax" / f"compiled{kind}"
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the user has no home, or one that cannot be written, as in many containers
        return
    if os.access(directory, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(directory))


def options(mesh: Mesh) -> dict[str, str]:
    """Compiler options of programs that run the network on `mesh`; those that this version of XLA knows."""
    platform = mesh.devices.flat[0].platform
    return {name: value for name, value in _OPTIONS.get(platform, {}).items() if _supports(mesh, name, value)}


@functools.cache
def _supports(mesh: Mesh, option: str, value: str) -> bool:
    """Whether this version of XLA knows an option; all of them are experimental."""
    try:
        replicated = NamedSharding(mesh, PartitionSpec())
        jax.jit(lambda: 0, out_shardings=replicated, compiler_options={option: value}).lower().compile()
    except RuntimeError:  # JaxRuntimeError is one
        return False
    return True


def cpu_kind() -> str:
    """A name that CPUs with the same instructions share."""
    return f"{platform.machine()}-{zlib.crc32(cpu_info('flags', 'Features').encode()):08x}"


def cpu_info(*fields: str) -> str:
    """The first line of /proc/cpuinfo that starts with one of the fields; without one, what Python knows of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    return next((line for line in lines if line.startswith(fields)), platform.processor())
