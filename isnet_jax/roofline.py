"""What a program costs, read from its trace and its compiled text, and how fast a chip could be with it at best.

XLA's own cost analysis counts the body of a loop once, and a product of float32 like one of bfloat16; here every turn
and every pass counts.
"""

import math
import re
from typing import NamedTuple

import jax
from jax import lax

PASSES = {lax.Precision.HIGH: 3, lax.Precision.HIGHEST: 6}  # of bfloat16, for a product of float32 on a TPU; else 1
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_SLICES = "slice", "dynamic-slice", "gather"
_BITS = {"pred": 8, "c64": 64, "c128": 128, "token": 0}  # other types name theirs
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
}  # move nothing, or only call what does


class Chip(NamedTuple):
    """A kind of TPU chip."""

    name: str
    hbm: float  # bytes a program may use, which libtpu 0.0.42 says when it has too little
    flops: float  # peak of bfloat16, FLOP/s
    bandwidth: float  # of HBM, bytes/s
    matrix_units: int  # that work together, each a square of `side` multipliers
    side: int

    @property
    def cycle(self):
        """Seconds."""
        return 2 * self.matrix_units * self.side**2 / self.flops


# By `device_kind`. Peaks and matrix units: cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e.
CHIPS = {
    "TPU v4": Chip("v4", 30.75 * 2**30, 275e12, 1200e9, 8, 128),
    "TPU v5 lite": Chip("v5e", 15.75 * 2**30, 197e12, 819e9, 4, 128),
    "TPU v5": Chip("v5p", 95.74 * 2**30, 459e12, 2765e9, 8, 128),
    "TPU v6 lite": Chip("v6e", 31.25 * 2**30, 918e12, 1640e9, 2, 256),
}


class Flops(NamedTuple):
    """Of matrix products and convolutions, a multiplication and an addition counted as two."""

    model: float  # as written
    passes: float  # as a TPU computes them, in passes of bfloat16

    def __add__(self, other):
        return Flops(self.model + other.model, self.passes + other.passes)

    def __mul__(self, times):
        return Flops(self.model * times, self.passes * times)


def count_flops(jaxpr):
    """Flops of a jaxpr: a scan counts every turn, of branches the dearest counts, inserted zeros count nothing."""
    total = Flops(0, 0)
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            total += Flops(1, _passes(eqn)) * _products(eqn)
            continue
        bodies = [count_flops(body) for body in jax.tree.leaves(eqn.params) if hasattr(body, "eqns")]
        if eqn.primitive.name == "cond":
            bodies = [max(bodies)]
        total += sum(bodies, Flops(0, 0)) * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)
    return total


def _products(eqn):
    lhs, rhs, out = eqn.invars[0].aval, eqn.invars[1].aval, eqn.outvars[0].aval
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * out.size * math.prod(lhs.shape[i] for i in contracted)
    features = rhs.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2 * out.size * rhs.size // features // math.prod(eqn.params["lhs_dilation"])


def _passes(eqn):
    if "float32" not in {x.aval.dtype.name for x in eqn.invars}:
        return 1
    precision = eqn.params["precision"]  # None, one, or one of each operand
    both = precision if isinstance(precision, tuple) else (precision,)
    return max(PASSES.get(p, 1) for p in both)


class Traffic(NamedTuple):
    """Of one device in one run of a compiled program."""

    bytes: int  # read from and written to main memory
    collectives: dict  # kind: (count, bytes: the larger of what goes in and what comes out)
    cycles: int  # as XLA estimates them for a TPU, one instruction after the other; 0: it does not


def traffic(text):
    """Traffic of a program from its HLO text, `compiled.as_text()`.

    Each instruction reads its operands and writes its results, except where these lie in a TPU's own fast memory; of
    what is sliced or updated in place only the part counts. A loop whose turns the text does not tell counts once.
    """
    computations, entry = _parse(text)
    moved, collectives, cycles = 0, {}, 0
    for name, times in _executions(computations, entry).items():
        body = computations[name]
        for instruction in body.values():
            kind = instruction.opcode.removesuffix("-done")
            if kind in COLLECTIVES:
                operands = [] if instruction.opcode != kind else [body[x] for x in instruction.operands]
                size = max(sum(instruction.sizes), sum(sum(x.sizes) for x in operands))
                count, total = collectives.get(kind, (0, 0))
                collectives[kind] = count + times, total + times * size
            moved += times * _moved(instruction, body, computations)
            if found := re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes):
                cycles += times * int(found[1])
    return Traffic(moved, collectives, cycles)


