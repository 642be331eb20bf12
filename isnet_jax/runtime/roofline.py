"""FLOPs and memory traffic of a program, from its jaxpr and its HLO, and the peaks of TPU chips: a roofline model.

XLA's own cost analysis counts the body of a loop once, and a float32 product like a bfloat16 one. Here every iteration
and every pass counts.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax import lax

PASSES = {lax.Precision.HIGH: 3, lax.Precision.HIGHEST: 6}  # bfloat16 passes of a float32 product on a TPU; else 1
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_COPIES = "copy", "transpose", "reshape"
_SLICES = "slice", "dynamic-slice", "gather"
_BITS = {"pred": 8, "c64": 64, "c128": 128, "token": 0}  # the names of other types hold their number of bits
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "iota",
    "after-all",
    "partition-id",
    "replica-id",
    "while",
    "conditional",
    "call",
    "opt-barrier",
}  # instructions that move nothing, or only call others that do


class Chip(NamedTuple):
    """A kind of TPU chip."""

    name: str
    hbm: float  # bytes available to a program, from the out-of-memory errors of libtpu 0.0.42
    flops: float  # bfloat16 peak, FLOP/s
    bandwidth: float  # of HBM, bytes/s
    matrix_units: int  # that work together, each a square of `side` multipliers
    side: int

    @property
    def cycle(self) -> float:
        """Seconds of a clock cycle."""
        return 2 * self.matrix_units * self.side**2 / self.flops


# By `device_kind`. Peaks and matrix units: cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e.
CHIPS = {
    "TPU v4": Chip("v4", 30.75 * 2**30, 275e12, 1200e9, 8, 128),
    "TPU v5 lite": Chip("v5e", 15.75 * 2**30, 197e12, 819e9, 4, 128),
    "TPU v5": Chip("v5p", 95.74 * 2**30, 459e12, 2765e9, 8, 128),
    "TPU v6 lite": Chip("v6e", 31.25 * 2**30, 918e12, 1640e9, 2, 256),
}


class Flops(NamedTuple):
    """FLOPs of matrix products and convolutions; a multiply-add counts as two."""

    model: float  # as the program is written
    passes: float  # as a TPU computes it, in bfloat16 passes

    def plus(self, other: "Flops") -> "Flops":
        """The sum of both counts."""
        return Flops(self.model + other.model, self.passes + other.passes)

    def times(self, factor: float) -> "Flops":
        """Both counts, multiplied by `factor`."""
        return Flops(self.model * factor, self.passes * factor)


def count_flops(jaxpr: Any) -> Flops:
    """Flops of a jaxpr.

    Every iteration of a scan counts. Of the branches of a conditional, the most expensive does; of those for several
    platforms, the fewest FLOPs and the fewest passes. The zeros that a strided convolution's gradient inserts do not.
    """
    total = Flops(0, 0)
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            flops = _product_flops(eqn)
            total = total.plus(Flops(flops, _passes(eqn) * flops))
            continue
        bodies = [count_flops(body) for body in jax.tree.leaves(eqn.params) if hasattr(body, "eqns")]
        if eqn.primitive.name == "cond":
            by_platform = eqn.params.get("branches_platforms")
            bodies = [Flops(*map(min, zip(*bodies))) if by_platform else max(bodies)]
        iterations = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for body in bodies:
            total = total.plus(body.times(iterations))
    return total


def _product_flops(eqn: Any) -> int:
    """FLOPs of a matrix product or convolution."""
    lhs, rhs, out = eqn.invars[0].aval, eqn.invars[1].aval, eqn.outvars[0].aval
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * out.size * math.prod(lhs.shape[i] for i in contracted)
    features = rhs.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2 * out.size * rhs.size // features // math.prod(eqn.params["lhs_dilation"])


def _passes(eqn: Any) -> int:
    """The number of bfloat16 passes of a matrix product or convolution."""
    if "float32" not in {x.aval.dtype.name for x in eqn.invars}:
        return 1
    precision = eqn.params["precision"]  # None, one for both operands, or one for each
    precisions = precision if isinstance(precision, tuple) else (precision,)
    return max(PASSES.get(p, 1) for p in precisions)


class Traffic(NamedTuple):
    """Traffic of one device in one run of a compiled program."""

    bytes: int | None  # read from and written to main memory; None: not known
    collectives: dict[str, tuple[int, int]]  # {kind: (count, bytes)}, the larger of input and output
    cycles: Mapping[str, int]  # XLA's estimate for a TPU by name of operation, or else kind; in sequence; may be empty


def traffic(hlo: str) -> Traffic:
    """Traffic of a program from its HLO, the text of `compiled.as_text()`.

    Each instruction reads its operands from main memory and writes its results to it, unless they live in a TPU's
    on-chip memory. Where an array is sliced or updated in place, only that part counts. The body of a loop whose trip
    count the HLO does not give counts once.
    """
    computations, entry = _parse(hlo)
    num_bytes = 0
    cycles: dict[str, int] = {}
    collectives: dict[str, tuple[int, int]] = {}
    for name, runs in _run_counts(computations, entry).items():
        body = computations[name]
        for instruction in body.values():
            kind = instruction.opcode.removesuffix("-done")
            if kind in COLLECTIVES:
                operands = [] if instruction.opcode != kind else [body[x] for x in instruction.operands]
                size = max(sum(instruction.sizes), sum(sum(x.sizes) for x in operands))
                count, total = collectives.get(kind, (0, 0))
                collectives[kind] = count + runs, total + runs * size
            num_bytes += runs * _bytes_moved(instruction, body, computations)
            if found := re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes):
                operation = re.search(r'op_name="([^"]*)"', instruction.attributes)
                name = operation[1] if operation and kind not in (*COLLECTIVES, *_COPIES) else kind
                cycles[name] = cycles.get(name, 0) + runs * int(found[1])
    return Traffic(num_bytes, collectives, cycles)


class _Instruction(NamedTuple):
    is_root: bool
    opcode: str
    sizes: list[int]  # bytes of each result
    hbm_sizes: list[int]  # the same, with 0 for results in on-chip memory
    operands: list[str]
    number: int | None  # value of a constant, position of a parameter
    attributes: str

    def called(self, key: str) -> list[str]:
        """Names of the computations in an attribute `key=name` or `key={name, ...}`."""
        found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
        return re.findall(r"[\w.\-]+", found[1]) if found else []


_Body = Mapping[str, _Instruction]  # the instructions of a computation by name


def _parse(hlo: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    """{computation: {name: _Instruction}}, and the name of the entry computation."""
    computations: dict[str, dict[str, _Instruction]] = {}
    entry, current = "", {}
    for line in hlo.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)", line):
            root, name, shapes, opcode, rest = found.groups()
            operands, _, attributes = rest.partition(")")
            results = re.findall(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?", shapes)  # (dtype, dimensions, layout) of each
            sizes = [_size(dtype, dims) for dtype, dims, _ in results]
            current[name] = _Instruction(
                bool(root),
                opcode,
                sizes,
                [0 if re.search(r"S\([1-9]", layout) else size for size, (*_, layout) in zip(sizes, results)],
                re.findall(r"%([\w.\-]+)", operands),
                int(operands) if operands.isdigit() else None,
                attributes,
            )
    return computations, entry


def _size(dtype: str, dims: str) -> int:
    """Bytes of an array; dims as in "16,1000"."""
    bits = _BITS[dtype] if dtype in _BITS else int(re.findall(r"\d+", dtype)[0])  # as in s4, bf16, f8e4m3
    return math.ceil(math.prod(int(n) for n in dims.split(",") if n) * bits / 8)


def _run_counts(computations: Mapping[str, _Body], entry: str) -> dict[str, int]:
    """{computation: how often it runs}, for those whose instructions run one by one, not as a fusion."""
    counts: dict[str, int] = {}

    def visit(name: str, count: int) -> None:
        counts[name] = counts.get(name, 0) + count
        for x in computations[name].values():
            trips = _trip_count(x, computations) if x.opcode == "while" else 1
            for key in ("body", "branch_computations", "true_computation", "false_computation"):
                for called in x.called(key):
                    visit(called, count * trips)
            if x.opcode in ("call", "async-start"):
                for called in x.called("to_apply") + x.called("calls"):
                    visit(called, count)

    visit(entry, 1)
    return counts


def _trip_count(loop: _Instruction, computations: Mapping[str, _Body]) -> int:
    """The number of iterations of a while loop: it counts from 0 to the only constant in its condition."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    (condition,) = loop.called("condition")
    bounds = [x.number for x in computations[condition].values() if x.opcode == "constant" and x.number is not None]
    return bounds[0] if len(bounds) == 1 else 1


