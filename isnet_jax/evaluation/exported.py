"""Predictions by an exported network (isnet_jax.export), in place of a checkpoint's."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from isnet_jax import config as configs
from isnet_jax.checkpoints import hub
from isnet_jax.errors import UserError
from isnet_jax.evaluation.predictor import CLASSES, Source, read_ahead, reduce_logits
from isnet_jax.evaluation.tiled_predictor import TiledPredictor
from isnet_jax.evaluation.tiles import Tiling
from isnet_jax.exports import formats
from isnet_jax.exports.program import SCORE_MAP
from isnet_jax.input.resizing import target_size, use_one_opencv_thread
from isnet_jax.models.isnet import ISNet, create_model
from isnet_jax.runtime import compiler, files, limits

KINDS = {suffix: kind for kind, suffix in formats.SUFFIXES.items() if suffix}
RUNTIMES = {"onnx": "onnxruntime", "stablehlo": "StableHLO"}
ROUNDING = 64  # of score maps and predictions, which are padded: few programs resize them


def is_export(checkpoint: str | os.PathLike) -> bool:
    """Whether a checkpoint is an exported file, by its suffix."""
    return Path(checkpoint).suffix in KINDS and not os.fspath(checkpoint).startswith(hub.PREFIX)


def description_path(path: Path) -> Path:
    """The JSON file beside an export."""
    return path.with_name(f"{path.name}.json")


def load(path: str | os.PathLike) -> tuple[ConfigDict, ISNet, "ExportedPredictor"]:
    """Config, model without weights, and predictor of an exported file.

    Raises UserError if the file or its description cannot be read, or they do not belong together.
    """
    path = Path(path)
    kind = KINDS[path.suffix]
    described = description_path(path)
    if not path.is_file():
        raise UserError(f"--checkpoint={path} does not exist; give a file that isnet_jax.export wrote.")
    try:
        facts = files.read_json(described)
        size = _check(facts, kind)
    except FileNotFoundError:
        raise UserError(
            f"{described} is missing; isnet_jax.export writes it beside {path.name}, and it says how images are "
            "prepared: copy both."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{described} is damaged ({error}): export the checkpoint again.") from None
    config = configs.from_record(facts["config"], str(described))
    if hashlib.sha256(formats.read_bytes(path)).hexdigest() != facts["sha256"]:
        raise UserError(f"{path} is not the file that {described} describes, or damaged: export the checkpoint again.")
    model = create_model(config.model)
    compiler.enable_cache()
    run = formats.open_to_run(kind, path)
    where = RUNTIMES[kind] + (f", every image resized to {size[0]}x{size[1]}" if size else "")
    return config, model, ExportedPredictor(config, model, run, size, where)


def _check(facts: Any, kind: str) -> tuple[int, int] | None:
    """The only size (height, width) of images that a description allows, or None; raises ValueError."""
    if not isinstance(facts, dict) or not isinstance(facts.get("config"), dict) or facts.get("format") != kind:
        raise ValueError(f"it describes no network in the format {kind}")
    if not isinstance(facts.get("sha256"), str):
        raise ValueError("sha256 is missing")
    resizing = facts.get("resize")
    size = resizing.get("size") if isinstance(resizing, dict) else ()
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2 or any(type(n) is not int or n < 1 for n in size):
        raise ValueError("resize.size must be null, or [height, width]")
    limits.check_size(size[1], size[0])
    return size[0], size[1]


class ExportedPredictor:
    """Predicts images of mixed sizes one after the other, as `Predictor` does in batches."""

    def __init__(self, config: ConfigDict, model: ISNet, run: formats.Run, size: tuple[int, int] | None, where: str):
        """size: (height, width) of the only input that `run` takes, or None; where: what runs it, in words."""
        self.where = where
        self._run, self._size, self._test, self._model = run, size, config.test, model
        use_one_opencv_thread()

    def __call__(
        self, sources: Sequence[Source], on_failure: Callable[[UserError], None], output: int = CLASSES
    ) -> Iterator[tuple[int, np.ndarray, Any]]:
        """As `Predictor.__call__`."""
        test = self._test
        sizes = [self._size or target_size(*source.size, test.resize, test.keep_ratio) for source in sources]
        for index, image, resized in read_ahead(sources, sizes, range(len(sources)), on_failure):
            yield index, image, self._predict(resized, image.shape[:2], output)

    def tiled(self, tiling: Tiling) -> TiledPredictor:
        """Predicts in tiles, each at its own size; raises UserError if the file takes only one size."""
        if self._size:
            raise UserError(
                "An exported network of one size cannot be given the tiles at the ends of images, which are smaller: "
                "export it with --size=dynamic, or give the checkpoint to predict --tile."
            )

        def score(cut: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
            return (self._scores(np.ascontiguousarray(tile))[0] for tile in cut)

        return TiledPredictor(tiling, score, self._model.output_stride, self.where)

    def _predict(self, resized: np.ndarray, shape: tuple[int, int], output: int) -> Any:
        """What `output` says, at the resolution `shape`, for an image at the network's resolution."""
        score_map = self._scores(resized)
        map_size = score_map.shape[1:3]
        height, width = (-(-n // ROUNDING) * ROUNDING for n in shape)
        rows, columns = (-n % ROUNDING for n in map_size)
        padded = np.pad(score_map, ((0, 0), (0, rows), (0, columns), (0, 0)))
        sizes = (np.array([size], np.int32) for size in (map_size, shape))
        result = reduce_logits(padded, *sizes, (height, width), output)
        return jax.tree.map(lambda x: np.asarray(x)[0, : shape[0], : shape[1]], result)

    def _scores(self, image: np.ndarray) -> np.ndarray:
        """The score map (1, h, w, K) of an image at the network's resolution."""
        [score_map] = self._run(image[None], [SCORE_MAP])
        expected = 1, *(-(-n // self._model.output_stride) for n in image.shape[:2]), self._model.num_classes
        if score_map.shape != expected or score_map.dtype != np.float32:
            raise UserError(
                f"The exported network gives scores of {score_map.dtype} {score_map.shape}, but its config says "
                f"float32 {expected}: export the checkpoint again."
            )
        return score_map
