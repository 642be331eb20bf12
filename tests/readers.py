"""Every reader of what others may have written, each with sound files to start from: what test_fuzz.py damages."""

import functools
import json
import sys
import types
from pathlib import Path

import mutations
import numpy as np
from image_readers import DataImages, DataLabels, Matrices, Photographs, Reader, Records, Refused, noise  # noqa: F401
from PIL import Image

from isnet_jax.errors import UserError

DATA = Path(__file__).parent / "data"


class RecordedConfigs(Reader):
    """config.json of a workdir."""

    change = staticmethod(mutations.text)

    def make_seeds(self):
        from isnet_jax import config

        c = config.default("resnet18")
        c.model.num_classes, c.data.name = 5, "folder"
        c.data.folder = dict(name="own", classes=("a", "b"), palette=((1, 2, 3),) * 2, splits={"val": ("x", "y")})
        c.augment.flip_pairs, c.test.tta.mode = ((1, 2),), "slide"
        c.test.tta.crop_size = c.test.tta.stride = (32, 32)
        return [json.dumps(c.to_dict()).encode()]

    def read(self, content):
        from isnet_jax import predict
        from isnet_jax.models import create_model

        self.put("config.json", content)
        found = predict.recorded_config(self.folder)
        assert create_model(found.model).num_classes == found.model.num_classes
        assert len(predict.classes(found)[0]) == found.model.num_classes


class CommandLines(Reader):
    """Fields set on the command line, --config.FIELD=VALUE."""

    runs = ("config.py",)

    def make_seeds(self):
        from isnet_jax import config

        self.put(
            "config.py",
            b"from isnet_jax import config\n\ndef get_config(backbone='resnet18'):\n"
            b"    c = config.default(backbone)\n    c.model.num_classes = 5\n    return c\n",
        )
        flat, todo = {}, [("config", config.default().to_dict())]
        while todo:
            prefix, tree = todo.pop()
            for name, value in tree.items():
                if isinstance(value, dict) and value:
                    todo.append((f"{prefix}.{name}", value))
                else:
                    flat[f"{prefix}.{name}"] = value
        return sorted(flat.items(), key=str)

    def sound(self):
        return [["--config.seed=3"]]

    def mutant(self, rng):
        words = []
        for _ in range(rng.choice([1, 1, 2, 3])):
            name, value = rng.choice(self.seeds)
            value = rng.choice(
                [
                    str(value),
                    *map(str, mutations.VALUES),
                    "(1, 2)",
                    "((1, 2), (3, [4]))",
                    "(" * 90,
                    "-" * 900 + "1",
                    "(1e999, 'a')",
                    "(0.5, 2.0",
                    "None",
                    "9" * 5000,
                    "{1: 2}",
                    "('a', 'b')",
                    "(32, 32.5)",
                    "(True, True)",
                    "(1,)",
                    "(3, 2, 1)",
                    "__import__('os').system('ls')",
                ]
            )
            word = f"--{name}={value}".replace("\ud800", "\udc80")  # what a command line can hold
            if rng.random() < 0.3:
                word = mutations.damaged(
                    word.encode(errors="surrogateescape"),
                    rng,
                    [b"config.", b"..", b"=", b"--no"],
                    [*b"().,='-\0\n[]{}0"],
                ).decode(errors="surrogateescape")
            words.append(word)
        return words

    def read(self, words):
        from absl import flags
        from ml_collections import config_flags

        from isnet_jax import command, config

        fresh, there, typed = flags.FlagValues(), command.flags, sys.argv
        argv = sys.argv = ["main", f"--config={self.folder / 'config.py'}", *words]
        try:
            command.flags = types.SimpleNamespace(**{**vars(flags), "FLAGS": fresh})
            found = config_flags.DEFINE_config_file("config", flag_values=fresh)
            command._check_config(argv)
            command._parse(argv, 0)
            config.check(found.value)
        except flags.Error as error:
            raise Refused(" ".join(command._paragraph(error).split())[:1000]) from None
        finally:
            command.flags, sys.argv = there, typed


