"""Readers of checkpoints, this project's and PyTorch's."""

from pathlib import Path
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

    SEED = "torch_zip.pth"
    OPCODES = [0, 1, 0x7F, 0x80, 0xFF, *b"()]}.0NtReubqhQcjKMJX\x85\x86\x87\x8a"]

    def make_seeds(self) -> list[bytes]:
        return [(TESTS / "data" / self.SEED).read_bytes()]

    def mutate(self, data: bytes, rng: Random, seeds: list[bytes]) -> bytes:
        return mutations.mutate_zip(data, rng, seeds, self.mutate_pickle)

    def mutate_pickle(self, content: bytes, rng: Random) -> bytes:
        """A pickle, or another member of the archive, in which opcodes are likely replacements."""
        return mutations.mutate_bytes(content, rng, [content], self.OPCODES)

    def read(self, content: bytes) -> None:
        from isnet_jax.checkpoints import pth

        path = self.write("weights.pth", content)
        pth.load(path)
        assert all(isinstance(x, np.ndarray) for x in pth.state_dict(path).values())


class PthLegacy(PthZip):
    """Checkpoints of PyTorch before 1.6, half of them damaged in their pickles alone."""

    SEED = "torch_legacy.pth"

    def mutate(self, data: bytes, rng: Random, seeds: list[bytes]) -> bytes:
        start = data.index(b"\x80\x02", 40)
        if rng.random() < 0.5:
            return data[:start] + self.mutate_pickle(data[start : start + 1500], rng) + data[start + 1500 :]
        return self.mutate_pickle(data, rng)
