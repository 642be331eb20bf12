"""Compiles a recipe's programs for devices that need not be present: whether they fit, and what they cost."""

import importlib.util
import math
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from isnet_jax.config import inference_settings
from isnet_jax.errors import UserError, first_line
from isnet_jax.evaluation.loop import make_eval_step
from isnet_jax.input.resizing import target_size
from isnet_jax.models.isnet import ISNet, create_model
from isnet_jax.runtime import console, roofline, sharding
from isnet_jax.training import time_estimate
from isnet_jax.training.optimizer import make_optimizer, make_schedule
from isnet_jax.training.step import TrainState, init_state, make_train_step

PROGRAMS = "train", "evaluate"
LOWEST_EFFORT = {"exec_time_optimization_effort": -1.0}  # of XLA
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# The share of the temporaries that bfloat16 leaves, and that remat leaves: 0.54 to 0.69 for ADE20K on ResNet-50.
TEMPORARIES_LEFT = 0.6
CLOSE = 0.9  # share of the capacity above which the lowest effort does not settle whether a program fits
MAX_SPATIAL = 8  # devices that an image is split over

Result = TypeVar("Result")


class ProgramCost(NamedTuple):
    """What a compiled program costs; bytes, FLOPs and seconds are per device and step."""

    name: str
    images: int  # on all devices together
    size: tuple[int, int]  # (height, width) of an image in the network
    memory: dict[str, int]  # {purpose: bytes}; empty if XLA refuses the program because it does not fit
    wanted: float  # bytes, the sum of `memory`, or XLA's number where it refuses
    capacity: float | None  # bytes; None: not known
    flops: float
    traffic: float | None  # bytes from and to main memory
    collectives: dict[str, tuple[int, int]]  # {kind: (count, bytes)}
    compute_seconds: float | None  # at the chip's peak
    memory_seconds: float | None
    seconds_by_part: dict[str, float]  # by XLA's own model; empty where it has none
    compile_seconds: float
    thorough: bool  # compiled as in a run; if not, the traffic is above that of a run

    @property
    def fits(self) -> bool:
        """Whether the device has enough memory, as far as its capacity is known."""
        return self.capacity is None or self.wanted <= self.capacity

    @property
    def estimated_seconds(self) -> float | None:
        """The sum over all parts."""
        return sum(self.seconds_by_part.values()) or None

    @property
    def step_seconds(self) -> float | None:
        """The roofline's lower bound on the time of a step in a run; None if it is not known."""
        return max(filter(None, (self.compute_seconds, self.thorough and self.memory_seconds)), default=None)


class _Program(NamedTuple):
    """A program to compile."""

    name: str
    step: Any  # the jitted function
    arguments: tuple  # abstract
    images: int
    size: tuple[int, int]
    resident_bytes: int = 0  # per device, what a run keeps there, the arguments included; 0: only the arguments


def report(
    config: ConfigDict,
    config_name: str,
    topology: str | None,
    programs: Collection[str],
    image_size: tuple[int, int] | None,
    full: bool,
) -> None:
    """Prints the table of `check` for the devices of `find_devices`; raises UserError if a program does not fit."""
    devices = find_devices(topology)
    kind = devices[0].device_kind
    chip = roofline.CHIPS[kind].name if kind in roofline.CHIPS else kind
    effort = "compiling ..." if full else "compiling with XLA's lowest effort (--full: as in a run) ..."
    console.say(
        f"{config_name}, {config.model.dtype}, for {len(devices)} {chip} device{'s' if len(devices) > 1 else ''}; "
        f"{effort}"
    )
    costs = check(config, devices, programs, image_size, full)
    console.say(f"\nper device and step\n{table(costs)}\n")
    estimates = [(cost.name, cost.seconds_by_part) for cost in costs if cost.seconds_by_part]
    if estimates:
        console.say(f"{time_estimate.table(estimates)}\n")
    faults = [advice(cost, config, chip, len(devices)) for cost in costs if not cost.fits]
    if faults:
        raise UserError(" ".join(faults))
    for cost in costs:
        if not full and cost.capacity and cost.wanted > CLOSE * cost.capacity:
            console.say(f"{cost.name} may need a tenth more in a run: check with --full")
    if any(cost.capacity for cost in costs):
        console.say("fits")


