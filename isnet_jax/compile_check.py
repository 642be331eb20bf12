"""Compiles a recipe's programs for TPUs that are not here, and tells whether they fit and what they cost.

usage: python -m isnet_jax.compile_check --config=FILE[:BACKBONE] [--topology=v5e:2x4] [--programs=train,evaluate]
                                         [--image_size=HxW] [--full] [--config.FIELD=VALUE ...]

  --topology    which TPUs, as in v5e:1x1, v5e:2x4, v6e:2x4, v4:2x2x1 or v5p:2x2x1, for which `pip install libtpu` is
                all it takes; without it, the devices of this machine
  --programs    train, evaluate, or both with a comma (default)
  --image_size  of the photographs to evaluate; without it, the largest that config.test makes of any
  --full        compiles as a run does, which takes 5 to 20 times as long; without it XLA optimises least: the memory
                is right to a tenth, but a run keeps more in the chip's fast memory and moves less

The programs are those of isnet_jax.main, one image size for evaluation. Exit code 1 if one of them does not fit.
"""

import importlib.util
import math
import os
import re
import sys
import threading
import time
from typing import NamedTuple

import numpy as np
from absl import flags

from isnet_jax import command, console
from isnet_jax.errors import UserError

PROGRAMS = "train", "evaluate"
QUICK = "compiling with the least effort (--full: as a run does) ..."
LEAST = {"exec_time_optimization_effort": -1.0}
CLOSE = 0.9  # of the memory: above it the least effort settles nothing
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
LEFT = 0.6  # of the temporaries with bfloat16, and with remat: of ADE20K on ResNet-50 0.54 to 0.69 are left


class Report(NamedTuple):
    """A compiled program; bytes, FLOPs and seconds are of one device and one step."""

    name: str
    images: int  # of all devices
    size: tuple  # (height, width) of an image in the network
    memory: dict  # {what for: bytes}; empty if XLA finds that it does not fit
    wanted: float  # bytes, of everything together
    capacity: float | None  # bytes; None: not known
    flops: float
    traffic: float | None  # bytes from and to main memory
    collectives: dict  # {kind: (count, bytes)}
    compute_seconds: float | None  # at the chip's peak
    memory_seconds: float | None
    estimated_seconds: float | None  # by XLA's own model
    compile_seconds: float
    thorough: bool  # compiled as a run does; if not, it moves more than in a run

    @property
    def fits(self):
        return self.capacity is None or self.wanted <= self.capacity

    @property
    def step_seconds(self):
        """What the roofline says that a step takes at least in a run; None if that is not known."""
        known = (self.compute_seconds, self.memory_seconds if self.thorough else None)
        return max(filter(None, known), default=None)


def find_devices(topology=None):
    """Devices of a topology such as v5e:2x4, or those of this machine; call it before JAX is used.

    Raises UserError without libtpu, or if it knows no such topology.
    """
    import jax

    if topology is None:
        return jax.devices()
    if not importlib.util.find_spec("libtpu") and "TPU_LIBRARY_PATH" not in os.environ:
        raise UserError(
            "--topology needs the compiler for TPUs, which is not installed; no TPU is needed: pip install "
            "libtpu, or of the version that this JAX was tested with, pip install 'jax[tpu]'."
        )
    # Nothing is asked of a TPU, nothing kept from one that others use, and no log is left in /tmp.
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_LOG_DIR": "disabled",
    }
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    kind, _, shape = topology.partition(":")
    options = {"chip_config_name": "megacore"} if kind == "v4" else {}  # else a chip is two devices
    if set(shape.split("x")) == {"1"}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        with console.no_native_noise():
            return topologies.get_topology_desc(topology, "tpu", **options).devices
    except Exception as error:  # of many kinds
        raise UserError(
            f"There is no topology {topology!r} ({str(error).splitlines()[0]}). Name a kind of chip and "
            "the shape of a slice, as in v5e:1x1, v5e:2x4, v5e:4x4, v6e:2x4, v4:2x2x1 or v5p:2x2x1."
        ) from None


