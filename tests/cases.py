"""The recorded cases of the official network, and weights like theirs for networks of any shape."""

import functools
import importlib.util
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import traverse_util
from paths import TESTS

from isnet_jax import create_model
from isnet_jax.checkpoints import torch_names

REFERENCE = TESTS / "reference"


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
        variables=torch_names.from_torch(state_dict, model),
        image=weights.image(meta.height, meta.width, meta.seed, getattr(meta, "batch", 1)),
    )


def cast(tree, dtype):
    """Floating leaves in `dtype`; inside `enable_x64` that may be float64."""
    return jax.tree.map(lambda x: x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x, tree)


def random_variables(model, seed=0, dtype=np.float32):
    """The weights of the recorded cases, for a network of any shape."""
    names = torch_names.official_names(model)
    state_dict = {name: weights.tensor(name, shape, seed) for name, (_, shape) in names.items()}
    return cast(torch_names.from_torch(state_dict, model), dtype)


def slow_if(names, slow):
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in names]


def assert_close(found, wanted, tolerance):
    """Every leaf within `tolerance` of the largest value of the wanted leaf (at least 1e-3)."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    errors = {}
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted)):
        a, b, path = np.asarray(a, np.float64), np.asarray(b, np.float64), jax.tree_util.keystr(path)
        assert a.shape == b.shape and np.isfinite(a).all(), path
        errors[path] = np.abs(a - b).max() / max(np.abs(b).max(), 1e-3)
    worst = max(errors, key=errors.get)
    print(f"largest error {errors[worst]:.1e} {worst}")  # pytest -s
    assert errors[worst] <= tolerance


@functools.cache
def network(backbone, num_classes=5, seed=0, **fields):
    """Network without dropout and its float32 variables, as NumPy arrays."""
    model = create_model({"backbone": backbone, "num_classes": num_classes, "dropout": 0.0} | fields)
    return model, random_variables(model, seed)


def randomised(variables, seed=0):
    """Other values in every leaf (a fresh module has zero biases): scales and variances in [0.5, 1.5]."""
    rng = np.random.default_rng(seed)
    flat = traverse_util.flatten_dict(dict(variables))
    for path, leaf in flat.items():
        if path[-1] in ("scale", "var"):
            flat[path] = rng.uniform(0.5, 1.5, leaf.shape)
        elif path[-1] == "num_batches_tracked":
            flat[path] = np.zeros((), np.int32)
        else:
            std = 0.3 if leaf.ndim == 1 else (2 / np.prod(leaf.shape[:-1])) ** 0.5
            flat[path] = std * rng.standard_normal(leaf.shape)
    return traverse_util.unflatten_dict(flat)