def find_devices(topology: str | None = None) -> Sequence[jax.Device]:
    """Devices of a topology such as v5e:2x4, or those of this machine; to be called before JAX is used.

    Raises UserError without libtpu, or if it does not know the topology.
    """
    if topology is None:
        return jax.devices()
    if not importlib.util.find_spec("libtpu") and "TPU_LIBRARY_PATH" not in os.environ:
        raise UserError(
            "--topology needs the TPU compiler, which is not installed (a TPU is not needed): pip install "
            "libtpu, or, for the version that this JAX was tested with, pip install 'jax[tpu]'."
        )
    # libtpu must not query a TPU, lock one that others use, or leave a log in /tmp.
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_LOG_DIR": "disabled",
    }
    jax.config.update("jax_platforms", "cpu")
    kind, _, shape = topology.partition(":")
    options: dict[str, Any] = {"chip_config_name": "megacore"} if kind == "v4" else {}  # else a chip is two devices
    if set(shape.split("x")) == {"1"}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        with console.no_native_noise():
            return topologies.get_topology_desc(topology, "tpu", **options).devices
    except Exception as error:  # of many kinds
        raise UserError(
            f"There is no topology {topology!r} ({first_line(error)}). Name a kind of chip and "
            "the shape of a slice, as in v5e:1x1, v5e:2x4, v5e:4x4, v6e:2x4, v4:2x2x1 or v5p:2x2x1."
        ) from None


def check(
    config: ConfigDict,
    devices: Sequence[jax.Device],
    programs: Collection[str] = PROGRAMS,
    image_size: tuple[int, int] | None = None,
    full: bool = False,
) -> list[ProgramCost]:
    """The cost of each program that a run of `config` compiles for `devices`.

    image_size: (height, width) of the photographs to evaluate, see `eval_sizes`; full: compile with the effort of a
    run. Raises UserError for a config that does not fit the devices.
    """
    mesh = sharding.training_mesh(config, devices)
    model, schedule = create_model(config.model), make_schedule(config.train, config.train.warmup_steps + 1)
    optimizer = make_optimizer(config.train, schedule)
    state = jax.eval_shape(lambda: init_state(model, optimizer, config.seed, config.train.ema_decay > 0))
    shardings = sharding.state_shardings(mesh, state, config.shard_parameters)
    costs = []
    if "train" in programs:
        step = make_train_step(model, optimizer, schedule, config, mesh, shardings)
        costs.append(_compile(_train_program(config, step, state), mesh, full))
    if "evaluate" in programs:
        costs.append(_compile(_eval_program(config, model, state, shardings, mesh, image_size), mesh, full))
    return costs


def _train_program(config: ConfigDict, step: Any, state: TrainState) -> _Program:
    size, batch_size = tuple(config.augment.crop_size), config.train.global_batch_size
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, *size, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((batch_size, *size), np.uint8),
        "window": jax.ShapeDtypeStruct((batch_size, 4), np.int32),
    }
    return _Program("train", step, (state, batch), batch_size, size)


def _eval_program(
    config: ConfigDict,
    model: ISNet,
    state: TrainState,
    shardings: TrainState,
    mesh: Mesh,
    image_size: tuple[int, int] | None,
) -> _Program:
    size, label_size = eval_sizes(config, image_size)
    batch_size = sharding.eval_batch_size(config.test.batch_size, mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, *size, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((batch_size, *label_size), np.uint8),
        "image_size": jax.ShapeDtypeStruct((batch_size, 2), np.int32),
        "label_size": jax.ShapeDtypeStruct((batch_size, 2), np.int32),
    }
    step = make_eval_step(model, mesh, inference_settings(config), loss=True)
    padded = bool(config.test.resize) and config.test.keep_ratio  # images of several sizes share a shape bucket
    batch_shardings = jax.tree.map(lambda _: sharding.batch_sharding(mesh), batch)
    resident = _bytes_per_device(state, shardings) + _bytes_per_device(batch, batch_shardings)
    if config.shard_parameters:  # evaluation uses a replicated copy
        replicated = jax.tree.map(lambda _: sharding.replicated(mesh), state.variables)
        resident += _bytes_per_device(state.variables, replicated)
    return _Program("evaluate", step, (state.variables, batch, padded), batch_size, size, resident)


