"""compile_check: its numbers against independent counts, its advice, its errors."""

import importlib.util
import os
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import ROOT
from small_run import run_inside

from isnet_jax import compile_check, config, create_model
from isnet_jax.errors import UserError
from isnet_jax.runtime import roofline
from isnet_jax.training import compilation, summary, time_estimate

LIBTPU = importlib.util.find_spec("libtpu")


def small_config():
    c = config.default("resnet18")
    c.model.num_classes = 5
    c.augment.crop_size = (32, 48)
    c.train.global_batch_size = 4
    c.test.resize = (64, 32)
    c.test.batch_size = 3
    return c


@pytest.fixture(scope="module")
def costs():
    return compilation.check(small_config(), jax.devices()[:2])


def test_check_counts_the_memory_of_parameters_statistics_momentum_and_batch(costs):
    shapes = jax.eval_shape(create_model(small_config().model).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    params, stats = (
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes[name])) for name in ("params", "batch_stats")
    )
    train, evaluate = costs
    pixels = 2 * 32 * 48  # of half the batch
    assert train.memory["arguments"] == 2 * params + stats + 2 * 4 + pixels * 4 + 2 * 16  # two counters, windows
    assert train.memory["outputs in new memory"] < 10_000  # losses, pointers: the state is donated
    resident = evaluate.memory["arguments"] + evaluate.memory["the run's other state"]
    assert resident == 2 * params + stats + 2 * 4 + 64 * 32 * 4 + 2 * 8  # one image per CPU device
    assert evaluate.memory["arguments"] < params + stats  # the auxiliary head is for training
    assert train.wanted == sum(train.memory.values()) and train.memory["temporaries"] > pixels * 64
    assert (train.images, train.size, evaluate.images, evaluate.size) == (4, (32, 48), 2, (32, 64))
    for cost in costs:
        assert cost.fits and cost.capacity is cost.step_seconds is cost.compute_seconds is None  # a CPU


def test_check_finds_one_reduction_of_gradients_and_statistics(costs):
    """Apart from the losses, two devices have nothing else to reduce."""
    train, evaluate = costs
    shapes = jax.eval_shape(create_model(small_config().model).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    params = sum(x.size for x in jax.tree.leaves(shapes["params"]))
    assert 4 * params < train.collectives["all-reduce"][1] < 4.4 * params
    assert evaluate.collectives["all-reduce"][1] == 4 * 5 * 5 + 4  # the confusion matrix and the loss


def test_check_counts_three_forward_passes_for_training(costs):
    """Nearly: the first convolution passes no gradient on."""
    smaller = compilation.check(small_config(), jax.devices()[:2], ["evaluate"], (32, 48))[0]
    forward, train, evaluate = (cost.flops / cost.images for cost in (smaller, *costs))
    assert 2.8 * forward < train < 3.6 * forward
    assert evaluate == pytest.approx(forward * 64 / 48, rel=0.1)


def test_summary_counts_the_same_flops_and_a_memory_above(costs):
    """Without compiling; XLA fuses some of what automatic differentiation keeps."""
    c, (train, _) = small_config(), costs
    model = create_model(c.model)
    state, batch = summary.abstract_state(c, model), summary.abstract_batch(c)
    assert summary.training_flops(c, model, state, batch) == pytest.approx(2 * train.flops)  # of two devices
    kept = summary.memory_of_step(c, model, state, batch)["activations of 4 images"] / 2
    params = 4 * sum(x.size for x in jax.tree.leaves(state.params))
    assert 0.5 * kept < train.memory["temporaries"] < 1.2 * kept + 2 * params


def test_count_flops_counts_iterations_and_passes_but_no_inserted_zeros():
    def count(function, *shapes, dtype=np.float32):
        return roofline.count_flops(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(s, dtype) for s in shapes)).jaxpr)

    def loop(a):
        return jax.lax.scan(lambda c, _: (jnp.matmul(c, a, precision="highest"), None), a, None, length=7)[0]

    def conv(x, w, stride=1):
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="high"
        )

    assert count(loop, (8, 8)) == (7 * 2 * 8**3, 6 * 7 * 2 * 8**3)
    assert count(loop, (8, 8), dtype=jnp.bfloat16) == (7 * 2 * 8**3,) * 2
    assert count(lambda a: jax.lax.cond(a[0, 0] > 0, loop, lambda a: a @ a, a), (8, 8)).model == 7 * 2 * 8**3
    flops = 2 * 10 * 12 * 9 * 4 * 6
    assert count(conv, (1, 10, 12, 4), (3, 3, 4, 6)) == (flops, 3 * flops)
    strided = jax.value_and_grad(lambda x, w: conv(x, w, 2).sum())
    assert count(strided, (1, 10, 12, 4), (3, 3, 4, 6)).model == 2 * flops / 4  # a quarter, forward and backward