def check(config, devices, programs=PROGRAMS, image_size=None, full=False):
    """Reports of the programs that a run of `config` compiles for `devices`.

    image_size: (height, width) of the photographs to evaluate, see `eval_sizes`. Raises UserError for a config that
    does not go with the devices.
    """
    import jax

    from isnet_jax import create_model, evaluation, sharding, train
    from isnet_jax.config import inference_settings

    mesh = sharding.make_mesh(config.mesh, config.train.global_batch_size, devices)
    model, optimizer = create_model(config.model), train.make_optimizer(config.train, 1)
    state = jax.eval_shape(lambda: train.init_state(model, optimizer, config.seed, config.train.ema_decay > 0))
    state_sharding = sharding.split_state(mesh, state, config.shard_parameters)
    array, reports = jax.ShapeDtypeStruct, []
    if "train" in programs:
        size, b = tuple(config.augment.crop_size), config.train.global_batch_size
        batch = {
            "image": array((b, *size, 3), np.uint8),
            "label": array((b, *size), np.uint8),
            "window": array((b, 4), np.int32),
        }
        step = train.make_train_step(model, optimizer, config, mesh, state_sharding)
        reports.append(_report("train", step, (state, batch), b, size, mesh, full))
    if "evaluate" in programs:
        (size, label_size), b = eval_sizes(config, image_size), sharding.fill_up(config.test.batch_size, mesh)
        batch = {
            "image": array((b, *size, 3), np.uint8),
            "label": array((b, *label_size), np.uint8),
            "image_size": array((b, 2), np.int32),
            "label_size": array((b, 2), np.int32),
        }
        step = evaluation.make_eval_step(model, mesh, inference_settings(config))
        padded = bool(config.test.resize) and config.test.keep_ratio  # images of several sizes share a canvas
        held = _bytes(state, state_sharding) + _bytes(batch, jax.tree.map(lambda _: sharding.split_batch(mesh), batch))
        if config.shard_parameters:  # it evaluates a copy that is on every device
            held += _bytes(state.variables, jax.tree.map(lambda _: sharding.replicated(mesh), state.variables))
        reports.append(_report("evaluate", step, (state.variables, batch, padded), b, size, mesh, full, held))
    return reports


def eval_sizes(config, image_size=None):
    """(height, width) of the network's input and of the label, for photographs of `image_size`.

    None means the largest that config.test.resize can make of any; where that leaves sizes alone, what
    config.augment.resize says, or the crop.
    """
    from isnet_jax.resizing import target_size

    long_short = tuple(config.test.resize or config.augment.resize)
    image_size = image_size or long_short[::-1] or tuple(config.augment.crop_size)
    resized = target_size(*image_size, config.test.resize, config.test.keep_ratio) if config.test.resize else image_size
    return tuple(resized), image_size


def _bytes(tree, shardings):
    """Of a tree of arrays on one device."""
    import jax

    return sum(
        math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings))
    )


