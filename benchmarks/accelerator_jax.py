"""The measurements of benchmarks.accelerator in JAX."""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from benchmarks.reference import load_case, random_variables
from benchmarks.train_program import make_train_program
from benchmarks.workload import compare_logits, load_recipe, random_batch, time_calls, with_largest_batch
from isnet_jax import create_model
from isnet_jax.checkpoints import torch_names
from isnet_jax.evaluation.inference import predict_classes
from isnet_jax.input import photometry
from isnet_jax.models.isnet import ISNet
from isnet_jax.runtime import roofline, sharding


def open_device() -> tuple[str, bool]:
    """The name and memory of the device, and whether it is an accelerator."""
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit", 0)
    return f"{device.device_kind}, {memory / 2**30:.1f} GiB for JAX", device.platform != "cpu"


def matrix_rate(quick: bool) -> dict[str, Any]:
    """The rate of a bfloat16 product of two square matrices, in TFLOP/s."""
    side = 512 if quick else 8192
    a, b = (jax.random.normal(jax.random.key(i), (side, side), jnp.bfloat16) for i in range(2))
    seconds, spread = time_calls(partial(jax.jit(jnp.matmul), a, b), jax.block_until_ready)
    return {"side": side, "tflops": 2e-12 * side**3 / seconds, "spread": spread}


def parity(case: str, dtype: str) -> dict[str, float]:
    """Errors of the logits of a recorded case."""
    fields, state_dict, images, recorded = load_case(case)
    model = create_model(fields | {"dtype": dtype})
    outputs = jax.jit(model.apply)(torch_names.from_torch(state_dict, model), images)
    return compare_logits(np.asarray(outputs["logits"]), recorded)


def speed(recipe: str, training: bool, quick: bool) -> dict[str, Any]:
    """Images per second, memory and FLOPs of a train step or of inference."""
    config, shape, wanted_batch = load_recipe(recipe, training, quick)
    model, mesh = create_model(config.model), sharding.make_mesh(devices=jax.devices()[:1])
    variables = random_variables(model)
    flops = count_image_flops(model, variables, shape, training)

    def measure(batch_size):
        images, labels = random_batch(shape, batch_size, model.num_classes)
        if training:
            function, state, inputs = make_train_program(config, model, variables, images, labels, mesh)
        else:
            function, state = jax.jit(partial(predict, model=model)), jax.device_put(variables)
            inputs = sharding.to_devices({"image": images}, mesh)["image"]
        began = time.perf_counter()
        compiled = function.lower(state, inputs).compile()
        compile_seconds, memory, metrics = time.perf_counter() - began, compiled.memory_analysis(), {}

        def call():
            nonlocal state, metrics
            if not training:
                return compiled(state, inputs)
            state, metrics = compiled(state, inputs)  # the state is donated
            return metrics

        seconds, spread = time_calls(call, jax.block_until_ready)
        total = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
        return {
            "seconds": seconds,
            "spread": spread,
            "size": shape,
            "compile_seconds": compile_seconds,
            "memory_gib": (total - memory.alias_size_in_bytes) / 2**30,
            "gflops_per_image": flops / 1e9,
            "losses": {name: float(value) for name, value in metrics.items() if name != "lr"},
        }

    return with_largest_batch(measure, wanted_batch)


def count_image_flops(model: ISNet, variables: dict[str, Any], shape: tuple[int, int], training: bool) -> float:
    """FLOPs of the network for one image: the forward pass, times three in training."""
    forward = partial(model.apply, train=training, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
    traced = jax.make_jaxpr(forward)(variables, np.zeros((1, *shape, 3), np.float32))
    return roofline.count_flops(traced).model * (3 if training else 1)


def predict(variables: dict[str, Any], images: ArrayLike, model: ISNet) -> jax.Array:
    """Classes, uint8 (B, H, W), of uint8 images (B, H, W, 3)."""
    logits = model.apply(variables, photometry.normalize(images))["logits"]
    return predict_classes([(logits, None)], images.shape[1:3])
