"""Readers of what an evaluation writes."""

import functools
import json
from random import Random
from typing import Any

import mutations
import numpy as np
from PIL import Image

from isnet_jax.errors import UserError
from readers.base import Reader, Refused


def example_results(folder: str, data_dir: str, confusion: np.ndarray) -> dict[str, Any]:
    """results.json of an evaluation of three classes, whose checkpoint is in `folder`."""
    return {
        "dataset": "ade20k",
        "split": "val",
        "images": 2,
        "checkpoint": folder,
        "step": 7,
        "setting": {
            "name": "single",
            "mode": "slide",
            "crop_size": [64, 96],
            "flip": True,
            "scales": [0.75, 1.0],
            "resize": [2048, 512],
            "keep_ratio": True,
        },
        "config": {
            "model": {"backbone": "resnet50", "num_classes": 3},
            "data": {
                "name": "folder",
                "data_dir": data_dir,
                "folder": {"name": "own", "classes": ["a", "b", "c"], "palette": [], "splits": {"val": ["x", "y"]}},
            },
        },
        "names": ["a", "b", "c"],
        "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        "confusion": confusion.tolist(),
        "boundary_iou": {"convention": "ignored pixels are nobody's neighbours", "miou": 20.5},
        "published": {"miou": 44.2, "source": "https://example.org"},
        "run": {
            "devices": "cpu",
            "num_devices": 1,
            "seconds": 4.5,
            "versions": {"jax": "1"},
            "images_per_second": 3.5,
            "padding_overhead": 0.1,
            "date": "2026",
        },
    }


class Evaluations(Reader):
    """results.json, images.npz, predictions and metrics, {name: content}, as isnet_jax.compare and report read them."""

    FILES = (
        ("r/results.json", mutations.mutate_json),
        ("r/images.npz", functools.partial(mutations.mutate_zip, mutate_content=mutations.mutate_npy)),
        ("r/predictions/b.png", mutations.mutate_image),
        ("w/metrics.jsonl", mutations.mutate_bytes),
    )
    report_interval = 10  # reads per report, which is slow to make

    def make_seeds(self) -> list[dict[str, bytes]]:
        from isnet_jax.runtime import files

        rng, counts = np.random.default_rng(0), []
        (self.folder / "r/predictions").mkdir(parents=True)
        (self.folder / "w").mkdir()
        confusion = np.zeros((3, 3), np.int64)
        for name in "ab":
            ground_truth, predicted = rng.integers(0, 3, (2, 7, 9))
            matrix = np.bincount((3 * ground_truth + predicted).ravel(), minlength=9).reshape(3, 3)
            confusion += matrix
            counts.append([np.diag(matrix), matrix.sum(0), matrix.sum(1)])
            image = Image.fromarray(predicted.astype(np.uint8)).convert("L")
            image.putpalette(bytes(range(9)))
            image.save(self.folder / f"r/predictions/{name}.png")
        files.write_arrays(
            self.folder / "r/images.npz",
            name=np.array(["x/a", "b"]),
            file=np.array(["a", "b"]),
            counts=np.int32(counts),
            boundary=np.int32(counts) // 2,
        )
        results = example_results(str(self.folder / "w"), str(self.folder / "nowhere"), confusion)
        self.write("r/results.json", json.dumps(results).encode())
        rows = [{"step": step, "loss/total": 1 / step, "weights/miou": 0.1 * step} for step in range(1, 5)]
        self.write("w/metrics.jsonl", "\n".join(map(json.dumps, rows)).encode())
        self.intact = {name: (self.folder / name).read_bytes() for name, _ in self.FILES}
        self.num_reads = 0
        return [self.intact]

    def mutant(self, rng: Random) -> dict[str, bytes]:
        contents = dict(self.intact)
        for name, mutate in rng.sample(self.FILES, rng.choice([1, 1, 2])):
            contents[name] = mutate(contents[name], rng, [contents[name]])
        return contents

    def read(self, contents: dict[str, bytes]) -> None:
        from isnet_jax.evaluation import comparison, results
        from isnet_jax.evaluation.report.render import render

        for name, content in contents.items():
            self.write(name, content)
        loaded = results.load(self.folder / "r")
        results.align(loaded, loaded)
        try:
            loaded.prediction(1)
        except UserError as error:  # only this image is missing
            assert "cannot be read" in str(error) or "holds class" in str(error)
        is_report_due = self.num_reads % self.report_interval == 0
        self.num_reads += 1
        if is_report_due:
            page = render(loaded)
            assert page.isascii() and page.count("<script") == 1 and "<img src=x" not in page
            comparison.score(loaded)


