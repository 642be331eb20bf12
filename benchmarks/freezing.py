"""What frozen stages and fixed batch statistics save in a train step, on the CPU of this machine.

usage: python -m benchmarks.freezing [--backbone=resnet50] [--quick] [--write]

  --quick  toy sizes, in a minute or two
  --write  writes docs/performance.md and its raw numbers

Seconds are CPU seconds, the least of five steps in float32: other work on the machine hardly changes them. Memory is
what the compiled program asks for, XLA's temporaries, and the optimizer's state.
"""

import os
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import jax

from benchmarks import docs
from benchmarks.reference import random_variables
from benchmarks.train_program import make_train_program
from benchmarks.workload import cpu_name, random_batch
from isnet_jax import config as configs
from isnet_jax.models.isnet import ISNet
from isnet_jax.models.resnet import STAGES
from isnet_jax.runtime import roofline, sharding
from isnet_jax.runtime.console import aligned

SETTINGS = {  # fields of config.train
    "nothing": {},
    "batch statistics": {"freeze_batch_norm": True},
    **{f"stem to {STAGES[count - 1]}": {"frozen_stages": count} for count in (2, 3, 4, 5)},
}


def measure(backbone: str, side: int, batch: int, classes: int, **fields: int | bool) -> dict[str, float]:
    """CPU seconds, FLOPs, and bytes of temporaries and of the optimizer's state, of a step with these fields."""
    config, model = configs.default(backbone), ISNet(backbone, classes)
    config.train.update(fields)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    images, labels = random_batch((side, side), batch, classes)
    step, state, arrays = make_train_program(config, model, random_variables(model), images, labels, mesh)
    traced = step.trace(state, arrays)
    compiled, seconds = traced.lower().compile(), []
    momentum = sum(x.nbytes for x in jax.tree.leaves(state.opt_state))
    for _ in range(6):  # the first of which is not counted
        start = time.process_time()
        state, _ = jax.block_until_ready(compiled(state, arrays))
        seconds.append(time.process_time() - start)
    return {
        "seconds": min(seconds[1:]),
        "flops": roofline.count_flops(traced.jaxpr.jaxpr).model,
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "optimizer": momentum,
    }


def main(backbone: str, quick: bool, write: bool) -> None:
    """Runs the command with the flags of the usage."""
    side, batch, classes = (32, 1, 5) if quick else (256, 2, 150)
    section, results = docs.Section("freezing"), {}
    rows = [["frozen", "CPU s per step", "TFLOP", "GiB of temporaries", "GiB of the optimizer's state"]]
    for name, fields in SETTINGS.items():
        results[name] = found = measure(backbone, side, batch, classes, **fields)
        sizes = (found[key] * 2**-30 for key in ("temporaries", "optimizer"))
        rows.append([name, f"{found['seconds']:.2f}", f"{found['flops'] * 1e-12:.3f}", *(f"{x:.3f}" for x in sizes)])
        print(f"{name}: {found['seconds']:.2f} s", flush=True)
        jax.clear_caches()
    section.say(f"{backbone}, {batch} images of {side}x{side}, float32, {cpu_name()}, {os.cpu_count()} cores\n")
    section.say(aligned(rows))
    if write:
        section.write({"backbone": backbone, "cpu": cpu_name(), "cores": os.cpu_count(), "freezing": results})


if __name__ == "__main__":
    main(**docs.parse_args(__doc__))
