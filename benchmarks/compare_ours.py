"""Our side of benchmarks.compare_torch: python -m benchmarks.compare_ours SPEC OUTPUT, as that module calls it."""

import json
import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.accelerator_jax import count_image_flops
from benchmarks.compare_work import STEPS, best_rate, load_batch, logits_sample
from benchmarks.reference import random_variables
from benchmarks.train_program import make_train_program
from isnet_jax import config as configs
from isnet_jax import create_model
from isnet_jax.input import photometry
from isnet_jax.models.isnet import ISNet
from isnet_jax.runtime import compiler, sharding


def matrix_rate(dtype: str) -> float:
    """FLOP/s of a matrix product of the machine's favourite size."""
    side = 8192 if jax.default_backend() != "cpu" else 2048
    a, b = (jax.random.normal(jax.random.key(i), (side, side), dtype) for i in range(2))
    product = jax.jit(partial(jax.numpy.matmul, precision="highest" if dtype == "float32" else None))
    return best_rate(lambda: product(a, b).block_until_ready(), 2 * side**3)


def measure_train(model: ISNet, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Seconds of each train step of a run, after the first, and the losses of the first two."""
    config, mesh = configs.default(model.backbone), sharding.make_mesh(devices=jax.devices()[:1])
    config.augment.photometric = False
    step, state, batch = make_train_program(config, model, random_variables(model), images, labels, mesh)
    start = time.perf_counter()
    step = step.lower(state, batch).compile()
    compile_seconds, seconds, losses = time.perf_counter() - start, [], []
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch))
        seconds.append(time.perf_counter() - start)
        losses.append([float(metrics[name]) for name in ("auxiliary", "stage1", "stage2", "total")])
    result = {"losses of step 1": losses[0], "losses of step 2": losses[1]}
    return {"seconds": seconds[1:], "compile_seconds": compile_seconds, "result": result}


def measure_forward(model: ISNet, images: np.ndarray) -> dict[str, Any]:
    """Seconds of each forward pass after the first, and some of its logits."""
    images, variables = jax.device_put((photometry.normalize(images), random_variables(model)))
    start = time.perf_counter()
    forward = jax.jit(
        lambda variables, images: model.apply(variables, images)["logits"],
        compiler_options=compiler.options(sharding.make_mesh(devices=jax.devices()[:1])),
    )
    forward = forward.lower(variables, images).compile()
    compile_seconds, seconds = time.perf_counter() - start, []
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        logits = forward(variables, images).block_until_ready()
        seconds.append(time.perf_counter() - start)
    result = {"logits": logits_sample(np.asarray(logits))}
    return {"seconds": seconds[1:], "compile_seconds": compile_seconds, "result": result}


def _main() -> None:
    spec = json.loads(sys.argv[1])
    fields = {"backbone": spec["backbone"], "num_classes": spec["classes"], "dtype": spec["dtype"], "dropout": 0.0}
    model, device = create_model(fields), jax.devices()[0]
    rate = matrix_rate(spec["dtype"])
    images, labels = load_batch(spec)
    measured = measure_train(model, images, labels) if spec["work"] == "train" else measure_forward(model, images)
    peak = (device.memory_stats() or {}).get(
        "peak_bytes_in_use", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    measured |= {
        "device": device.device_kind,
        "versions": {"jax": jax.__version__},
        "peak_gib": peak / 2**30,
        "matrix_rate": rate,
        "flops": len(images) * count_image_flops(model, random_variables(model), spec["size"], spec["work"] == "train"),
    }
    Path(sys.argv[2]).write_text(json.dumps(measured))


if __name__ == "__main__":
    _main()
