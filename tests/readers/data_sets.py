"""Readers of data sets: MATLAB labels, the journal of a survey, prepared data."""

import io
import zlib
from pathlib import Path
from random import Random

import mutations
import numpy as np

from readers.base import Reader, Refused
from readers.samples import noise


class Matrices(Reader):
    """MATLAB files, which hold the labels of COCO-Stuff 10k."""

    def make_seeds(self) -> list[bytes]:
        import scipy.io

        labels = np.arange(30).reshape(5, 6).astype(np.uint8)
        content = {"S": labels, "names": np.array(["a"], object), "captions": "abc"}
        seeds = []
        for options in {}, {"do_compression": True}, {"format": "4"}:
            stream = io.BytesIO()
            scipy.io.savemat(stream, {"S": labels} if "format" in options else content, **options)
            seeds.append(stream.getvalue())
        return seeds

    def mutate(self, data: bytes, rng: Random, seeds: list[bytes]) -> bytes:
        if data[128:132] == b"\x0f\0\0\0" and rng.random() < 0.7:  # compressed: damage the content
            content = zlib.compress(mutations.mutate_bytes(zlib.decompress(data[136:]), rng))
            return data[:132] + len(content).to_bytes(4, "little") + content
        return mutations.mutate_bytes(data, rng, seeds)

    def read(self, content: bytes) -> None:
        from isnet_jax.datasets import mat

        matrix = mat.read_mat(self.write("label.mat", content), "S")
        assert matrix.ndim == 2 and matrix.dtype.kind in "iu"


class Journals(Reader):
    """The journal from which a killed survey of a data set resumes."""

    def make_seeds(self) -> list[bytes]:
        from isnet_jax.datasets import image_files, journal, problems

        label = image_files.encode_label(np.zeros((3, 4), np.uint8))
        writer = journal.Journal(self.folder)
        for i in range(3):
            finding = journal.Finding(
                warnings=(problems.FileProblem("a.png", "is careful.", "careful"),) * i,
                colors=((0x102030, 2),) * i,
                image=b"x" * i,
                label=label,
                size=(3, 4),
                counts=np.array([1, 2, 9]),
                num_bytes=len(label) + i,
            )
            writer.add(f"stamp {i}", finding)
        writer.flush()
        (self.path,) = self.folder.glob("*.npz")
        return [self.path.read_bytes()]

    def mutate(self, data: bytes, rng: Random, seeds: list[bytes]) -> bytes:
        return mutations.mutate_zip(data, rng, seeds, mutations.mutate_npy)

    def read(self, content: bytes) -> None:
        from isnet_jax.datasets import journal

        self.path.write_bytes(content)
        findings = [journal.Journal(self.folder).get(f"stamp {i}") for i in range(3)]
        for finding in filter(None, findings):
            assert isinstance(finding.label, bytes) and finding.counts.ndim == 1 and min(finding.size) > 0
            assert all(isinstance(str(warning), str) for warning in finding.warnings)
            assert all(isinstance(number, int) for pair in finding.colors for number in pair)
        if None in findings:
            raise Refused("damaged")


class Prepared(Reader):
    """A prepared data set, {path: content}: its records and the files stored beside them."""

    def make_seeds(self) -> list[dict[Path, bytes]]:
        from isnet_jax import datasets

        for kind in "images", "labels":
            (self.folder / "tree" / kind).mkdir(parents=True)
        for i in range(3):
            noise(24, 32, i).save(self.folder / f"tree/images/{i}.jpg")
            noise(24, 32, i).convert("L").point(lambda x: x // 100).save(self.folder / f"tree/labels/{i}.png")
        self.description = {
            "name": "own",
            "classes": ("a", "b", "c"),
            "palette": (),
            "splits": {"val": ("images", "labels")},
        }
        builder = datasets.load("folder", self.folder / "data", self.folder / "tree", self.description)
        self.intact = {path: path.read_bytes() for path in sorted(Path(builder.data_path).iterdir())}
        return [self.intact]

    def mutant(self, rng: Random) -> dict[Path, bytes]:
        path = rng.choice([path for path in self.intact if path.name != "features.json"] * 4 + list(self.intact))
        mutate = mutations.mutate_json if path.suffix == ".json" else mutations.mutate_bytes
        return {**self.intact, path: mutate(self.intact[path], rng, [self.intact[path]])}

    def read(self, contents: dict[Path, bytes]) -> None:
        from isnet_jax import config, datasets
        from isnet_jax.input import pipeline, records

        for path, content in contents.items():
            path.write_bytes(content)
        records.RETRY_DELAYS = ()
        builder = datasets.load("folder", self.folder / "data", None, self.description)
        source = pipeline.open_split(builder, "val")
        examples = builder.info.metadata["examples"]["val"]
        assert len(source) == len(examples)
        sizes = pipeline.eval_sizes([size for _, *size in examples], config.default())
        assert (sizes > 0).all()
        for i in range(len(source)):
            record = source[i]
            with source.decoding(i):
                pipeline.augment.decode_image(record["image"])
