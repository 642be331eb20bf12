"""The tables of docs/performance.md from the results of benchmarks.accelerator."""

from collections.abc import Sequence
from typing import Any

from benchmarks.docs import write_section
from benchmarks.paths import PERFORMANCE

PYTORCH_COLUMNS = ["PyTorch img/s", "PyTorch loop", "PyTorch GiB", "speed-up"]
ERRORS = ("max_error", "{:.1e}"), ("rms_error", "{:.1e}"), ("argmax_agreement", "{:.2%}")


def write(results: dict[str, Any]) -> None:
    """Writes the tables into docs/performance.md."""
    write_section(PERFORMANCE, "accelerator", render(results))


def render(results: dict[str, Any]) -> str:
    """The device and tables of speed and accuracy in Markdown, then the measurements that failed or were skipped."""
    measured = {name: value for name, value in results["measured"].items() if "error" not in value}
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items() if version)
    rate = _cell(measured, "matrix bfloat16", "tflops", "{:.0f}")
    lines = [f"{results['device']}; {versions}. Measured bfloat16 matrix rate: {rate} TFLOP/s."]
    for kind in ("train", "infer"):
        lines += ["", *_speed_table(measured, kind)]
    lines += ["", *_logits_table(measured)]
    failed = [
        f"{name} ({value['error'].splitlines()[0][:120]})"
        for name, value in results["measured"].items()
        if "error" in value
    ]
    for title, names in ("Failed", failed), ("Skipped, no time left or no PyTorch on a GPU", results["skipped"]):
        if names:
            lines.append(f"\n{title}: {'; '.join(names)}.")
    return "\n".join(lines)


def _speed_table(measured: dict[str, Any], kind: str) -> list[str]:
    lines = [
        _row([kind, "size, batch", "img/s", "of rate", "GiB", "compile s", *PYTORCH_COLUMNS]),
        "|---|---|--:|--:|--:|--:|--:|---|--:|--:|",
    ]
    for recipe in sorted({name.split()[-1] for name in measured if kind in name.split()}):
        ours, theirs = f"{kind} {recipe}", f"torch {kind} {recipe}"
        either = measured.get(ours) or measured[theirs]
        speed_up = "-"
        if ours in measured and theirs in measured:
            speed_up = f"{measured[ours]['images_per_second'] / measured[theirs]['images_per_second']:.2f}"
        cells = [
            recipe,
            "{}x{}, {}".format(*either["size"], either["wanted_batch"]),
            _cell(measured, ours, "images_per_second"),
            _cell(measured, ours, "share", "{:.0%}"),
            _cell(measured, ours, "memory_gib"),
            _cell(measured, ours, "compile_seconds"),
            _cell(measured, theirs, "images_per_second"),
            _cell(measured, theirs, "loop_over", "{}"),
            _cell(measured, theirs, "memory_gib"),
            speed_up,
        ]
        lines.append(_row(cells))
    return lines


def _logits_table(measured: dict[str, Any]) -> list[str]:
    columns = ["max error", "RMS error", "same argmax"]
    lines = [
        _row(["logits", *columns, *(f"PyTorch {column}" for column in columns)]),
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for case in sorted({name.removeprefix("torch ") for name in measured if "parity" in name}):
        cells = [_cell(measured, prefix + case, key, form) for prefix in ("", "torch ") for key, form in ERRORS]
        lines.append(_row([case.removeprefix("parity "), *cells]))
    return lines


def _cell(measured: dict[str, Any], name: str, key: str, form: str = "{:.1f}") -> str:
    value = measured.get(name, {}).get(key)
    if value is None:
        return "-"
    batch, wanted = measured[name].get("batch"), measured[name].get("wanted_batch")
    reduced = key == "images_per_second" and batch < wanted
    return form.format(value) + (f" (memory limits the batch to {batch})" if reduced else "")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