class _Instruction(NamedTuple):
    is_root: bool
    opcode: str
    sizes: list  # bytes of each result
    slow: list  # of each result its bytes in main memory
    operands: list  # names
    number: int | None  # of a constant its value, of a parameter its position
    attributes: str

    def called(self, key):
        """Names of the computations in an attribute `key=name` or `key={name, ...}`."""
        found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
        return re.findall(r"[\w.\-]+", found[1]) if found else []


def _parse(text):
    """{computation: {name: _Instruction}}, and the name of the one where the program begins."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)", line):
            root, name, shapes, opcode, rest = found.groups()
            operands, _, attributes = rest.partition(")")
            parts = re.findall(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?", shapes)
            sizes = [_size(kind, dims) for kind, dims, _ in parts]
            current[name] = _Instruction(
                bool(root),
                opcode,
                sizes,
                [0 if re.search(r"S\([1-9]", layout) else size for size, (*_, layout) in zip(sizes, parts)],
                re.findall(r"%([\w.\-]+)", operands),
                int(operands) if operands.isdigit() else None,
                attributes,
            )
    return computations, entry


def _size(kind, dims):
    bits = _BITS[kind] if kind in _BITS else int(re.search(r"\d+", kind)[0])  # as in s4, bf16, f8e4m3
    return math.ceil(math.prod(int(n) for n in dims.split(",") if n) * bits / 8)


def _executions(computations, entry):
    """{computation: how often it runs}, of those whose instructions run one by one, not as a fusion."""
    times = {}

    def visit(name, count):
        times[name] = times.get(name, 0) + count
        for x in computations[name].values():
            turns = _turns(x, computations) if x.opcode == "while" else 1
            for key in ("body", "branch_computations", "true_computation", "false_computation"):
                for called in x.called(key):
                    visit(called, count * turns)
            if x.opcode in ("call", "async-start"):
                for called in x.called("to_apply") + x.called("calls"):
                    visit(called, count)

    visit(entry, 1)
    return times


def _turns(loop, computations):
    """How often a while loop turns: it counts from 0 to the one constant of its condition."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    (condition,) = loop.called("condition")
    bounds = [x.number for x in computations[condition].values() if x.opcode == "constant" and x.number is not None]
    return bounds[0] if len(bounds) == 1 else 1


def _moved(x, body, computations):
    """Bytes that an instruction moves from and to main memory."""
    if x.opcode in _FREE or x.opcode.startswith("async-") or x.opcode.endswith(("-start", "-update")):
        return 0
    operands = [body[name] for name in x.operands]
    if x.opcode.endswith("-done"):  # as much is read as arrives, if it comes from main memory
        sources = [body[name] for name in operands[0].operands]
        return sum(x.slow) + (sum(x.sizes) if any(sum(source.slow) for source in sources) else 0)
    read, written = [sum(operand.slow) for operand in operands], list(x.slow)
    if x.opcode in _SLICES:
        read = [min(read[0], sum(x.sizes))]
    elif x.opcode == "dynamic-update-slice":
        read, written = [read[1]], [read[1]]
    elif x.opcode == "fusion":
        _count_parts(computations[x.called("calls")[0]], read, written)
    return sum(read) + sum(written)


def _count_parts(fusion, read, written):
    """Lowers the bytes of operands that a fusion slices, and of results that update an operand in place."""
    for name, parameter in fusion.items():
        if parameter.opcode == "parameter":
            users = [user for user in fusion.values() if name in user.operands]
            if users and all(user.opcode in _SLICES and user.operands[0] == name for user in users):
                read[parameter.number] = min(read[parameter.number], sum(sum(user.sizes) for user in users))
    root = next(x for x in fusion.values() if x.is_root)
    for i, result in enumerate([fusion[name] for name in root.operands] if root.opcode == "tuple" else [root]):
        while result.opcode == "bitcast":
            result = fusion[result.operands[0]]
        if result.opcode == "dynamic-update-slice":
            written[i] = min(written[i], sum(fusion[result.operands[1]].sizes))
            target = fusion[result.operands[0]]
            while target.opcode == "bitcast":
                target = fusion[target.operands[0]]
            if target.opcode == "parameter":
                read[target.number] = 0