HLO = """\
HloModule jit_f, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%part (p0: f32[16,1000], p1: s32[]) -> f32[1,1000] {
  %p0 = f32[16,1000]{1,0:T(8,128)} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %slice.1 = f32[1,1000]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,1000}
}

%body (state: (s32[], f32[16,1000])) -> (s32[], f32[16,1000]) {
  %state = (s32[]{:T(128)}, f32[16,1000]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[16,1000]{1,0} get-tuple-element(%state), index=1
  %fusion.1 = f32[1,1000]{1,0:T(8,128)S(1)} fusion(%x, %i), kind=kLoop, calls=%part
  %all-reduce.1 = f32[1,1000]{1,0} all-reduce(%fusion.1), replica_groups={{0,1}}, to_apply=%sum, \
backend_config={"window_config":{"estimated_cycles":"50"}}
  ROOT %tuple.1 = (s32[], f32[16,1000]{1,0}) tuple(%i, %x)
}

%condition (state.1: (s32[], f32[16,1000])) -> pred[] {
  %state.1 = (s32[], f32[16,1000]{1,0}) parameter(0)
  %limit = s32[] constant(5)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %compare = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (p: bf16[100,10], q: (s32[], f32[16,1000])) -> bf16[100,10] {
  %p = bf16[100,10]{1,0:T(8,128)(2,1)} parameter(0)
  %q = (s32[], f32[16,1000]{1,0}) parameter(1)
  %loop = (s32[], f32[16,1000]{1,0}) while(%q), condition=%condition, body=%body
  %gather-start = (bf16[100,10]{1,0}, bf16[200,10]{1,0}) all-gather-start(%p), dimensions={0}
  %gather-done = bf16[200,10]{1,0} all-gather-done(%gather-start)
  %scattered = (bf16[50,10]{1,0}, /*index=1*/f32[5]{0}) reduce-scatter(%p, %p), dimensions={0}, to_apply=%sum
  %copy-start = (bf16[100,10]{1,0:S(1)}, bf16[100,10]{1,0}, u32[]{:S(2)}) copy-start(%p)
  %copy-done = bf16[100,10]{1,0:S(1)} copy-done(%copy-start)
  ROOT %negate = bf16[100,10]{1,0} negate(%copy-done), backend_config={"window_config":{"estimated_cycles":"7"}}
}
"""


def test_traffic_of_a_known_hlo():
    found = roofline.traffic(HLO)
    assert found.collectives == {"all-reduce": (5, 5 * 4000), "all-gather": (1, 4000), "reduce-scatter": (1, 4000)}
    iteration = (4000 + 4) + 4000  # it reads the slice and the counter, and writes the sum of on-chip data
    gather, scatter, copy, negate = 4000 + 4000, 2 * 2000 + 1000 + 20, 2000, 2000
    assert found.bytes == 5 * iteration + gather + scatter + copy + negate
    assert sum(found.cycles.values()) == 5 * 50 + 7


