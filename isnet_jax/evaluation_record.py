"""What an evaluation leaves in its directory, written so that a killed one goes on. results.py reads it again."""

import concurrent.futures
import json
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from isnet_jax import distributed, protocols, published, stored
from isnet_jax.checkpoints import write_whole
from isnet_jax.errors import UserError
from isnet_jax.results import load
from isnet_jax.sharding import from_devices

SAVE_SECONDS = 20  # no more work than this is lost in a kill, and the batches that wait
RELEVANT = "backbone", "num_classes", "activation", "shortcut", "dtype"  # fields of config.model that move a result


class EvaluationRecord:
    """Collects counts and predictions of N images and K classes.

    counts, boundary: int32 (N, 3, K), of each image hits, predicted and true pixels; confusion: int64 (K, K), rows
    truth; done: bool (N,). `results` is what results.json holds if the evaluation is finished already, else None.
    """

    def __init__(self, directory, facts, stamp, image_names):
        """Opens or starts a directory.

        facts: what results.json says before there are scores; stamp: JSON-like, what changes when the checkpoint or
        the data do; image_names: N strings. Raises UserError if the directory holds another evaluation.
        """
        self.directory, self._facts = Path(directory), facts
        self._identity = json.dumps(
            [
                stamp,
                facts["dataset"],
                facts["split"],
                facts["setting"],
                facts["names"],
                [facts["config"]["model"][name] for name in RELEVANT],
            ]
        )
        stored.require_inside(self.directory, self.directory / "predictions")
        repeated = Counter(image_names)
        self.names = np.array(image_names)
        self.files = np.array([name if repeated[name] == 1 else f"{name}-{i}" for i, name in enumerate(image_names)])
        if len(set(self.files.tolist())) < len(self.files):  # as those of a, a and a-0
            self.files = np.array([f"{name}-{i}" for i, name in enumerate(image_names)])
        if not all(map(stored.is_name, self.files.tolist())):
            raise UserError(
                f"The data set {facts['dataset']} names images so that their predictions would be written "
                "outside of predictions/: prepare it anew."
            )
        n, k = len(image_names), len(facts["names"])
        self.counts, self.boundary = np.zeros((n, 3, k), np.int32), np.zeros((n, 3, k), np.int32)
        self._sums = np.zeros(n, bool), np.zeros((k, k), np.int64)  # together, so that an interrupt finds both or none
        self.results = None
        self._palette = np.array(facts["palette"], np.uint8)
        self._writing, self._pool = [], concurrent.futures.ThreadPoolExecutor(2)
        self._saved = time.monotonic()
        self._progress = self.directory / "progress.npz"
        self._resume()
        (self.directory / "predictions").mkdir(parents=True, exist_ok=True)

    @property
    def done(self):
        return self._sums[0]

    @property
    def confusion(self):
        return self._sums[1]

    def _resume(self):
        finished = self.directory / "results.json"
        if finished.exists():
            try:
                results = stored.read_json(finished)
                identity = results["identity"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{finished} is damaged, or not of an evaluation ({type(error).__name__}: {error}): "
                    "delete it to evaluate anew, or choose another --output."
                ) from None
            self._require_same(identity, finished)
            self.results = load(self.directory).record
        elif self._progress.exists():
            try:
                identity, done, confusion, counts, boundary = stored.read_arrays(
                    self._progress, "identity", "done", "confusion", "counts", "boundary"
                )
            except (OSError, ValueError):  # damaged in some way; nothing is lost but time
                return
            self._require_same(str(identity), self._progress)
            ours, theirs = (
                [(x.shape, x.dtype) for x in arrays]
                for arrays in (
                    (self.done, self.confusion, self.counts, self.boundary),
                    (done, confusion, counts, boundary),
                )
            )
            if ours != theirs:
                return
            files = [self.directory / "predictions" / f"{file}.png" for file in self.files[done]]
            if (confusion.sum(1) == counts[done, 2].sum(0)).all() and all(map(Path.exists, files)):
                self._sums, self.counts, self.boundary = (done, confusion), counts, boundary

    def _require_same(self, identity, path):
        if identity != self._identity:
            raise UserError(
                f"{path} is of another evaluation (another checkpoint, data set or test setting): choose "
                f"another --output, or delete {self.directory}."
            )

    def add(self, entry, batch, result):
        """`on_batch` of `evaluation.evaluate`: takes the counts, and writes the predictions in the background."""
        real = entry.indices >= 0
        which = entry.indices[real]
        self.counts[which] = np.asarray(result["counts"])[real]
        self.boundary[which] = np.asarray(result["boundary"])[real]
        confusion = self.confusion + np.asarray(result["confusion"], np.int64)
        predictions = from_devices(result["predictions"])
        for index, prediction, (height, width) in zip(batch["index"], predictions, batch["label_size"]):
            if index >= 0:
                self._writing.append(self._pool.submit(self._write, index, prediction[:height, :width]))
        done = self.done.copy()
        done[which] = True
        self._sums = done, confusion
        if distributed.agree(time.monotonic() > self._saved + SAVE_SECONDS):
            self.save()

    def _write(self, index, classes):
        path = self.directory / "predictions" / f"{self.files[index]}.png"
        image = Image.fromarray(classes)
        image.putpalette(self._palette.tobytes())
        with stored.replacing(path, jax.process_index()) as partial:  # two processes may hold the image
            image.save(partial, "PNG", compress_level=1)

    def _wait(self):
        for writing in self._writing:
            writing.result()
        self._writing = []
        distributed.wait_for_all("predictions")

    def save(self):
        """Writes down how far the evaluation has come; what it says is done has its prediction on disk."""
        self._wait()
        if distributed.is_first():
            stored.write_arrays(
                self._progress,
                identity=np.array(self._identity),
                done=self.done,
                counts=self.counts,
                boundary=self.boundary,
                confusion=self.confusion,
            )
        self._saved = time.monotonic()

    def finish(self, run):
        """Writes images.npz and results.json; `run`: facts of the run. Returns what results.json holds."""
        self._wait()
        facts, config = self._facts, self._facts["config"]
        boundary = self.boundary.sum(0, dtype=np.int64)
        found = published.find(facts["dataset"], config["model"]["backbone"], facts["split"], facts["setting"])
        results = {
            **facts,
            "identity": self._identity,
            "confusion": self.confusion.tolist(),
            "boundary": boundary.tolist(),
            "protocols": {
                name: in_percent(scores, facts["names"])
                for name, scores in protocols.all_scores(self.confusion).items()
            },
            "boundary_iou": in_percent(protocols.boundary_scores(boundary), facts["names"]),
            "published": found and {"miou": found.miou, "source": found.source},
            "run": run,
        }
        if distributed.is_first():
            stored.write_arrays(
                self.directory / "images.npz",
                name=self.names,
                file=self.files,
                index=np.arange(len(self.names)),
                counts=self.counts,
                boundary=self.boundary,
            )
            write_whole(self.directory / "results.json", json.dumps(results, indent=1) + "\n")
            self._progress.unlink(missing_ok=True)
        return results


def in_percent(scores, names):
    """Scores for JSON: percentages, null where undefined; arrays (K,) by class name."""

    def percent(x):
        return round(100 * float(x), 4) if np.isfinite(x) else None

    return {
        key: {name: percent(x) for name, x in zip(names, value)} if np.ndim(value) else percent(value)
        for key, value in scores.items()
    }
