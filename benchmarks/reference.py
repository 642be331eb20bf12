"""Random weights under which many classes win pixels, and the recorded cases of the official network."""

import json
import runpy
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.paths import REFERENCE
from isnet_jax.checkpoints import torch_names
from isnet_jax.models.isnet import ISNet

weights = SimpleNamespace(**runpy.run_path(str(REFERENCE / "weights.py")))


def random_variables(model: ISNet) -> dict[str, Any]:
    """The weights of the recorded cases, {"params", "batch_stats"}, for a network of any shape."""
    names = torch_names.official_names(model)
    return torch_names.from_torch({name: weights.tensor(name, shape) for name, (_, shape) in names.items()}, model)


def load_case(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """A recorded evaluation case.

    Returns the fields for `create_model`, the official state dict, the normalised images (B, H, W, 3) and the logits
    (B, h, w, K) that the official network computed in float64.
    """
    with np.load(REFERENCE / "cases" / f"eval_{name}.npz") as file:
        meta, logits = json.loads(str(file["meta"])), file["logits"].astype(np.float64)
    is_lip = meta["dataset"] == "lip"
    fields = {
        "backbone": meta["backbone"],
        "num_classes": meta["num_classes"],
        "shortcut": is_lip,
        "activation": "leaky_relu" if is_lip else "relu",
    }
    state_dict = weights.state_dict(REFERENCE / f"keys/{meta['backbone']}_{meta['num_classes']}.json", meta["seed"])
    images = weights.image(meta["height"], meta["width"], meta["seed"], meta["batch"])
    return fields, state_dict, images, logits