def test_time_estimate_assigns_operations_to_parts():
    cycles = {
        "copy": 10,
        "all-reduce": 5,
        "jit(train_step)/jvp(ISNet)/backbone/layer3_0/conv2/conv/conv_general_dilated": 20,
        "jit(train_step)/transpose(jvp(ISNet))/backbone/layer3_0/conv2/bn/reduce_sum": 30,
        "jit(train_step)/jvp(ISNet)/semantic_level_context/query1/conv/dot_general": 4,
        "jit(train_step)/transpose(jvp(losses))/while/body/dot_general": 40,
        "jit(train_step)/add": 1,
    }
    parts = time_estimate.seconds_by_part(cycles, 0.5)
    assert parts == {
        "copies and layout changes": 5.0,
        "collectives": 2.5,
        "losses": 20.0,
        "batch norm": 15.0,
        "stage 3": 10.0,
        "semantic-level context": 2.0,
        "everything else": 0.5,
    }
    lines = time_estimate.table([("train", parts)]).splitlines()
    assert (
        lines[0].split()[-2:] == ["train", "share"] and "losses" in lines[3] and lines[3].endswith("20000.00  36.4 %")
    )


@pytest.mark.parametrize(
    "name, part",
    [
        ("backbone/jvp(ISNet)/backbone/checkpoint/layer4_1/conv1/conv/conv_general_dilated", "stage 4"),
        ("backbone/jvp(ISNet)/backbone/checkpoint/backbone.stem/stem2/conv/conv_general_dilated", "stem"),
        ("backbone/layer2_0/reduce_window_sum", "stage 2"),  # ResNeSt's pooling
        ("backbone/select_and_scatter", "stem"),
        ("auxiliary_head/conv/conv_general_dilated", "heads"),
    ],
)
def test_time_estimate_knows_rematerialised_blocks_and_pooling(name, part):
    assert time_estimate.part_of(f"jit(train_step)/transpose(jvp(ISNet))/{name}") == part


def test_wanted_bytes_reads_xlas_out_of_memory_errors():
    wanted = compilation.wanted_bytes
    assert (
        wanted(
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
            "(37.29G) exceeds available HBM (15.75G)."
        )
        == 37.29 * 2**30
    )
    assert (
        wanted(
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used "
            "900.50M of 15.75G hbm."
        )
        == 900.5 * 2**20
    )
    assert wanted("INVALID_ARGUMENT: Used 3G") is wanted("RESOURCE_EXHAUSTED: quota") is None


def cost_of(name="train", temporaries=30, rest=2, **fields):
    memory = {"arguments": rest * 2**30, "temporaries": temporaries * 2**30}
    values = dict(
        name=name,
        images=16,
        size=(512, 512),
        memory=memory,
        wanted=(temporaries + rest) * 2**30,
        capacity=15.75 * 2**30,
        flops=2e12,
        traffic=1e10,
        collectives={},
        compute_seconds=0.012,
        memory_seconds=0.1,
        seconds_by_part={},
        compile_seconds=60,
        thorough=True,
    )
    return compilation.ProgramCost(**values | fields)


def test_advice_names_remedies_with_their_memory():
    c = small_config()
    c.train.global_batch_size = 16
    text = compilation.advice(cost_of(), c, "v5e", 4)
    assert text.startswith("The train program needs 32.0 GiB on each device, but a v5e has 15.75 GiB for it.")
    assert "12 chips" not in text and "16 chips instead of 4 (9.5 GiB)" in text
    assert "config.train.global_batch_size=4, which changes the training (9.5 GiB)" in text
    assert "chips with more memory: v5p (95.7 GiB)" in text and "test.batch_size" not in text
    assert "config.model.dtype=bfloat16 with config.model.remat=True" in text
    text = compilation.advice(cost_of("evaluate", 20, images=8), c, "v5e", 8)
    assert "16 chips instead of 8 (with config.mesh=data=8,spatial=2, which splits images) (12.0 GiB)" in text
    assert "remat" not in text and "batch_size" not in text
    refused = cost_of(memory={}, wanted=2000 * 2**30)  # by XLA: only the total is known
    assert compilation.advice(refused, c, "v5e", 4).endswith("This command knows no remedy.")


