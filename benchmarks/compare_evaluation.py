"""The work "evaluate" of benchmarks.compare_torch: photographs of mixed sizes, the whole command."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.paths import ROOT

SHAPES = ((1, 1), (0.75, 1), (1, 0.75), (0.67, 1), (1, 0.67), (0.8, 0.9), (0.9, 0.8), (0.7, 0.95))  # of --size
NUM_IMAGES = 12

CONFIG = """
from isnet_jax import config

def get_config():
    c = config.default({backbone!r})
    c.model.num_classes, c.model.dtype = {classes}, {dtype!r}
    c.data.name, c.data.folder.name = "folder", "photographs"
    c.data.folder.classes = tuple(f"class {{i}}" for i in range({classes}))
    c.data.folder.splits = {{"val": ("images", "labels")}}
    c.data.source, c.data.data_dir = {source!r}, {data_dir!r}
    c.test.resize = ()
    return c
"""


def make_place(spec: dict[str, Any], place: Path) -> None:
    """Writes photographs, labels, a config and weights into `place`, and prepares the data set."""
    from benchmarks.reference import random_variables
    from isnet_jax import config, create_model
    from isnet_jax.checkpoints.manager import save_variables

    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (place / "tree" / kind).mkdir(parents=True)
    for i in range(NUM_IMAGES):
        height, width = (round(n * factor) for n, factor in zip(spec["size"], SHAPES[i % len(SHAPES)]))
        coarse = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3)).astype(np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        label = cv2.resize(coarse[..., 0] % spec["classes"], (width, height), interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(place / "tree/images" / f"{i:02d}.jpg"), image)
        cv2.imwrite(str(place / "tree/labels" / f"{i:02d}.png"), label)
    fields = {**spec, "source": str(place / "tree"), "data_dir": str(place / "data")}
    (place / "config.py").write_text(CONFIG.format(**fields))
    c = config.default(spec["backbone"])
    c.model.num_classes = spec["classes"]
    save_variables(place / "weights", c, random_variables(create_model(c.model)), "random weights")
    words = [sys.executable, "-m", "isnet_jax.prepare", f"--config={place / 'config.py'}"]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)


def time_command(words: Sequence[str], **environment: str) -> tuple[float, float]:
    """Seconds and peak GiB of a command; raises RuntimeError with its last line if it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(
        words, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError((errors.strip().splitlines() or [f"status {status}"])[-1])
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 2**30


def measure_ours(spec: dict[str, Any], place: Path, turn: int) -> dict[str, Any]:
    """The command of users, twice: with nothing compiled, and again."""
    words = [sys.executable, "-m", "isnet_jax.evaluate", f"--config={place / 'config.py'}"]
    words += [f"--checkpoint={place / 'weights'}"]
    cache, outputs = str(place / f"compiled{turn}"), [place / f"ours{turn}{name}" for name in ("", "again")]
    (seconds, peak), (again, _) = (
        time_command([*words, f"--output={output}"], XDG_CACHE_HOME=cache) for output in outputs
    )
    results = json.loads((outputs[0] / "results.json").read_text())
    return {
        "seconds": [seconds],
        "again_seconds": again,
        "peak_gib": peak,
        "device": results["run"]["devices"],
        "versions": results["run"]["versions"],
        "result": {"hits, predicted and labelled pixels": pixel_counts(np.array(results["confusion"]))},
    }


def measure_theirs(spec: dict[str, Any], place: Path) -> dict[str, Any]:
    """The predictions and their confusion matrix in PyTorch, image by image."""
    output = place / f"{spec['variant']}.json"
    words = [sys.executable, "-m", "benchmarks.compare_evaluation_torch", json.dumps(spec), str(place), str(output)]
    seconds, peak = time_command(words)
    confusion = np.array(json.loads(output.read_text()))
    return {
        "seconds": [seconds],
        "peak_gib": peak,
        "result": {"hits, predicted and labelled pixels": pixel_counts(confusion)},
    }


def pixel_counts(confusion: np.ndarray) -> list[int]:
    """Hits, predicted and labelled pixels of each class."""
    return [*confusion.diagonal().tolist(), *confusion.sum(0).tolist(), *confusion.sum(1).tolist()]