def _report(name, step, arguments, images, size, mesh, full, held=0):
    """Compiles a jitted step for abstract arguments; held: bytes that a run has on each device, these included."""
    import jax

    from isnet_jax import roofline

    device, memory, moved = mesh.devices.flat[0], {}, roofline.Traffic(None, {}, None)
    chip = roofline.CHIPS.get(device.device_kind)
    local = not chip and device in jax.local_devices()
    capacity = chip.hbm if chip else (device.memory_stats() or {}).get("bytes_limit") if local else None
    traced = step.trace(*arguments)
    flops = roofline.count_flops(traced.jaxpr.jaxpr) * (1 / mesh.size)
    thorough = full or device.platform != "tpu"
    lowered, began = traced.lower(), time.perf_counter()
    try:
        with console.no_native_noise():
            compiled = _interruptible(lambda: lowered.compile({} if thorough else LEAST))
    except RuntimeError as error:  # JAX's is one
        wanted = wanted_bytes(str(error))
        if not wanted:
            raise
    else:
        found, moved = compiled.memory_analysis(), roofline.traffic(compiled.as_text())
        memory = {
            "arguments": found.argument_size_in_bytes,
            "temporaries": found.temp_size_in_bytes,
            "outputs in new memory": found.output_size_in_bytes - found.alias_size_in_bytes,
            "program": found.generated_code_size_in_bytes,
        }
        if held:
            memory["the run's other state"] = held - found.argument_size_in_bytes
        wanted = sum(memory.values())
    estimate = moved.cycles * chip.cycle if chip and moved.cycles and thorough else None
    return Report(
        name,
        images,
        size,
        memory,
        wanted,
        capacity,
        flops.model,
        moved.bytes,
        moved.collectives,
        chip and flops.passes / chip.flops,
        chip and moved.bytes and moved.bytes / chip.bandwidth,
        estimate,
        time.perf_counter() - began,
        thorough,
    )


def _interruptible(function):
    """What `function()` returns or raises; Ctrl-C need not wait for it, as it must for native code in this thread."""
    found = []

    def call():
        try:
            found.append((function(), None))
        except BaseException as error:  # handed on
            found.append((None, error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    result, error = found[0]
    if error:
        raise error
    return result


def wanted_bytes(message):
    """Bytes that a program needs in all, from what XLA says when there is too little memory; None for other errors."""
    found = "RESOURCE_EXHAUSTED" in message and re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])", message)
    return float(found[1]) * UNITS[found[2]] if found else None


def table(reports):
    """Aligned text, a column for each report; rows of which nothing is known are left out."""

    def row(title, values, form="{:.3f}", scale=1):
        return [title, *("" if value is None else form.format(value * scale) for value in values)]

    def per_second(seconds):
        return [x and r.images / x for r, x in zip(reports, seconds)]

    every, more = Report(*zip(*reports)), "" if all(r.thorough for r in reports) else ", less in a run"
    least, gib = [r.step_seconds for r in reports], 2**-30
    rows = [["", *every.name], ["images", *(f"{r.images} of {r.size[0]}x{r.size[1]}" for r in reports)]]
    for what in dict.fromkeys(what for memory in every.memory for what in memory):
        rows.append(row(f"GiB of {what}", [memory.get(what) for memory in every.memory], scale=gib))
    rows += [
        row("GiB in all", every.wanted, scale=gib),
        row("GiB there are", every.capacity, scale=gib),
        row("TFLOP", every.flops, scale=1e-12),
        row(f"GB of memory traffic{more}", every.traffic, "{:.2f}", 1e-9),
        row("FLOP/byte", [r.traffic and r.flops / r.traffic for r in reports], "{:.0f}"),
        row("ms of compute", every.compute_seconds, "{:.2f}", 1e3),
        row(f"ms of memory traffic{more}", every.memory_seconds, "{:.2f}", 1e3),
        row("ms at least", least, "{:.2f}", 1e3),
        row("images/s at most", per_second(least), "{:.0f}"),
        row("ms as XLA estimates", every.estimated_seconds, "{:.2f}", 1e3),
        row("images/s then", per_second(every.estimated_seconds), "{:.0f}"),
    ]
    for kind in sorted({kind for found in every.collectives for kind in found}):
        rows += [
            row(kind, [found.get(kind, (0,))[0] for found in every.collectives], "{}"),
            row("  MB", [found.get(kind, (0, 0))[1] for found in every.collectives], "{:.2f}", 1e-6),
        ]
    rows.append(row("s of compilation", every.compile_seconds, "{:.0f}"))
    return console.aligned([cells for cells in rows if any(cells[1:])])


