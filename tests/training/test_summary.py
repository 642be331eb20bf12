"""summary: its numbers against independent counts, and what it says without data or a run."""

import json
import re

import jax
import jax.numpy as jnp
import pytest
from small_run import overrides, run_inside, small_config

from isnet_jax import create_model
from isnet_jax.runtime import roofline
from isnet_jax.training import summary

pytestmark = pytest.mark.usefixtures("tiny_network")
FIELDS = {"backbone": "resnet18", "num_classes": 5}


@pytest.mark.parametrize("fields", [{}, {"shortcut": True, "remat": True}, {"semantic_level_context": False}])
def test_blocks_add_up_to_the_network(fields):
    """Every parameter once; the FLOPs of a forward pass over one image, but for resizing outside of blocks."""
    model = create_model(FIELDS | fields)
    rows = summary.blocks(model, (64, 48))
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert sum(row.parameters for row in rows) == sum(x.size for x in jax.tree.leaves(variables["params"]))
    forward = jax.make_jaxpr(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
    )(variables, jnp.zeros((1, 64, 48, 3)))
    assert sum(row.flops for row in rows) == pytest.approx(roofline.count_flops(forward.jaxpr).model, rel=0.01)
    shapes = {row.name: row.shape for row in rows}
    assert shapes["backbone/layer2_1"] == (8, 6, 32) and shapes["auxiliary_classifier"] == (8, 6, 5)
    assert shapes["stage2_classifier"] == ((16, 12, 5) if fields.get("shortcut") else (8, 6, 5))
    assert ("semantic_level_context" in shapes) == fields.get("semantic_level_context", True)


def test_memory_is_that_of_the_state_and_grows_with_the_batch(camvid):
    c = small_config(camvid, **{"train.global_batch_size": 4, "train.ema_decay": 0.5})

    def memory():
        model = create_model(c.model)
        return summary.memory_of_step(c, model, summary.abstract_state(c, model), summary.abstract_batch(c))

    four = memory()
    params = 4 * sum(x.size for x in jax.tree.leaves(summary.abstract_state(c, create_model(c.model)).params))
    assert four["gradients"] == params and four["optimizer state"] == params + 4  # momentum, and a counter
    assert four["moving averages"] == four["parameters and statistics"]
    c.train.global_batch_size = 8
    eight = memory()["activations of 8 images"]
    assert eight == pytest.approx(2 * four["activations of 4 images"], rel=0.01)
    c.model.remat = True
    assert memory()["activations of 8 images"] < 0.5 * eight


def costs(camvid, **fields):
    """FLOPs and memory of a step with these fields."""
    c = small_config(camvid, **fields)
    model, batch = create_model(c.model), summary.abstract_batch(c)
    state = summary.abstract_state(c, model)
    return summary.training_flops(c, model, state, batch), summary.memory_of_step(c, model, state, batch)


def test_costs_are_those_of_the_losses_the_optimizer_and_what_trains(camvid):
    """AdamW keeps two moments; frozen stages have no gradients and keep no activations; Dice resizes twice more."""
    flops, memory = costs(camvid)
    frozen_flops, frozen = costs(camvid, **{"train.frozen_stages": 4})
    assert frozen_flops < 0.8 * flops and frozen["gradients"] < memory["gradients"]
    assert frozen["optimizer state"] == frozen["gradients"] + 4
    assert frozen["activations of 8 images"] < 0.8 * memory["activations of 8 images"]
    more_flops, more = costs(camvid, **{"train.optimizer": "adamw", "train.warmup_steps": 500, "loss.dice_weight": 1.0})
    assert more_flops > flops and more["optimizer state"] == 2 * memory["gradients"] + 8


def summarise(camvid, *more, **fields):
    return run_inside("--config=tests/tiny_camvid.py:resnet18", *overrides(camvid, **fields), *more, module="summary")


def test_summary_tells_steps_and_the_time_that_a_run_supports(camvid, tmp_path):
    code, out, err = summarise(camvid, f"--workdir={tmp_path}")
    assert (code, err) == (0, "") and "backbone/layer1_0" in out and "GiB in total on one device" in out
    assert "6 steps: 3 epochs of 2, from 18 examples" in out
    assert f"no run of this config has logged its speed in {tmp_path}" in out
    recorded = small_config(camvid).to_dict() | {"train_examples": 18, "class_weights": [1.0] * 11}
    (tmp_path / "config.json").write_text(json.dumps(recorded))
    rows = [{"step": i, "images_per_second": speed} for i, speed in enumerate((0.1, 0.2, 5.0))] + [{"step": 4}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, out, _ = summarise(camvid, f"--workdir={tmp_path}")
    assert re.search(r"time: 0:04:00 \(h:mm:ss\) at 0.2 images/s, the median of 3 rows of .*metrics.jsonl", out)
    _, out, _ = summarise(camvid, f"--workdir={tmp_path}", **{"train.epochs": 4})
    assert "8 steps" in out and "no run of this config" in out


def test_summary_needs_no_data(camvid, tmp_path):
    code, out, err = summarise((camvid[0], tmp_path / "none"))
    assert (code, err) == (0, "") and "steps: not known, since camvid is not prepared here" in out
    assert not (tmp_path / "none").exists()