class Evaluations(Reader):
    """results.json, images.npz and predictions, as isnet_jax.compare and report read them."""

    FILES = (
        ("r/results.json", mutations.text),
        ("r/images.npz", functools.partial(mutations.archive, change=mutations.npy)),
        ("r/predictions/b.png", mutations.image),
        ("w/metrics.jsonl", mutations.damaged),
    )

    def make_seeds(self):
        from isnet_jax import stored

        rng, counts = np.random.default_rng(0), []
        (self.folder / "r/predictions").mkdir(parents=True)
        (self.folder / "w").mkdir()
        confusion = np.zeros((3, 3), np.int64)
        for name in "ab":
            truth, predicted = rng.integers(0, 3, (2, 7, 9))
            matrix = np.bincount((3 * truth + predicted).ravel(), minlength=9).reshape(3, 3)
            confusion += matrix
            counts.append([np.diag(matrix), matrix.sum(0), matrix.sum(1)])
            picture = Image.fromarray(predicted.astype(np.uint8)).convert("L")
            picture.putpalette(bytes(range(9)))
            picture.save(self.folder / f"r/predictions/{name}.png")
        stored.write_arrays(
            self.folder / "r/images.npz",
            name=np.array(["x/a", "b"]),
            file=np.array(["a", "b"]),
            counts=np.int32(counts),
            boundary=np.int32(counts) // 2,
        )
        record = {
            "dataset": "ade20k",
            "split": "val",
            "images": 2,
            "checkpoint": str(self.folder / "w"),
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
                    "data_dir": str(self.folder / "nowhere"),
                    "folder": {"name": "own", "classes": ["a", "b", "c"], "palette": [], "splits": {"val": ["x", "y"]}},
                },
            },
            "names": ["a", "b", "c"],
            "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
            "confusion": confusion.tolist(),
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
        self.put("r/results.json", json.dumps(record).encode())
        rows = [{"step": step, "loss/total": 1 / step, "weights/miou": 0.1 * step} for step in range(1, 5)]
        self.put("w/metrics.jsonl", "\n".join(map(json.dumps, rows)).encode())
        self.whole = {name: (self.folder / name).read_bytes() for name, _ in self.FILES}
        self.number = 0
        return [self.whole]

    def mutant(self, rng):
        contents = dict(self.whole)
        for name, change in rng.sample(self.FILES, rng.choice([1, 1, 2])):
            contents[name] = change(contents[name], rng, [contents[name]])
        return contents

    def read(self, contents):
        from isnet_jax import compare, report, results

        for name, content in contents.items():
            self.put(name, content)
        found = results.load(self.folder / "r")
        results.align(found, found)
        try:
            found.prediction(1)
        except UserError as error:  # only this image is lacking
            assert "cannot be read" in str(error) or "holds class" in str(error)
        self.number += 1
        if self.number % self.every == 1:  # it takes a while
            page = report.page(found)
            assert page.isascii() and "<script" not in page and "<img src=x" not in page
            compare.score(found)

    every = 10


class Journals(Reader):
    """What a survey of a data set left to go on from."""

    def make_seeds(self):
        from isnet_jax.datasets import files, journal

        label = files.encode_label(np.zeros((3, 4), np.uint8))
        book = journal.Journal(self.folder)
        for i in range(3):
            book.add(
                f"stamp {i}",
                journal.Finding(
                    warnings=("careful",) * i,
                    image=b"x" * i,
                    label=label,
                    size=(3, 4),
                    counts=np.array([1, 2, 9]),
                    num_bytes=len(label) + i,
                ),
            )
        book.flush()
        (self.path,) = self.folder.glob("*.npz")
        return [self.path.read_bytes()]

    @staticmethod
    def change(data, rng, seeds):
        return mutations.archive(data, rng, seeds, mutations.npy)

    def read(self, content):
        from isnet_jax.datasets import journal

        self.path.write_bytes(content)
        found = [journal.Journal(self.folder).get(f"stamp {i}") for i in range(3)]
        for finding in filter(None, found):
            assert isinstance(finding.label, bytes) and finding.counts.ndim == 1 and min(finding.size) > 0
            assert all(isinstance(text, str) for text in finding.warnings)
        if None in found:
            raise Refused("damaged")


class Progress(Reader):
    """What a killed evaluation left to go on from, or a finished one."""

    def make_seeds(self):
        from isnet_jax.evaluation_record import EvaluationRecord

        self.facts = {
            "dataset": "d",
            "split": "val",
            "setting": {},
            "names": ["a", "b"],
            "palette": [[0, 0, 0]] * 2,
            "config": {"model": dict.fromkeys(("backbone", "num_classes", "activation", "shortcut", "dtype"), "x")},
        }
        record = EvaluationRecord(self.folder / "e", self.facts, "stamp", ["a", "b", "b"])
        record._sums = np.array([True, False, False]), np.array([[3, 1], [0, 2]])
        record.counts[0], record.boundary[0] = [[3, 2], [3, 3], [4, 2]], 1
        record._write(0, np.zeros((2, 3), np.uint8))
        record.save()
        self.identity = record._identity
        return [(self.folder / "e/progress.npz").read_bytes()]

    def mutant(self, rng):
        if rng.random() < 0.2:
            return mutations.text(json.dumps({"identity": self.identity, "a": [1]}).encode(), rng)
        return mutations.archive(self.seeds[0], rng, self.seeds, mutations.npy)

    def read(self, content):
        from isnet_jax.evaluation_record import EvaluationRecord

        name = "results.json" if content[:1] in b"{[" else "progress.npz"
        self.put(f"e/{name}", content)
        try:
            record = EvaluationRecord(self.folder / "e", self.facts, "stamp", ["a", "b", "b"])
        finally:
            (self.folder / "e" / name).unlink()
        assert record.done.shape == (3,) and record.done.dtype == bool and record.confusion.shape == (2, 2)
        assert record.counts.shape == record.boundary.shape == (3, 3, 2)
        assert record.results is None or isinstance(record.results, dict)
        if record.results is None and not record.done.any():
            raise Refused("nothing to go on from")
        record.counts[1] = 1


