"""The losses of our train step on exported batches (export.py), step by step.

usage: python -m benchmarks.accuracy.jax_losses BATCHES OUTPUT [--dtype=float64]

BATCHES is what export.py wrote; OUTPUT gets losses.jsonl, one line per step.
"""

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np

from benchmarks.accuracy.batches import open_arrays, parse_args
from isnet_jax.checkpoints.manager import recorded_config
from isnet_jax.checkpoints.pretrained import load_network
from isnet_jax.models.isnet import create_model
from isnet_jax.runtime import compiler, sharding
from isnet_jax.training.optimizer import make_optimizer, make_schedule
from isnet_jax.training.step import state_from_variables, train_step


def run(batches: Path, output: Path, dtype: str) -> None:
    """Trains and writes as the module's docstring says."""
    config = recorded_config(batches)
    config.model.dtype = dtype
    model, schedule = create_model(config.model), make_schedule(config.train, config.total_steps)
    optimizer = make_optimizer(config.train, schedule)
    variables = load_network(batches / "init.pth", model)
    variables = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == np.float32 else x, variables)
    state = jax.jit(partial(state_from_variables, optimizer=optimizer))(variables)
    # The exported images are distorted already.
    settings = {"model": model, "optimizer": optimizer, "schedule": schedule, "seed": config.seed, "photometric": False}
    step = jax.jit(
        partial(train_step, **settings),
        compiler_options=compiler.options(sharding.training_mesh(config)),
        donate_argnums=0,
    )
    arrays = open_arrays(batches)
    output.mkdir(parents=True, exist_ok=True)
    with (output / "losses.jsonl").open("w") as file:
        for i in range(len(arrays["label"])):
            state, losses = step(state, {name: array[i] for name, array in arrays.items()})
            row = {name: float(losses[name]) for name in ("auxiliary", "stage1", "stage2", "total")}
            print(json.dumps({"step": i + 1, **row}), file=file, flush=True)
            print(f"step {i + 1}/{len(arrays['label'])}  loss {row['total']:.4f}", flush=True)


if __name__ == "__main__":
    args = parse_args(__doc__)
    jax.config.update("jax_enable_x64", args.dtype == "float64")
    run(args.batches, args.output, args.dtype)