def eval_sizes(
    config: ConfigDict, image_size: tuple[int, int] | None = None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of the network's input and of the label, for photographs of `image_size`.

    None means the largest size that config.test.resize allows. If that keeps original sizes, it means the size in
    config.augment.resize, or else the crop.
    """
    long_short = tuple(config.test.resize or config.augment.resize)
    height, width = image_size or long_short[::-1] or config.augment.crop_size
    resized = target_size(height, width, config.test.resize, config.test.keep_ratio)
    return resized, (height, width)


def _bytes_per_device(tree: Any, shardings: Any) -> int:
    """Bytes that each device holds of a tree of arrays or shapes."""
    return sum(
        math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings))
    )


def _compile(program: _Program, mesh: Mesh, full: bool) -> ProgramCost:
    """Compiles a program for the devices of the mesh, where XLA may refuse it for lack of memory."""
    device = mesh.devices.flat[0]
    chip = roofline.CHIPS.get(device.device_kind)
    traced = program.step.trace(*program.arguments)
    flops = roofline.count_flops(traced.jaxpr.jaxpr).times(1 / mesh.size)
    thorough = full or device.platform != "tpu"
    lowered, began = traced.lower(), time.perf_counter()
    memory, traffic = {}, roofline.Traffic(None, {}, {})
    try:
        with console.no_native_noise():
            compiled = _call_in_thread(lambda: lowered.compile({} if thorough else LOWEST_EFFORT))
    except RuntimeError as error:  # JaxRuntimeError is one
        wanted = wanted_bytes(str(error))
        if not wanted:
            raise
    else:
        memory, traffic = _memory(compiled, program.resident_bytes), roofline.traffic(compiled.as_text())
        wanted = sum(memory.values())
    return ProgramCost(
        name=program.name,
        images=program.images,
        size=program.size,
        memory=memory,
        wanted=wanted,
        capacity=_capacity(device),
        flops=flops.model,
        traffic=traffic.bytes,
        collectives=traffic.collectives,
        compute_seconds=chip and flops.passes / chip.flops,
        memory_seconds=chip and traffic.bytes and traffic.bytes / chip.bandwidth,
        seconds_by_part=time_estimate.seconds_by_part(traffic.cycles, chip.cycle) if chip and thorough else {},
        compile_seconds=time.perf_counter() - began,
        thorough=thorough,
    )


def _call_in_thread(function: Callable[[], Result]) -> Result:
    """The result of `function()`, or its exception: native code in another thread does not hold up Ctrl-C."""
    outcome: list[tuple[Any, BaseException | None]] = []

    def call():
        try:
            outcome.append((function(), None))
        except BaseException as error:  # raised again below
            outcome.append((None, error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    result, error = outcome[0]
    if error:
        raise error
    return result


def wanted_bytes(message: str) -> float | None:
    """Bytes that a program needs in total, from XLA's error for exhausted memory; None for any other message."""
    found = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])", message) if "RESOURCE_EXHAUSTED" in message else None
    return float(found[1]) * UNITS[found[2]] if found else None


def _memory(compiled: Any, resident_bytes: int) -> dict[str, int]:
    """{purpose: bytes} of a compiled program and what a run keeps beside it."""
    analysis = compiled.memory_analysis()
    memory = {
        "arguments": analysis.argument_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "outputs in new memory": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "program": analysis.generated_code_size_in_bytes,
    }
    if resident_bytes:
        memory["the run's other state"] = resident_bytes - analysis.argument_size_in_bytes
    return memory


def _capacity(device: jax.Device) -> float | None:
    """Bytes of a device that programs may use; None if they are not known."""
    chip = roofline.CHIPS.get(device.device_kind)
    if chip:
        return chip.hbm
    return (device.memory_stats() or {}).get("bytes_limit") if device in jax.local_devices() else None