def advice(report, config, chip, num_devices):
    """A paragraph on a program that does not fit: how much it wants, and what would help, by estimate."""
    from isnet_jax import roofline

    training = report.name == "train"
    temporaries = report.memory.get("temporaries", report.wanted)
    rest, options = report.wanted - temporaries, []

    def suggest(what, share):
        if rest + share * temporaries <= report.capacity:
            options.append(f"{what} ({(rest + share * temporaries) / 2**30:.1f} GiB)")

    narrow, remat = config.model.dtype != "bfloat16", training and not config.model.remat
    if narrow:
        suggest("config.model.dtype=bfloat16", LEFT)
    if remat:
        suggest("config.model.remat=True", LEFT)
    if narrow and remat and not options:
        suggest("config.model.dtype=bfloat16 with config.model.remat=True", LEFT**2)
    room = max((report.capacity - rest) / temporaries, 1e-6)
    times = 2 ** math.ceil(-math.log2(room))  # as many devices
    spatial = num_devices * times // report.images
    if spatial <= 8:  # no mesh cuts images further
        cut = f" (config.mesh=data={report.images},spatial={spatial} then cuts images)" if spatial > 1 else ""
        suggest(f"{num_devices * times} chips instead of {num_devices}{cut}", 1 / times)
    per_device = int(report.images * room) // num_devices
    if per_device:
        field = "config.train.global_batch_size" if training else "config.test.batch_size"
        suggest(
            f"{field}={per_device * num_devices}{', which trains otherwise' * training}",
            per_device * num_devices / report.images,
        )
    larger = [f"{x.name} ({x.hbm / 2**30:.1f} GiB)" for x in roofline.CHIPS.values() if x.hbm >= report.wanted]
    if larger:
        options.append(f"chips with more memory: {', '.join(larger)}")
    found = f"Each of these should do: {'; '.join(options)}." if options else "Nothing this command knows of would do."
    return (
        f"The program {report.name} wants {report.wanted / 2**30:.1f} GiB on each device, and a {chip} has "
        f"{report.capacity / 2**30:.2f} GiB for it. {found}"
    )


def _main(config, values):
    unknown = set(values.programs) - set(PROGRAMS)
    if unknown or not values.programs:
        raise flags.Error(f"--programs={','.join(values.programs)} must name {' and '.join(PROGRAMS)}")
    image_size = None
    if values.image_size:
        found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", values.image_size)
        if not found:
            raise flags.Error(f"--image_size={values.image_size} must be as in 512x683, height x width")
        image_size = int(found[1]), int(found[2])
    devices = find_devices(values.topology)
    from isnet_jax import roofline

    kind = devices[0].device_kind
    chip = roofline.CHIPS[kind].name if kind in roofline.CHIPS else kind
    console.say(
        f"{command.config_name(sys.argv)}, {config.model.dtype}, for {len(devices)} {chip} "
        f"device{'s' if len(devices) > 1 else ''}; {'compiling ...' if values.full else QUICK}"
    )
    reports = check(config, devices, values.programs, image_size, values.full)
    console.say(f"\non each device, each step\n{table(reports)}\n")
    wrong = [advice(report, config, chip, len(devices)) for report in reports if not report.fits]
    if wrong:
        raise UserError(" ".join(wrong))
    for report in reports:
        if not values.full and report.capacity and report.wanted > CLOSE * report.capacity:
            console.say(f"{report.name} may need a tenth more in a run: --full tells")
    if any(report.capacity for report in reports):
        console.say("fits")


def _define_flags():
    flags.DEFINE_string("topology", None, "KIND:SHAPE of TPUs")
    flags.DEFINE_list("programs", list(PROGRAMS), "which programs")
    flags.DEFINE_string("image_size", None, "HEIGHTxWIDTH of photographs to evaluate")
    flags.DEFINE_boolean("full", False, "compile as a run does")


if __name__ == "__main__":
    command.run(_main, __doc__, _define_flags, goes_on="")
