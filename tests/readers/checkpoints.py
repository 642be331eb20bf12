"""Readers of checkpoints, this project's, PyTorch's and those of safetensors."""

import argparse
import json
import struct
from pathlib import Path, PurePosixPath
from random import Random

import mutations
import numpy as np
from paths import TESTS

from readers.base import Reader


class Checkpoints(Reader):
    """All files of an Orbax checkpoint, {path: content}."""

    def make_seeds(self) -> list[dict[Path, bytes]]:
        from isnet_jax import config
        from isnet_jax.checkpoints.manager import save_variables

        c = config.default("resnet18")
        c.model.num_classes = 5
        rng = np.random.default_rng(0)
        self.variables = {
            "params": {"a": {"kernel": rng.normal(size=(3, 4)).astype(np.float32)}},
            "batch_stats": {"b": np.arange(5)},
        }
        save_variables(self.folder / "w", c, self.variables, "x.pth")
        self.intact = {path: path.read_bytes() for path in sorted((self.folder / "w").rglob("*")) if path.is_file()}
        return [self.intact]

    def mutant(self, rng: Random) -> dict[Path, bytes]:
        contents = dict(self.intact)
        for path in rng.sample(list(contents), rng.choice([1, 1, 2])):
            mutate = mutations.mutate_json if contents[path][:1] == b"{" else mutations.mutate_bytes
            contents[path] = mutate(contents[path], rng, list(contents.values()))
        return contents

    def read(self, contents: dict[Path, bytes]) -> None:
        import jax

        from isnet_jax.checkpoints.manager import load_variables

        for path, content in contents.items():
            path.write_bytes(content)
        template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.variables)
        loaded = load_variables(self.folder / "w", template)
        jax.tree.map(np.testing.assert_array_equal, loaded, self.variables)  # ensured by the checksums


class PthZip(Reader):
    """Checkpoints of PyTorch 1.6 and later: damaged anywhere, or in the pickle, with a valid CRC."""

    SEED, IS_ZIP = "torch_zip.pth", True
    OPCODES = [0, 1, 0x7F, 0x80, 0xFF, *b"()]}.0NtReubqhQcjKMJX\x85\x86\x87\x8a"]

    def make_seeds(self) -> list[bytes]:
        from pth_files import FOUR_FLOATS, Tensor, dump, forge

        storage, contents = FOUR_FLOATS
        others = {"args": argparse.Namespace(lr=1, names=["x"]), "set": {1}, "path": PurePosixPath("x")}
        pickled = dump({"model": {"module.a": Tensor(storage, 1, (3,), (1,))}, "ema": {}, **others})
        skipping = forge(self.folder / "seed.pth", self.IS_ZIP, pickled, contents).read_bytes()
        return [(TESTS / "data" / self.SEED).read_bytes(), skipping]

    def mutate(self, data: bytes, rng: Random, seeds: list[bytes]) -> bytes:
        return mutations.mutate_zip(data, rng, seeds, self.mutate_pickle)

    def mutate_pickle(self, content: bytes, rng: Random) -> bytes:
        """A pickle, or another member of the archive, in which opcodes are likely replacements."""
        return mutations.mutate_bytes(content, rng, [content], self.OPCODES)

    def read(self, content: bytes) -> None:
        from isnet_jax.checkpoints import pth, state_dicts

        path = self.write("weights.pth", content)
        pth.load(path)
        assert all(isinstance(x, np.ndarray) for x in state_dicts.read(path).values())


class PthLegacy(PthZip):
    """Checkpoints of PyTorch before 1.6, half of them damaged in their pickles alone."""

    SEED, IS_ZIP = "torch_legacy.pth", False

    def mutate(self, data: bytes, rng: Random, seeds: list[bytes]) -> bytes:
        start = data.index(b"\x80\x02", 40)
        if rng.random() < 0.5:
            return data[:start] + self.mutate_pickle(data[start : start + 1500], rng) + data[start + 1500 :]
        return self.mutate_pickle(data, rng)


class Safetensors(Reader):
    """.safetensors files, half of them with a damaged header of the right length."""

    TENSORS = {"a.weight": ("F32", (2, 3), 4), "b": ("BF16", (4,), 2), "n": ("I64", (), 8), "none": ("F16", (0, 3), 2)}

    def make_seeds(self) -> list[bytes]:
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for name, (kind, shape, itemsize) in self.TENSORS.items():
            start, end = end, end + itemsize * int(np.prod(shape))
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        return [join_safetensors(json.dumps(header).encode(), bytes(range(end)))]

    def mutate(self, data: bytes, rng: Random, seeds: list[bytes]) -> bytes:
        if rng.random() < 0.5:
            return mutations.mutate_bytes(data, rng, seeds)
        size = 8 + struct.unpack_from("<Q", data)[0]
        return join_safetensors(mutations.mutate_json(data[8:size], rng, []), data[size:])

    def read(self, content: bytes) -> None:
        from isnet_jax.checkpoints import safetensors_file, state_dicts

        path = self.write("weights.safetensors", content)
        tensors = safetensors_file.load(path)
        assert sum(x.nbytes for x in tensors.values()) <= len(content)
        state_dicts.read(path)


def join_safetensors(header: bytes, data: bytes) -> bytes:
    """A file of this header and these numbers."""
    return struct.pack("<Q", len(header)) + header + data
