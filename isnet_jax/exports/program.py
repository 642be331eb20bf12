"""The program that an export holds: RGB uint8 images in, their classes or scores at the same resolution out.

Normalisation is inside; resizing photographs to the network's input is not: the file's description says how.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from isnet_jax.input.photometry import normalize
from isnet_jax.models.isnet import ISNet
from isnet_jax.models.layers import resize

IMAGE, SCORE_MAP = "image", "score_map"  # names of the input, and of the second output
OUTPUTS = {"argmax": "classes", "softmax": "probabilities", "logits": "logits"}  # --scores: name of the first output

Program = Callable[[Any], dict[str, Any]]


def make_program(model: ISNet, variables: Mapping[str, Any], scores: str) -> Program:
    """The function image uint8 (B, H, W, 3) -> {first output, SCORE_MAP}.

    The first output is, by `scores`, a key of OUTPUTS: classes uint8 (B, H, W), or probabilities or logits float32
    (B, H, W, K). SCORE_MAP holds the logits before they are resized, float32 (B, ceil(H / stride), ceil(W / stride),
    K): resized to another resolution, they give the exact prediction there.
    """

    def program(image):
        score_map = model.apply(variables, normalize(image))["logits"]
        logits = resize(score_map, image.shape[1:3])
        if scores == "argmax":
            result = logits.argmax(-1).astype(jnp.uint8)
        else:
            result = jax.nn.softmax(logits) if scores == "softmax" else logits
        return {OUTPUTS[scores]: result, SCORE_MAP: score_map}

    return program


def image_spec(size: tuple[int, int] | None) -> jax.ShapeDtypeStruct:
    """The program's argument: one image of `size` (height, width), or any number of any size if it is None."""
    shape = (1, *size, 3) if size else export.symbolic_shape("batch, height, width, 3")
    return jax.ShapeDtypeStruct(shape, jnp.uint8)