class Prepared(Reader):
    """A prepared data set: what is stored beside the records, and the records."""

    def make_seeds(self):
        from isnet_jax import datasets

        for kind in "images", "labels":
            (self.folder / "tree" / kind).mkdir(parents=True)
        for i in range(3):
            noise(24, 32, i).save(self.folder / f"tree/images/{i}.jpg")
            noise(24, 32, i).convert("L").point(lambda x: x // 100).save(self.folder / f"tree/labels/{i}.png")
        self.described = {
            "name": "own",
            "classes": ("a", "b", "c"),
            "palette": (),
            "splits": {"val": ("images", "labels")},
        }
        builder = datasets.load("folder", self.folder / "data", self.folder / "tree", self.described)
        self.whole = {path: Path(path).read_bytes() for path in sorted(Path(builder.data_path).iterdir())}
        return [self.whole]

    def mutant(self, rng):
        path = rng.choice([path for path in self.whole if path.name != "features.json"] * 4 + list(self.whole))
        change = mutations.text if path.suffix == ".json" else mutations.damaged
        return {**self.whole, path: change(self.whole[path], rng, [self.whole[path]])}

    def read(self, contents):
        from isnet_jax import config, datasets, input_pipeline, records

        for path, content in contents.items():
            path.write_bytes(content)
        records.PAUSES = ()
        builder = datasets.load("folder", self.folder / "data", None, self.described)
        source = input_pipeline.open_split(builder, "val")
        examples = builder.info.metadata["examples"]["val"]
        assert len(source) == len(examples)
        sizes = input_pipeline.eval_sizes([size for _, *size in examples], config.default())
        assert (sizes > 0).all()
        for i in range(len(source)):
            record = source[i]
            with source.decoding(i):
                input_pipeline.augment.decode_image(record["image"])


class Checkpoints(Reader):
    """The files of an Orbax checkpoint, pickles among them."""

    def make_seeds(self):
        from isnet_jax import checkpoints, config

        c = config.default("resnet18")
        c.model.num_classes = 5
        rng = np.random.default_rng(0)
        self.variables = {
            "params": {"a": {"kernel": rng.normal(size=(3, 4)).astype(np.float32)}},
            "batch_stats": {"b": np.arange(5)},
        }
        checkpoints.save_variables(self.folder / "w", c, self.variables, "x.pth")
        self.whole = {path: path.read_bytes() for path in sorted((self.folder / "w").rglob("*")) if path.is_file()}
        return [self.whole]

    def mutant(self, rng):
        contents = dict(self.whole)
        for path in rng.sample(list(contents), rng.choice([1, 1, 2])):
            change = mutations.text if contents[path][:1] == b"{" else mutations.damaged
            contents[path] = change(contents[path], rng, list(contents.values()))
        return contents

    def read(self, contents):
        import jax

        from isnet_jax import checkpoints

        for path, content in contents.items():
            path.write_bytes(content)
        template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.variables)
        found = checkpoints.load_variables(self.folder / "w", template)
        jax.tree.map(np.testing.assert_array_equal, found, self.variables)  # the checksums see to it


class PthZip(Reader):
    """Checkpoints of PyTorch 1.6 and later: damaged anywhere, or in the pickle with the right checksum."""

    SEED = "torch_zip.pth"
    OPCODES = [0, 1, 0x7F, 0x80, 0xFF, *b"()]}.0NtReubqhQcjKMJX\x85\x86\x87\x8a"]

    def make_seeds(self):
        return [(DATA / self.SEED).read_bytes()]

    def change(self, data, rng, seeds):
        return mutations.archive(data, rng, seeds, self.change_member)

    def change_member(self, content, rng):
        return mutations.damaged(content, rng, [content], self.OPCODES)

    def read(self, content):
        from isnet_jax import pth

        path = self.put("weights.pth", content)
        pth.load(path)
        assert all(isinstance(x, np.ndarray) for x in pth.state_dict(path).values())


class PthLegacy(PthZip):
    """Checkpoints of PyTorch before 1.6, half of them damaged in their pickles alone."""

    SEED = "torch_legacy.pth"

    def change(self, data, rng, seeds):
        start = data.index(b"\x80\x02", 40)
        if rng.random() < 0.5:
            return data[:start] + self.change_member(data[start : start + 1500], rng) + data[start + 1500 :]
        return self.change_member(data, rng)


READERS = {
    name: kind
    for name, kind in vars(sys.modules[__name__]).items()
    if isinstance(kind, type) and issubclass(kind, Reader) and kind is not Reader
}
