"""Eight CPU devices, float32 unless a test asks for `x64`, and the recorded cases of the official network."""

import functools
import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # it announces itself otherwise
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import jax
import numpy as np
import pytest

from isnet_jax import convert, create_model

REFERENCE = Path(__file__).parent / "reference"


def load_module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


weights = load_module(REFERENCE / "weights.py")


def case_names(kind):
    return sorted(path.stem for path in (REFERENCE / "cases").glob(f"{kind}_*.npz"))


@functools.cache
def load_case(name):
    """A recorded case: `meta`, `arrays`, the network without dropout, its `state_dict`, `variables` and `image`."""
    with np.load(REFERENCE / "cases" / f"{name}.npz") as file:
        arrays = dict(file)
    meta = SimpleNamespace(**json.loads(str(arrays.pop("meta"))))
    lip = meta.dataset == "lip"
    model = create_model(
        {
            "backbone": meta.backbone,
            "num_classes": meta.num_classes,
            "shortcut": lip,
            "activation": "leaky_relu" if lip else "relu",
            "dropout": 0.0,
        }
    )
    state_dict = weights.state_dict(REFERENCE / "keys" / f"{meta.backbone}_{meta.num_classes}.json", meta.seed)
    return SimpleNamespace(
        meta=meta,
        arrays=arrays,
        model=model,
        state_dict=state_dict,
        variables=convert.from_torch(state_dict, model),
        image=weights.image(meta.height, meta.width, meta.seed, getattr(meta, "batch", 1)),
    )


@pytest.fixture
def x64():
    """float64 inside the test, as before it afterwards."""
    with jax.enable_x64(True):
        yield


def cast(tree, dtype):
    """Floating leaves in `dtype`; inside `enable_x64` that may be float64."""
    return jax.tree.map(lambda x: x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x, tree)


def random_variables(model, seed=0, dtype=np.float32):
    """The weights of the recorded cases, for a network of any shape."""
    names = convert.official_names(model)
    state_dict = {name: weights.tensor(name, shape, seed) for name, (_, shape) in names.items()}
    return cast(convert.from_torch(state_dict, model), dtype)
