"""The features of ResNets equal those of timm and torchvision, as tests/reference/record_backbones.py recorded them."""

import json

import jax
import numpy as np
import pytest
from cases import REFERENCE, cast, slow_if, weights

from isnet_jax import create_model
from isnet_jax.checkpoints.torch_names import backbone_from_torch
from isnet_jax.models.isnet import BACKBONES
from isnet_jax.models.layers import masks_by_stride

NAMES = sorted(path.stem.removeprefix("backbone_") for path in (REFERENCE / "cases").glob("backbone_*.npz"))


@pytest.mark.parametrize("name", slow_if(NAMES, ("resnet101b", "resnet101d")))
def test_backbone_equals_the_recorded_network(name, x64):
    """Names and weights are the library's; each stage agrees at stride 8, of an image of odd sides."""
    with np.load(REFERENCE / "cases" / f"backbone_{name}.npz") as file:
        case = dict(file)
    meta = json.loads(str(case["meta"]))
    state_dict = {key: weights.tensor(key, tuple(shape)) for key, shape in meta["shapes"].items()}
    loaded = backbone_from_torch(state_dict, create_model({"backbone": name, "num_classes": 5}))
    variables = {kind: cast(tree["backbone"], np.float64) for kind, tree in loaded.items()}
    _, masks = masks_by_stride(None, *meta["size"])
    image = weights.image(*meta["size"]).astype(np.float64)
    stages = jax.jit(lambda v, x: BACKBONES[name]().apply(v, x, False, masks))(variables, image)
    np.testing.assert_allclose([np.abs(stage).mean() for stage in stages], case["mean_abs"], rtol=1e-9)
    for i, stage in enumerate(stages):
        wanted = case[f"stage{i + 1}"]
        np.testing.assert_allclose(stage[..., : wanted.shape[-1]], wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())
