"""What an evaluation writes to its directory, saved so that a killed evaluation can be resumed; results.py reads it."""

import concurrent.futures
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array
from PIL import Image

from isnet_jax.errors import UserError
from isnet_jax.evaluation import protocols, published
from isnet_jax.evaluation.boundary import CONVENTION
from isnet_jax.evaluation.metrics import in_percent
from isnet_jax.evaluation.results import load
from isnet_jax.models.isnet import CONTEXT_MODULES
from isnet_jax.runtime import distributed, files
from isnet_jax.runtime.files import atomic_write_text
from isnet_jax.runtime.sharding import from_devices

if TYPE_CHECKING:  # imports TensorFlow
    from isnet_jax.input.pipeline import EvalBatch

MAX_NAME_BYTES = 200  # of a prediction's file, without suffix
SAVE_SECONDS = 20  # between saves: a kill loses no more work than this, and the batches in flight
RELEVANT = "backbone", "num_classes", "activation", "shortcut", "dtype"  # fields of config.model that affect results


class EvaluationRecord:
    """Collects the counts and predictions of N images and K classes.

    counts, boundary: int32 (N, 3, K), the hit, predicted and ground-truth pixels of each image, and those in the
    boundary bands; confusion: int64 (K, K), rows are ground truth; done: bool (N,). `results` is the content of
    results.json if the evaluation is already finished, else None.
    """

    def __init__(self, directory: str | Path, facts: Mapping[str, Any], stamp: Any, image_names: Sequence[str]):
        """Opens or starts a directory.

        facts: what results.json holds before there are scores; stamp: JSON-like, changes when the checkpoint or the
        data do; image_names: N strings. Raises UserError if the directory holds another evaluation.
        """
        self.directory, self._facts = Path(directory), facts
        self._identity = _identity(facts, stamp)
        files.require_inside(self.directory, self.directory / "predictions")
        self.names = np.array(image_names)
        self.files = np.array(_unique_filenames(image_names))
        if not all(map(files.is_plain_filename, self.files.tolist())):
            raise UserError(
                f"The data set {facts['dataset']} has image names that would put predictions outside of predictions/: "
                "prepare it again."
            )
        n, k = len(image_names), len(facts["names"])
        self.counts, self.boundary = np.zeros((n, 3, k), np.int32), np.zeros((n, 3, k), np.int32)
        self._sums = np.zeros(n, bool), np.zeros((k, k), np.int64)  # one tuple: an interrupt updates both or neither
        self.results: dict[str, Any] | None = None
        self._palette = np.array(facts["palette"], np.uint8)
        self._pool = concurrent.futures.ThreadPoolExecutor(2)
        self._writing: list[concurrent.futures.Future] = []
        self._last_save = time.monotonic()
        self._progress = self.directory / "progress.npz"
        self._resume()
        (self.directory / "predictions").mkdir(parents=True, exist_ok=True)

    @property
    def done(self) -> np.ndarray:
        return self._sums[0]

    @property
    def confusion(self) -> np.ndarray:
        return self._sums[1]

    def _resume(self) -> None:
        results_path = self.directory / "results.json"
        if results_path.exists():
            try:
                identity = files.read_json(results_path)["identity"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{results_path} is damaged or does not belong to an evaluation ({type(error).__name__}: {error}): "
                    "delete it to evaluate again, or choose another --output."
                ) from None
            self._require_same(identity, results_path)
            self.results = load(self.directory).record
        elif self._progress.exists():
            self._resume_progress()

    def _resume_progress(self) -> None:
        """Takes over progress.npz; ignores a damaged one, or one that counted otherwise, which loses only time."""
        try:
            identity, convention, done, confusion, counts, boundary = files.read_arrays(
                self._progress, "identity", "boundary_convention", "done", "confusion", "counts", "boundary"
            )
        except (OSError, ValueError):
            return
        self._require_same(str(identity), self._progress)
        saved = done, confusion, counts, boundary
        expected = self.done, self.confusion, self.counts, self.boundary
        if [(x.shape, x.dtype) for x in saved] != [(x.shape, x.dtype) for x in expected] or str(
            convention
        ) != CONVENTION:
            return
        predictions = [self.directory / "predictions" / f"{file}.png" for file in self.files[done]]
        if (confusion.sum(1) == counts[done, 2].sum(0)).all() and all(map(Path.exists, predictions)):
            self._sums, self.counts, self.boundary = (done, confusion), counts, boundary

    def _require_same(self, identity: Any, path: Path) -> None:
        if identity != self._identity:
            raise UserError(
                f"{path} is of another evaluation (another checkpoint, data set or test setting): choose "
                f"another --output, or delete {self.directory}."
            )

    def add(self, entry: "EvalBatch", batch: Mapping[str, np.ndarray], result: Mapping[str, Array]) -> None:
        """`on_batch` of `evaluation.loop.evaluate`: adds the counts, and writes predictions in the background."""
        is_image = entry.indices >= 0
        indices = entry.indices[is_image]
        self.counts[indices] = np.asarray(result["counts"])[is_image]
        self.boundary[indices] = np.asarray(result["boundary"])[is_image]
        confusion = self.confusion + np.asarray(result["confusion"], np.int64)
        predictions = from_devices(result["predictions"])
        for index, prediction, (height, width) in zip(batch["index"], predictions, batch["label_size"]):
            if index >= 0:
                self._writing.append(self._pool.submit(self._write, index, prediction[:height, :width]))
        done = self.done.copy()
        done[indices] = True
        self._sums = done, confusion
        if distributed.broadcast_from_first(time.monotonic() > self._last_save + SAVE_SECONDS):
            self.save()

    def _write(self, index: int, prediction: np.ndarray) -> None:
        path = self.directory / "predictions" / f"{self.files[index]}.png"
        image = Image.fromarray(prediction)
        image.putpalette(self._palette.tobytes())
        with files.atomic_write(path, jax.process_index()) as partial:  # two processes may hold the same image
            image.save(partial, "PNG", compress_level=1)

    def _wait(self) -> None:
        """Returns once the predictions of all processes are written."""
        for writing in self._writing:
            writing.result()
        self._writing = []
        distributed.barrier("predictions")

    def save(self) -> None:
        """Saves the progress; every image recorded as done has its prediction on disk."""
        self._wait()
        if distributed.is_first():
            files.write_arrays(
                self._progress,
                identity=np.array(self._identity),
                boundary_convention=np.array(CONVENTION),
                done=self.done,
                counts=self.counts,
                boundary=self.boundary,
                confusion=self.confusion,
            )
        self._last_save = time.monotonic()

    def finish(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """Writes images.npz and results.json, and returns the content of results.json; `run`: facts about the run."""
        self._wait()
        results = self._results(run)
        if distributed.is_first():
            files.write_arrays(
                self.directory / "images.npz",
                name=self.names,
                file=self.files,
                counts=self.counts,
                boundary=self.boundary,
            )
            atomic_write_text(self.directory / "results.json", json.dumps(results, indent=1) + "\n")
            self._progress.unlink(missing_ok=True)
        return results

    def _results(self, run: Mapping[str, Any]) -> dict[str, Any]:
        facts, names = self._facts, self._facts["names"]
        boundary = self.boundary.sum(0, dtype=np.int64)
        known = published.find(facts["dataset"], facts["config"]["model"], facts["split"], facts["setting"])
        return {
            **facts,
            "identity": self._identity,
            "confusion": self.confusion.tolist(),
            "boundary": boundary.tolist(),
            "protocols": {
                protocol: in_percent(scores, names) for protocol, scores in protocols.all_scores(self.confusion).items()
            },
            "boundary_iou": {"convention": CONVENTION, **in_percent(protocols.boundary_scores(boundary), names)},
            "published": known and {"miou": known.miou, "source": known.source},
            "run": run,
        }


def _identity(facts: Mapping[str, Any], stamp: Any) -> str:
    """Equal for two starts of the same evaluation: same checkpoint, data, test setting and network."""
    model = facts["config"]["model"]
    network = [model[name] for name in RELEVANT] + [name for name in CONTEXT_MODULES if not model.get(name, True)]
    return json.dumps([stamp, facts["dataset"], facts["split"], facts["setting"], facts["names"], network])


def _unique_filenames(image_names: Sequence[str]) -> list[str]:
    """Names of the prediction files: those of the images, numbered where they repeat, and shortened if long."""
    long = {i for i, name in enumerate(image_names) if len(name.encode()) > MAX_NAME_BYTES}
    image_names = [
        f"{name.encode()[:MAX_NAME_BYTES].decode(errors='ignore')}-{i}" if i in long else name
        for i, name in enumerate(image_names)
    ]
    repeated = Counter(image_names)
    names = [name if repeated[name] == 1 else f"{name}-{i}" for i, name in enumerate(image_names)]
    if len(set(names)) < len(names):  # numbering made a new repetition, as for a, a and a-0
        names = [f"{name}-{i}" for i, name in enumerate(image_names)]
    return names
