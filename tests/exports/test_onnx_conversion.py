"""ONNX graphs compute what the JAX functions do that they were made of."""

import collections

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from cases import random_variables
from jax import export

from isnet_jax.exports.onnx_conversion import to_onnx
from isnet_jax.exports.program import OUTPUTS, SCORE_MAP, image_spec, make_program
from isnet_jax.models import attention
from isnet_jax.models.isnet import ISNet
from isnet_jax.models.layers import ConvBNAct

NETWORKS = {
    "resnet18": {},
    "resnet50": {"semantic_level_context": False},
    "resnest50": {"shortcut": True, "activation": "leaky_relu"},  # pools, splits, and stride 4
}


def run(model, *arrays):
    """{name: output} by onnxruntime, and the number of nodes of each operation."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    inputs = {node.name: array for node, array in zip(session.get_inputs(), arrays)}
    return dict(zip(names, session.run(names, inputs)))


def operations(model):
    return collections.Counter(node.op_type for node in model.graph.node)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def make_network(backbone):
    model = ISNet(backbone, 8, **NETWORKS[backbone])
    return model, random_variables(model)


@pytest.mark.parametrize("size", [(36, 45), None], ids=["fixed", "dynamic"])
@pytest.mark.parametrize(
    "backbone, scores",
    [*((backbone, "argmax") for backbone in NETWORKS), ("resnet18", "softmax"), ("resnet18", "logits")],
)
def test_networks(tiny_network, backbone, size, scores):
    """Of odd sizes; a dynamic one takes batches of several sizes."""
    program = make_program(*make_network(backbone), scores)
    model = to_onnx(program, image_spec(size), {"classes": "[]"})
    assert not {"Sqrt", "Reciprocal"} & set(operations(model))  # batch norms are folded, or computed already
    for shape in [(1, *size, 3)] if size else [(2, 33, 64, 3), (1, 9, 5, 3)]:
        image = noise(*shape)
        found, expected = run(model, image), jax.jit(program)(image)
        assert set(found) == {OUTPUTS[scores], SCORE_MAP}
        deviation = float(expected[SCORE_MAP].std())
        np.testing.assert_allclose(found[SCORE_MAP], expected[SCORE_MAP], rtol=0, atol=1e-4 * deviation)
        result, wanted = found[OUTPUTS[scores]], np.asarray(expected[OUTPUTS[scores]])
        assert result.shape == wanted.shape and result.dtype == wanted.dtype
        if scores == "argmax":
            assert (result != wanted).mean() < 0.01 and (len(np.unique(result)) > 1 or result.size < 100)
        else:
            np.testing.assert_allclose(result, wanted, rtol=0, atol=1e-3 * float(wanted.std()))


def test_blocks_of_queries_are_written_out(tiny_network, monkeypatch):
    network = make_network("resnet18")
    program, image = make_program(*network, "logits"), noise(1, 36, 45, 3)
    whole = run(to_onnx(program, image_spec((36, 45)), {}), image)
    monkeypatch.setattr(attention, "MAX_SCORES", 400)
    model = to_onnx(make_program(*network, "logits"), image_spec((36, 45)), {})
    assert not {"Loop", "Scan"} & set(operations(model))
    deviation = whole[SCORE_MAP].std()
    np.testing.assert_allclose(run(model, image)[SCORE_MAP], whole[SCORE_MAP], rtol=0, atol=1e-4 * deviation)


class Twice(nn.Module):
    """A convolution whose result is read twice, before and after a factor and an activation."""

    @nn.compact
    def __call__(self, x):
        y = ConvBNAct(4, 3, act=None)(x, False)
        z = nn.Conv(4, (3, 3))(y)
        return jnp.where(z >= 0, z, 0.1 * z) + 2 * z + y


def test_a_result_that_is_read_twice_keeps_its_value():
    image = jax.ShapeDtypeStruct((1, 6, 7, 3), jnp.float32)
    x = np.random.default_rng(0).normal(size=image.shape).astype(np.float32)
    module = Twice()
    variables = jax.tree.map(np.asarray, module.init(jax.random.key(0), x))
    function = lambda image: {"y": module.apply(variables, image)}  # noqa: E731
    found = run(to_onnx(function, image, {}), x)["y"]
    np.testing.assert_allclose(found, function(x)["y"], rtol=1e-5, atol=1e-5)


FUNCTIONS = {
    "elementwise": lambda x: jnp.where((x > 0) & ~(x != 1) | (x <= -1), jnp.exp(-x), jnp.minimum(jnp.abs(x), 2 / 3)),
    "symbolic sizes": lambda x: x * x.shape[1] + jnp.arange(x.shape[2])[:, None] / x.shape[2],
    "products": lambda x: jnp.einsum("bhwc,bhvc->bwhv", x, x) + jnp.einsum("bhwc,bhwc->b", x, x)[:, None, None, None],
    "slices": lambda x: jnp.concatenate([jax.lax.slice_in_dim(x, 1, 3, axis=3), x[..., :1]], 3),
    "reductions": lambda x: (x.sum(1, keepdims=True) + x.max((1, 2), keepdims=True) - x.min()) / jnp.sqrt(x.size),
    "reshapes": lambda x: x.reshape(x.shape[0], -1, 3).swapaxes(1, 2) * x.argmax(3).reshape(x.shape[0], 1, -1),
    "known": lambda x: x + np.linspace(0, 1, 5, dtype=np.float32).reshape(1, 5, 1) @ np.ones((1, 1, 3), np.float32),
}


STATIC = "known", "slices"  # of known sizes alone
SPECS = [(name, spec) for name in FUNCTIONS for spec in ("2, 4, 5, 3", "b, h, w, 3")[: 1 + (name not in STATIC)]]


@pytest.mark.parametrize("name, spec", SPECS)
def test_operations(name, spec):
    shape = export.symbolic_shape(spec)
    function = lambda x: {"y": jnp.float32(FUNCTIONS[name](x))}  # noqa: E731
    x = np.random.default_rng(0).integers(-2, 3, (2, 4, 5, 3)).astype(np.float32)
    found = run(to_onnx(function, jax.ShapeDtypeStruct(shape, jnp.float32), {}), x)["y"]
    np.testing.assert_allclose(found, function(x)["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "function, message",
    [(jnp.sin, "the operation sin"), (lambda x: jax.lax.pad(x, 0.0, ((0, 0, 0), (-1, 0, 0)) * 2), "padding")],
)
def test_what_cannot_be_written_is_refused(function, message):
    with pytest.raises(NotImplementedError, match=message):
        to_onnx(lambda x: {"y": function(x)}, jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32), {})
