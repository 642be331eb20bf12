"""Costs of a step: FLOPs, bytes and compilations, without timing."""

import logging

import jax
import numpy as np
import pytest
from small_run import small_config

from isnet_jax.evaluation.loop import make_eval_step
from isnet_jax.models.isnet import ISNet
from isnet_jax.runtime import roofline, sharding
from isnet_jax.training import loop
from isnet_jax.training.optimizer import make_optimizer, make_schedule
from isnet_jax.training.step import init_state, make_train_step

# Of the forward pass for a 512x512 image and 150 classes, as PyTorch counts them for benchmarks/torch_fast.py.
FLOPS = {"resnet50": 386_457_141_248, "resnet101": 541_612_834_816, "resnest101": 556_899_799_040}
# The stem's 3x3 kernels are 2x2 over cells of 2x2 pixels, with 21 zeros among 48 weights.
ZEROS = {backbone: 2 * 21 * 256 * 256 * stem for backbone, stem in zip(FLOPS, (32, 32, 64))}


def variables_of(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32)))


def forward_flops(backbone, num_classes=150, size=(512, 512)):
    model = ISNet(backbone, num_classes)
    images = jax.ShapeDtypeStruct((1, *size, 3), np.float32)
    return roofline.count_flops(jax.make_jaxpr(model.apply)(variables_of(model), images).jaxpr).model


@pytest.mark.parametrize("backbone", FLOPS)
def test_forward_pass_has_the_recorded_flops(backbone):
    assert forward_flops(backbone) == FLOPS[backbone] + ZEROS[backbone]


def test_recorded_flops_are_those_that_pytorch_counts(torch):
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks import torch_fast

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch_fast.ISNet("resnet50", 150).eval()(torch.zeros(1, 3, 512, 512))
    assert counter.get_total_flops() == FLOPS["resnet50"]


def test_operations_grow_no_faster_than_classes_and_hardly_faster_than_the_area():
    few, many, large = (forward_flops("resnet50", *fields) for fields in ((150,), (1000,), (150, (1024, 1024))))
    assert many < 1.05 * few  # of the whole network: linear in classes, with a small factor
    assert large < 4.6 * few  # the image-level context attends from every position to every other one


def train_program(size, num_classes=5, batch_size=1):
    """The compiled train step of a small network, and its FLOPs as written."""
    config = small_config(("", ""))
    model, schedule = ISNet("resnet18", num_classes), make_schedule(config.train, 10)
    optimizer, mesh = make_optimizer(config.train, schedule), sharding.make_mesh(devices=jax.devices()[:1])
    state = jax.eval_shape(lambda: init_state(model, optimizer, 0))
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, *size, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((batch_size, *size), np.uint8),
        "window": jax.ShapeDtypeStruct((batch_size, 4), np.int32),
    }
    step = make_train_step(model, optimizer, schedule, config, mesh, sharding.state_shardings(mesh, state, False))
    traced = step.trace(state, batch)
    return traced.lower().compile(), roofline.count_flops(traced.jaxpr.jaxpr).model


def eval_program(size, num_classes=5):
    """The compiled evaluation step of a small network."""
    model, sizes = ISNet("resnet18", num_classes), jax.ShapeDtypeStruct((1, 2), np.int32)
    batch = {
        "image": jax.ShapeDtypeStruct((1, *size, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((1, *size), np.uint8),
        "image_size": sizes,
        "label_size": sizes,
    }
    step = make_eval_step(model, sharding.make_mesh(devices=jax.devices()[:1]), {"mode": "whole"})
    return step.lower(variables_of(model), batch, False).compile()


@pytest.mark.parametrize("program, side", [("train", 256), ("evaluate", 1024)])
def test_memory_grows_no_faster_than_the_area(program, side, tiny_network):
    def temporaries(side):
        compiled = train_program((side, side))[0] if program == "train" else eval_program((side, side))
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(2 * side) < 4.1 * temporaries(side)


def test_train_step_moves_few_bytes_and_computes_three_times_the_forward_pass(tiny_network):
    compiled, flops = train_program((128, 128))
    forward = forward_flops("resnet18", 5, (128, 128))
    assert 2.8 * forward < flops < 3.2 * forward  # and the losses, and the auxiliary head
    assert roofline.traffic(compiled.as_text()).bytes < 0.1 * flops  # measured: 0.093, of few channels


def test_a_run_compiles_its_steps_once(tiny_network, one_device, camvid, tmp_path, caplog):
    """Training over three epochs, with two evaluations: one shape of batches in training, one in evaluation."""
    config = small_config(camvid)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        loop.train_and_evaluate(config, tmp_path / "run")
    compiled = [record.getMessage().split()[1] for record in caplog.records if "Compiling" in record.getMessage()]
    counts = {name: compiled.count(f"jit({name})") for name in ("train_step", "eval_step")}
    assert counts == {"train_step": 1, "eval_step": 1}, compiled
