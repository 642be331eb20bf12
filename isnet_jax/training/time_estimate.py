"""Where XLA expects the time of a step to go, by part of the network."""

import re
from collections.abc import Mapping, Sequence

from isnet_jax.runtime import console

# The first pattern that the name of an operation matches. Names are the path of modules, as in
# jit(train_step)/transpose(jvp(ISNet))/backbone/layer3_0/conv2/bn/reduce_sum, or, with rematerialisation,
# .../backbone/checkpoint/layer3_0/conv2/...
PARTS = {
    "copies and layout changes": r"^(copy|transpose|reshape)",
    "collectives": r"^(all-|reduce-scatter|collective-)",
    "losses": r"\blosses\b",
    "batch norm": r"/bn/",
    **{f"stage {i}": rf"\blayer{i}_" for i in range(1, 5)},
    "stem": r"\bbackbone\b",
    "image-level context": r"image_level_context",
    "semantic-level context": r"semantic_level_context",
    "heads": r"ISNet",
    "images": r"\bimages\b",
    "optimizer": r"\boptimizer\b",
}
REST = "everything else"


def part_of(name: str) -> str:
    """The part of the network that an operation belongs to."""
    return next((part for part, pattern in PARTS.items() if re.search(pattern, name)), REST)


def seconds_by_part(cycles: Mapping[str, int], seconds_per_cycle: float) -> dict[str, float]:
    """Seconds of each part that has any, from the cycles of operations by name."""
    seconds = dict.fromkeys([*PARTS, REST], 0.0)
    for name, count in cycles.items():
        seconds[part_of(name)] += count * seconds_per_cycle
    return {part: value for part, value in seconds.items() if value}


def table(columns: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """Aligned text: milliseconds and share of each part, for each (program, seconds by part)."""
    rows = [["ms by XLA's estimate", *(cell for name, _ in columns for cell in (name, "share"))]]
    for part in [*PARTS, REST]:
        if any(part in seconds for _, seconds in columns):
            cells = []
            for _, seconds in columns:
                value = seconds.get(part, 0.0)
                cells += [f"{1e3 * value:.2f}", f"{100 * value / sum(seconds.values()):.1f} %"]
            rows.append([part, *cells])
    return console.aligned(rows)
