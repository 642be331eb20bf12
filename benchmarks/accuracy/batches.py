"""Exported batches (export.py), as the trainers of both frameworks read them. Imports neither framework."""

import argparse
from pathlib import Path

import numpy as np


def open_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Image, label and window of all steps, see export.py; read from disk when indexed."""
    return {name: np.load(folder / f"{name}.npy", "r") for name in ("image", "label", "window")}


def parse_args(usage: str | None) -> argparse.Namespace:
    """`batches` and `output`, directories, and `dtype` of the command line BATCHES OUTPUT [--dtype=float64]."""
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("batches", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    return parser.parse_args()