def table(costs: Sequence[ProgramCost]) -> str:
    """Aligned text with a column for each program; rows without any known value are left out."""

    def row(title, values, form="{:.3f}", scale=1):
        return [title, *("" if value is None else form.format(value * scale) for value in values)]

    def per_second(seconds):
        return [x and cost.images / x for cost, x in zip(costs, seconds)]

    def column(field):
        return [getattr(cost, field) for cost in costs]

    note = "" if all(column("thorough")) else ", less in a run"
    bounds, estimates, gib = column("step_seconds"), column("estimated_seconds"), 2**-30
    rows = [["", *column("name")], ["images", *(f"{cost.images} of {cost.size[0]}x{cost.size[1]}" for cost in costs)]]
    for purpose in dict.fromkeys(purpose for cost in costs for purpose in cost.memory):
        rows.append(row(f"GiB of {purpose}", [cost.memory.get(purpose) for cost in costs], scale=gib))
    rows += [
        row("GiB in total", column("wanted"), scale=gib),
        row("GiB available", column("capacity"), scale=gib),
        row("TFLOP", column("flops"), scale=1e-12),
        row(f"GB of memory traffic{note}", column("traffic"), "{:.2f}", 1e-9),
        row("FLOP/byte", [cost.traffic and cost.flops / cost.traffic for cost in costs], "{:.0f}"),
        row("ms of compute", column("compute_seconds"), "{:.2f}", 1e3),
        row(f"ms of memory traffic{note}", column("memory_seconds"), "{:.2f}", 1e3),
        row("ms, lower bound", bounds, "{:.2f}", 1e3),
        row("images/s, upper bound", per_second(bounds), "{:.0f}"),
        row("ms by XLA's estimate", estimates, "{:.2f}", 1e3),
        row("images/s by XLA's estimate", per_second(estimates), "{:.0f}"),
    ]
    for kind in sorted({kind for cost in costs for kind in cost.collectives}):
        counts, sizes = zip(*(cost.collectives.get(kind, (0, 0)) for cost in costs))
        rows += [row(kind, counts, "{}"), row("  MB", sizes, "{:.2f}", 1e-6)]
    rows.append(row("s of compilation", column("compile_seconds"), "{:.0f}"))
    return console.aligned([cells for cells in rows if any(cells[1:])])


def advice(cost: ProgramCost, config: ConfigDict, chip: str, num_devices: int) -> str:
    """A paragraph on a program that does not fit: the memory it needs, and what would help, by estimate."""
    assert cost.capacity is not None  # or the program would count as fitting
    remedies = _remedies(cost, cost.capacity, config, num_devices)
    larger = [f"{x.name} ({x.hbm / 2**30:.1f} GiB)" for x in roofline.CHIPS.values() if x.hbm >= cost.wanted]
    if larger:
        remedies.append(f"chips with more memory: {', '.join(larger)}")
    return (
        f"The {cost.name} program needs {cost.wanted / 2**30:.1f} GiB on each device, but a {chip} has "
        f"{cost.capacity / 2**30:.2f} GiB for it. "
        + (f"Each of these should help: {'; '.join(remedies)}." if remedies else "This command knows no remedy.")
    )


def _remedies(cost: ProgramCost, capacity: float, config: ConfigDict, num_devices: int) -> list[str]:
    """Changes of the config or the number of devices, each of which should make a program fit."""
    training = cost.name == "train"
    temporaries = cost.memory.get("temporaries", cost.wanted)
    rest, remedies = cost.wanted - temporaries, []

    def suggest(remedy, share):
        if rest + share * temporaries <= capacity:
            remedies.append(f"{remedy} ({(rest + share * temporaries) / 2**30:.1f} GiB)")

    to_bfloat16, to_remat = config.model.dtype != "bfloat16", training and not config.model.remat
    if to_bfloat16:
        suggest("config.model.dtype=bfloat16", TEMPORARIES_LEFT)
    if to_remat:
        suggest("config.model.remat=True", TEMPORARIES_LEFT)
    if to_bfloat16 and to_remat and not remedies:
        suggest("config.model.dtype=bfloat16 with config.model.remat=True", TEMPORARIES_LEFT**2)
    room = max((capacity - rest) / temporaries, 1e-6)
    factor = 2 ** math.ceil(-math.log2(room))  # of the number of devices
    spatial = num_devices * factor // cost.images
    if spatial <= MAX_SPATIAL:
        mesh = f" (with config.mesh=data={cost.images},spatial={spatial}, which splits images)" if spatial > 1 else ""
        suggest(f"{num_devices * factor} chips instead of {num_devices}{mesh}", 1 / factor)
    per_device = int(cost.images * room) // num_devices
    if per_device:
        field = "config.train.global_batch_size" if training else "config.test.batch_size"
        suggest(
            f"{field}={per_device * num_devices}{', which changes the training' * training}",
            per_device * num_devices / cost.images,
        )
    return remedies
