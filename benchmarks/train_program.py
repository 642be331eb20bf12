"""The train step of a run, for benchmarks, with a batch that is already on the devices."""

from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks.workload import LEARNING_RATE
from isnet_jax.models.isnet import ISNet
from isnet_jax.runtime import sharding
from isnet_jax.training.fastest_attention import with_fastest_attention
from isnet_jax.training.optimizer import make_optimizer, make_schedule
from isnet_jax.training.step import make_train_step, state_from_variables


def make_train_program(
    config: ConfigDict, model: ISNet, variables: dict[str, Any], images: np.ndarray, labels: np.ndarray, mesh: Mesh
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """The jitted step of `config` at LEARNING_RATE, the state that starts from `variables`, and the batch.

    images (B, H, W, 3), labels (B, H, W): uint8.
    """
    config.train.base_lr = config.train.min_lr = LEARNING_RATE
    schedule, replicated = make_schedule(config.train, 1000), sharding.replicated(mesh)
    optimizer = make_optimizer(config.train, schedule)
    state = jax.jit(partial(state_from_variables, optimizer=optimizer), out_shardings=replicated)(variables)
    window = np.tile(np.array([0, 0, *images.shape[1:3]], np.int32), (len(images), 1))
    batch = sharding.to_devices({"image": images, "label": labels, "window": window}, mesh)
    config.augment.crop_size, config.train.global_batch_size = images.shape[1:3], len(images)
    model = with_fastest_attention(model, config, mesh)
    return make_train_step(model, optimizer, schedule, config, mesh, replicated), state, batch
