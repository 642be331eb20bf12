"""Readers of exported networks."""

import hashlib
import json
from random import Random

import mutations

from readers.base import Reader

SHA256 = "sha256"


class Exports(Reader):
    """An ONNX file and the JSON beside it, (JSON, ONNX): the JSON names the bytes that it is with, damaged or not."""

    def make_seeds(self) -> list[tuple[bytes, bytes]]:
        import jax.numpy as jnp
        import numpy as np

        from isnet_jax import config
        from isnet_jax.exports import formats
        from isnet_jax.exports.program import image_spec
        from isnet_jax.models.layers import max_pool

        def program(image):
            x = image.astype(jnp.float32)
            for _ in range(3):
                x = max_pool(x)
            return {"score_map": x * np.float32([1, 2, 3])}

        formats.write("onnx", self.folder / "m.onnx", program, image_spec(None), {})
        c = config.default("resnet18")
        c.model.num_classes, c.data.name, c.test.resize = 3, "folder", ()
        c.data.folder = dict(name="own", classes=("a", "b", "c"), splits={"val": ("x", "y")})
        facts = {"format": "onnx", "resize": {"size": None}, SHA256: "", "config": c.to_dict()}
        return [(json.dumps(facts).encode(), (self.folder / "m.onnx").read_bytes())]

    def mutant(self, rng: Random) -> tuple[bytes, bytes]:
        [(facts, model)] = self.seeds
        if rng.random() < 0.5:
            return mutations.mutate_json(facts, rng), model
        return facts, mutations.mutate_bytes(model, rng, [model])

    def read(self, content: tuple[bytes, bytes]) -> None:
        import numpy as np

        import isnet_jax

        facts, model = content
        digest = hashlib.sha256(model).hexdigest().encode()
        self.write("m.onnx.json", facts.replace(b'"sha256": ""', b'"sha256": "' + digest + b'"'))
        mask = isnet_jax.load(self.write("m.onnx", model)).predict(np.zeros((9, 10, 3), np.uint8))
        assert mask.shape == (9, 10) and mask.dtype == np.uint8
