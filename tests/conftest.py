"""Eight CPU devices, shapes checked at run time, float32 unless a test asks for `x64`, and freed programs."""

import ctypes
import functools
import gc
import os
import signal
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # it announces itself otherwise
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# Compiles faster, and runs fast enough; level 0 computes float64 five times as slowly.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")
# What a worker or a command has compiled, the others load.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

from jaxtyping import install_import_hook

TYPED = ("models", "training.step", "evaluation.inference", "evaluation.metrics", "evaluation.boundary")
TYPED += ("training.optimizer", "evaluation.loop", "input.photometry", "runtime.sharding", "labels")
install_import_hook([f"isnet_jax.{name}" for name in TYPED], "beartype.beartype")

import jax
import psutil
import pytest

# A job in the background ignores Ctrl-C, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

GIB = 2**30
GIB_PER_WORKER = 2
GIB_BETWEEN_TESTS, MIN_GIB_TO_FREE = 1.2, 0.3  # freeing takes most of a second, libraries alone about a GiB


def pytest_xdist_auto_num_workers(config):
    """A worker for each core and each 2 GiB of free memory."""
    return max(1, min(os.cpu_count(), psutil.virtual_memory().available // (GIB_PER_WORKER * GIB)))


def pytest_collection_modifyitems(items):
    """Whole runs first: a worker that begins with them last would end alone."""
    items.sort(key=lambda item: item.path.parent.name != "system")


@pytest.fixture
def x64():
    """float64 inside the test, as before it afterwards."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def torch():
    """PyTorch on one thread; skips where it is not installed."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny_network():
    """Networks of a sixteenth of the parameters: on eight devices, each holds a copy."""
    from isnet_jax.models import isnet, resnet
    from isnet_jax.runtime import sharding

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isnet, "HEAD_CHANNELS", 128)
        patch.setattr(resnet, "PLANES", 16)
        patch.setattr(sharding, "MIN_SPLIT_SIZE", sharding.MIN_SPLIT_SIZE // 16)
        yield


@pytest.fixture(scope="module")
def one_device():
    """Runs inside the test's process use one device, as commands do, whose compiled programs they share."""
    from isnet_jax.runtime import sharding

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, devices=jax.devices()[:1]))
        yield


@pytest.fixture(scope="session")
def camvid(tmp_path_factory):
    """A tiny data set in CamVid's layout, prepared already: (source, data_dir)."""
    from small_run import make_camvid

    from isnet_jax import datasets

    source, data_dir = make_camvid(tmp_path_factory.mktemp("camvid"))
    datasets.load("camvid", data_dir, source)
    return source, data_dir


@pytest.fixture(autouse=True, scope="module")
def free_memory_after_module(request):
    yield
    free_memory(request.module)


@pytest.fixture(scope="session")
def memory_limit():
    """Bytes of this process above which memory is freed after a test, as a list of one number."""
    return [GIB_BETWEEN_TESTS * GIB]


@pytest.fixture(autouse=True)
def free_memory_above_limit(request, memory_limit):
    yield
    process = psutil.Process()
    if process.memory_info().rss > memory_limit[0]:
        free_memory(request.module)
        memory_limit[0] = max(GIB_BETWEEN_TESTS * GIB, process.memory_info().rss + MIN_GIB_TO_FREE * GIB)


def free_memory(test_module):
    """Drops compiled programs, which the compilation cache has, and the results that a module of tests caches."""
    for module in (test_module, sys.modules.get("cases", test_module)):
        for value in vars(module).values():
            if hasattr(value, "cache_clear") and value.__module__ == module.__name__:
                value.cache_clear()
    jax.clear_caches()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