def test_compile_check_fails_with_advice_only_if_a_program_does_not_fit(monkeypatch, capsys):
    flag_values = types.SimpleNamespace(programs=["train", "evaluate"], image_size=None, topology=None, full=False)
    monkeypatch.setattr(sys, "argv", ["compile_check", "--config=configs/quickstart.py"])
    monkeypatch.setattr(compilation, "check", lambda *_: [cost_of(), cost_of("evaluate", 3)])
    with pytest.raises(UserError, match=r"^The train program needs 32.0 GiB .*more memory: v5p") as error:
        compile_check._main(small_config(), flag_values)
    assert "evaluate" not in str(error.value)
    out = capsys.readouterr().out
    assert re.search(r"\nGiB in total +32.000 +5.000\nGiB available +15.750 +15.750\n", out)
    assert re.search(r"ms, lower bound +100.00 +100.00\n.*images/s, upper bound +160 +160\n", out) and "fits" not in out
    monkeypatch.setattr(compilation, "check", lambda *_: [cost_of(temporaries=13, thorough=False)])
    compile_check._main(small_config(), flag_values)
    out = capsys.readouterr().out
    assert "train may need a tenth more in a run: check with --full" in out and out.endswith("fits\n")
    assert re.search(r"ms, lower bound +12.00\n", out)  # the traffic at the lowest effort is no bound


def test_eval_sizes_follow_the_resize_step():
    c = small_config()
    c.test.resize = (2048, 512)
    assert compilation.eval_sizes(c) == ((512, 2048), (512, 2048))
    assert compilation.eval_sizes(c, (300, 400)) == ((512, 683), (300, 400))
    c.test.keep_ratio, c.test.resize = False, (473, 473)
    assert compilation.eval_sizes(c, (300, 400)) == ((473, 473), (300, 400))
    c.test.resize = ()
    assert compilation.eval_sizes(c) == ((512, 2048), (512, 2048))  # of config.augment
    c.augment.resize = ()
    assert compilation.eval_sizes(c) == ((32, 48), (32, 48))


def test_find_devices_without_libtpu_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(UserError, match="pip install libtpu"):
        compilation.find_devices("v5e:2x4")


def run(*words):
    code = (
        "import runpy, sys\nsys.argv[0] = 'compile_check'\ntry:\n"
        "    runpy.run_module('isnet_jax.compile_check', run_name='__main__')\n"
        "finally:\n    assert 'tensorflow' not in sys.modules\n"
    )
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": ""}
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, text=True, capture_output=True, timeout=900, env=environment
    )


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["--config=configs/quickstart.py", "--programs=test"], 2, "--programs=test must name train and evaluate"),
        (
            ["--config=configs/quickstart.py", "--image_size=12"],
            2,
            "--image_size=12 must be height x width, as in 512x683",
        ),
    ],
)
def test_compile_check_reports_wrong_flags(words, code, message):
    assert compile_check.PROGRAMS == compilation.PROGRAMS
    returned, _, err = run_inside(*words, module="compile_check")
    assert returned == code and message in err and "Traceback" not in err


@pytest.mark.skipif(not LIBTPU, reason="needs libtpu")
def test_compile_check_refuses_an_unknown_topology():
    for name in ("v5e:3x5", "h100:8", "v5e"):
        done = run("--config=configs/quickstart.py", f"--topology={name}")
        assert done.returncode == 1 and done.stderr.startswith(f"error: There is no topology '{name}' (")
        assert done.stderr.endswith("v5p:2x2x1.\n") and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu")
def test_compile_check_compiles_for_tpus():
    """It prints nothing but its own lines; for too large a batch, XLA's refusal becomes advice."""
    done = run("--config=configs/quickstart.py", "--topology=v5e:2x4", "--config.model.dtype=bfloat16")
    assert done.returncode == 0 and done.stderr == "" and done.stdout.endswith("fits\n")
    assert done.stdout.startswith("quickstart, bfloat16, for 8 v5e devices")
    assert re.search(r"\nGiB available +15.750 +15.750\n", done.stdout) and re.search(r"\nall-reduce +\d", done.stdout)
    done = run(
        "--config=configs/quickstart.py",
        "--topology=v5e:1x1",
        "--config.train.global_batch_size=4096",
        "--programs=train",
    )
    assert done.returncode == 1
    assert re.match(r"error: The train program needs \d+.\d GiB on each device", done.stderr)
    assert "chips instead of 1" in done.stderr.replace("\n", " ")