class Cards(Evaluations):
    """What a model card says: of a run, of its evaluation and its last scores; and the card that lies there."""

    FILES = (
        ("config.json", mutations.mutate_json),
        ("r/results.json", mutations.mutate_json),
        ("r/images.npz", functools.partial(mutations.mutate_zip, mutate_content=mutations.mutate_npy)),
        ("results.json", mutations.mutate_json),
        ("README.md", mutations.mutate_bytes),
    )
    STEP = 7

    def make_seeds(self) -> list[dict[str, bytes]]:
        from isnet_jax import config

        c = config.default("resnet50")
        c.model.num_classes, c.data.name, c.train.pretrained = 3, "ade20k", "/a/b.pth"
        (self.folder / "checkpoints" / str(self.STEP)).mkdir(parents=True)
        self.write("config.json", json.dumps(c.to_dict() | {"train_examples": 5, "untrained_modules": ["a"]}).encode())
        scores = {"miou": 50.5, "mean_accuracy": None, "pixel_accuracy": 60}
        self.write("results.json", json.dumps({"step": self.STEP, "weights": scores}).encode())
        self.write("README.md", self.text().encode())
        return super().make_seeds()

    def text(self) -> str:
        """The card."""
        from isnet_jax.checkpoints import manager
        from isnet_jax.evaluation import card

        origin = card.Origin(str(self.folder), self.folder, card.recorded_step(self.folder))
        return card.render(manager.recorded_config(self.folder), {"params": {}}, origin, "load()")

    def read(self, contents: dict[str, bytes]) -> None:
        from isnet_jax.evaluation import card

        checkpoint = str(self.folder / "w").encode(), str(self.folder).encode()
        for name, content in contents.items():
            self.write(name, content.replace(*checkpoint) if name == "r/results.json" else content)
        text = self.text()
        lines = text.splitlines()
        assert "".join(lines).isprintable() and lines.count("---") == 2 and card.is_untouched(text)
        card.write(self.folder, text)
        assert (self.folder / "README.md").read_bytes() in (text.encode(), contents["README.md"])


class Progress(Reader):
    """What an evaluation resumes from: the progress.npz of a killed one, the results.json of a finished one."""

    NAMES = ["a", "b", "b"]

    def make_seeds(self) -> list[bytes]:
        self.facts = {
            "dataset": "d",
            "split": "val",
            "setting": {},
            "names": ["a", "b"],
            "palette": [[0, 0, 0]] * 2,
            "config": {"model": dict.fromkeys(("backbone", "num_classes", "activation", "shortcut", "dtype"), "x")},
        }
        record = self.open_record()
        record._sums = np.array([True, False, False]), np.array([[3, 1], [0, 2]])
        record.counts[0], record.boundary[0] = [[3, 2], [3, 3], [4, 2]], 1
        record._write(0, np.zeros((2, 3), np.uint8))
        record.save()
        self.identity = record._identity
        return [(self.folder / "e/progress.npz").read_bytes()]

    def open_record(self) -> Any:
        """The EvaluationRecord in the folder's directory e."""
        from isnet_jax.evaluation.record import EvaluationRecord

        return EvaluationRecord(self.folder / "e", self.facts, "stamp", self.NAMES)

    def mutant(self, rng: Random) -> bytes:
        if rng.random() < 0.2:
            return mutations.mutate_json(json.dumps({"identity": self.identity, "a": [1]}).encode(), rng)
        return mutations.mutate_zip(self.seeds[0], rng, self.seeds, mutations.mutate_npy)

    def read(self, content: bytes) -> None:
        name = "results.json" if content[:1] in b"{[" else "progress.npz"
        self.write(f"e/{name}", content)
        try:
            record = self.open_record()
        finally:
            (self.folder / "e" / name).unlink()
        assert record.done.shape == (3,) and record.done.dtype == bool and record.confusion.shape == (2, 2)
        assert record.counts.shape == record.boundary.shape == (3, 3, 2)
        assert record.results is None or isinstance(record.results, dict)
        if record.results is None and not record.done.any():
            raise Refused("nothing to resume from")
        record.counts[1] = 1  # the arrays are writable
