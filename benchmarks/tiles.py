"""How far predictions in tiles agree with those of whole images, and the memory that a large image takes.

usage: python -m benchmarks.tiles --checkpoint=runs/quickstart [--write]

  --write  writes the table of docs/evaluation.md

Each of the 60 validation scenes, 96x128 pixels, is predicted as a whole and in smaller tiles. A tile sees no more than
itself: what differs is the network's context. Memory is the peak of a process of its own, in which a function without
parameters scores the tiles of a PNG, from its file to those of its prediction.
"""

import argparse
import concurrent.futures
import itertools
import multiprocessing
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np
from PIL import Image

import isnet_jax
from benchmarks import docs
from benchmarks.paths import ROOT
from isnet_jax.datasets import scenes
from isnet_jax.evaluation import metrics, prediction_files, tiles
from isnet_jax.evaluation.tiled_predictor import TiledPredictor
from isnet_jax.runtime.console import aligned, say

NUM_SCENES, VAL = 60, 1  # seed of the split
TILES = (64, 48)
OVERLAPS = (0, 1 / 4, 1 / 2)  # of a tile
SIDE, LARGE_TILE, NUM_CLASSES, BLOCK = 20_000, 1024, 8, 100  # of the large image, which is made of blocks


def measure(checkpoint: str, num_scenes: int = NUM_SCENES) -> list[list[str]]:
    """The rows of a table, the first of which names the columns."""
    segmenter = isnet_jax.load(checkpoint)
    images, labels = zip(*(scenes.draw((VAL, i)) for i in range(num_scenes)))
    whole = segmenter.predict(images)

    def row(name: str, overlap: str, masks: list[np.ndarray]) -> list[str]:
        confusions = metrics.confusion_matrices(np.stack(masks), np.stack(labels), len(segmenter.classes))
        miou = metrics.scores(np.sum(confusions, 0))["miou"]
        agreement = np.mean(np.stack(masks) == np.stack(whole))
        return [name, overlap, f"{100 * agreement:.1f} %", f"{100 * miou:.1f} %"]

    rows = [["tile", "overlap", "pixels as in the whole", "mIoU"], row("whole image", "", whole)]
    for tile, share in itertools.product(TILES, OVERLAPS):
        overlap = int(tile * share) // 8 * 8
        masks = segmenter.predict(images, tile=tile, tile_overlap=overlap)
        rows.append(row(f"{tile}x{tile}", str(overlap), masks))
    return rows


def peak_gigabytes(folder: str, side: int) -> float:
    """The peak memory of this process after the prediction of FOLDER/large.png."""
    predict_large(Path(folder), side)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def draw_large(folder: str, side: int) -> None:
    """Writes FOLDER/large.png."""
    small = np.random.default_rng(0).integers(0, 256, (side // BLOCK, side // BLOCK, 3), np.uint8)
    Image.fromarray(small.repeat(BLOCK, 0).repeat(BLOCK, 1)).save(Path(folder, "large.png"))


def predict_large(folder: Path, side: int) -> None:
    """Predicts FOLDER/large.png in tiles."""

    def score(cut: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
        for tile in cut:
            cells = tile[:: tiles.GRID, :: tiles.GRID, :1]
            yield (cells * np.linspace(1, -1, NUM_CLASSES)).astype(np.float32)

    tiling = tiles.make_tiling(LARGE_TILE)
    assert tiling
    predictor = TiledPredictor(tiling, score, tiles.GRID, "")
    palette = [(20 * i, 0, 0) for i in range(NUM_CLASSES)]
    prediction_files.predict_files(predictor, {Path("p"): folder / "large.png"}, folder / "out", palette, None)


def measure_memory(side: int = SIDE) -> str:
    """A sentence on a square image."""
    with tempfile.TemporaryDirectory() as folder:
        for function in draw_large, peak_gigabytes:
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                peak = pool.submit(function, folder, side).result()
    return f"{side}x{side} pixels, {NUM_CLASSES} classes, --tile={LARGE_TILE}: a peak of {peak:.1f} GB"


def main(checkpoint: str, write: bool) -> None:
    """Runs the command with the flags of the usage."""
    lines = [*aligned(measure(checkpoint)).splitlines(), "", measure_memory()]
    say("\n".join(lines))
    if write:
        docs.write_section(ROOT / "docs/evaluation.md", "tiles", docs.as_code(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a run of configs/quickstart.py")
    parser.add_argument("--write", action="store_true")
    main(**vars(parser.parse_args()))
