"""Compiled programs, kept between commands."""

import os
import platform
import zlib
from pathlib import Path

import jax


def enable() -> None:
    """Keeps compiled programs in the user's cache, unless JAX is told another place; to be called before compiling.

    Not in the workdir, which may come from someone else: a program is code. Programs for a CPU may use all of its
    instructions, so that each kind of CPU has a directory of its own.
    """
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kind = f"-{cpu_kind()}" if jax.default_backend() == "cpu" else ""
    jax.config.update("jax_compilation_cache_dir", str(home / "isnet_jax" / f"compiled{kind}"))


def cpu_kind() -> str:
    """A name that CPUs with the same instructions share."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{zlib.crc32(flags.encode()):08x}"