def _bytes_moved(x: _Instruction, body: _Body, computations: Mapping[str, _Body]) -> int:
    """Bytes that an instruction reads from main memory and writes to it."""
    if x.opcode in _FREE or x.opcode.startswith("async-") or x.opcode.endswith(("-start", "-update")):
        return 0
    operands = [body[name] for name in x.operands]
    if x.opcode.endswith("-done"):  # it reads as much as arrives, if the source is in main memory
        sources = [body[name] for name in operands[0].operands]
        return sum(x.hbm_sizes) + (sum(x.sizes) if any(sum(source.hbm_sizes) for source in sources) else 0)
    read, written = [sum(operand.hbm_sizes) for operand in operands], list(x.hbm_sizes)
    if x.opcode in _SLICES:
        read = [min(read[0], sum(x.sizes))]
    elif x.opcode == "dynamic-update-slice":
        read, written = [read[1]], [read[1]]
    elif x.opcode == "fusion":
        _discount_slices(computations[x.called("calls")[0]], read, written)
    return sum(read) + sum(written)


def _discount_slices(fusion: _Body, read: list[int], written: list[int]) -> None:
    """Lowers, in place, the bytes of operands that a fusion slices and of results that update an operand in place."""
    for name, parameter in fusion.items():
        if parameter.opcode == "parameter" and parameter.number is not None:
            users = [user for user in fusion.values() if name in user.operands]
            if users and all(user.opcode in _SLICES and user.operands[0] == name for user in users):
                read[parameter.number] = min(read[parameter.number], sum(sum(user.sizes) for user in users))
    root = next(x for x in fusion.values() if x.is_root)
    for i, result in enumerate([fusion[name] for name in root.operands] if root.opcode == "tuple" else [root]):
        result = _skip_bitcasts(result, fusion)
        if result.opcode == "dynamic-update-slice":
            written[i] = min(written[i], sum(fusion[result.operands[1]].sizes))
            target = _skip_bitcasts(fusion[result.operands[0]], fusion)
            if target.opcode == "parameter" and target.number is not None:
                read[target.number] = 0


def _skip_bitcasts(x: _Instruction, fusion: _Body) -> _Instruction:
    """The instruction whose result `x` reinterprets."""
    while x.opcode == "bitcast":
        x = fusion[x.operands[0]]
    return x
