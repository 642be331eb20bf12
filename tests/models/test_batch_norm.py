"""Batch norm against PyTorch's, and its float32 statistics and gradients against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_close, randomised

from isnet_jax.models import layers
from isnet_jax.models.batch_norm import batch_statistics, normalize_batch

CASES = {  # shape, mean, deviation, weighted
    "two images of a value": ((2, 1, 1, 64), 1.0, 1e-3, False),
    "eight images of a value": ((8, 1, 1, 64), 100.0, 1.0, False),
    "far from zero": ((2, 24, 40, 16), 1e3, 1e-2, False),
    "far from zero, masked": ((2, 24, 40, 16), 1e3, 1e-2, True),
    "class tokens": ((2, 21, 1, 16), -300.0, 1e-2, True),
    "a map": ((2, 64, 64, 16), 0.0, 1.0, False),
}


def make_case(name):
    """float32 values whose images differ in mean, and weights: zero at the right, up to 400 elsewhere."""
    shape, mean, deviation, is_weighted = CASES[name]
    rng = np.random.default_rng(0)
    x = mean + deviation * (rng.standard_normal(shape) + rng.standard_normal((shape[0], 1, 1, shape[-1])))
    weight = None
    if is_weighted:
        weight = rng.integers(1, 401, (*shape[:3], 1))
        weight[:, -shape[1] // 4 :] = 0
        x = np.where(weight == 0, 0, x)
    return x.astype(np.float32), weight


def as_float32(x):
    return None if x is None else jnp.asarray(x, jnp.float32)


def exact_statistics(x, weight):
    x = x.astype(np.float64)
    weight = np.ones((*x.shape[:3], 1)) if weight is None else weight
    mean = (weight * x).sum((0, 1, 2)) / weight.sum()
    return mean, (weight * (x - mean) ** 2).sum((0, 1, 2)) / weight.sum()


def one_pass_variance(x, weight):
    """E[x^2] - E[x]^2, which cancels."""
    weight = jnp.ones((*x.shape[:3], 1), x.dtype) if weight is None else jnp.asarray(weight, x.dtype)
    mean, square = ((weight * y).sum((0, 1, 2)) / weight.sum() for y in (x, x * x))
    return square - mean * mean


@pytest.mark.parametrize("name", CASES)
def test_batch_statistics_in_float32_equal_float64(name):
    x, weight = make_case(name)
    mean, var, count = jax.jit(batch_statistics)(*map(as_float32, (x, weight)))
    wanted_mean, wanted_var = exact_statistics(x, weight)
    assert count == (x.size // x.shape[-1] if weight is None else weight.sum())
    assert np.abs(mean - wanted_mean).max() <= 2 * np.finfo(np.float32).eps * np.abs(wanted_mean).max()
    error = np.abs(var / wanted_var - 1).max()
    cancelling_error = np.abs(one_pass_variance(jnp.asarray(x), weight) / wanted_var - 1).max()
    assert error <= 3e-5, (error, cancelling_error)
    assert cancelling_error > 3e-5 or name == "a map", "this case tells the two forms apart"


@pytest.mark.parametrize("name", CASES)
def test_batch_statistics_of_bfloat16_are_closer_than_its_rounding(name):
    """Of the values as bfloat16 holds them; far from zero, these differ by few units of its last place."""
    x, weight = make_case(name)
    x = jnp.asarray(x, jnp.bfloat16)
    mean, var, _ = jax.jit(batch_statistics)(x, as_float32(weight))
    wanted_mean, wanted_var = exact_statistics(np.asarray(x), weight)
    assert mean.dtype == var.dtype == jnp.float32
    np.testing.assert_allclose(mean, wanted_mean, rtol=1e-6, atol=1e-6)
    deviation, wanted = (np.sqrt(np.asarray(x, np.float64) + 1e-5) for x in (var, wanted_var))
    last_place = 2**-7 * np.abs(wanted_mean).max()  # of the values
    assert (np.abs(deviation - wanted) <= 2**-9 * np.maximum(wanted, last_place)).all()


@pytest.mark.parametrize("name", CASES)
def test_batch_norm_gradient_in_float32_equals_float64(name):
    """The written gradient against autodiff of the definition."""
    x, weight = make_case(name)
    rng = np.random.default_rng(1)
    scale, bias, target = (
        rng.standard_normal(x.shape[-1]),
        rng.standard_normal(x.shape[-1]),
        rng.standard_normal(x.shape),
    )

    def definition(x, scale, bias):
        w = jnp.ones((*x.shape[:3], 1)) if weight is None else weight
        mean = (w * x).sum((0, 1, 2)) / w.sum()
        var = (w * (x - mean) ** 2).sum((0, 1, 2)) / w.sum()
        return (((x - mean) / jnp.sqrt(var + layers.EPSILON) * scale + bias) * target).sum()

    counts = None if weight is None else jnp.asarray(weight)
    with jax.enable_x64(True):
        arguments = [jnp.asarray(y, jnp.float64) for y in (x, scale, bias)]
        wanted = jax.device_get(jax.jit(jax.grad(definition, (0, 1, 2)))(*arguments))
        exact = jax.grad(lambda *a: (normalize_batch(*a, counts)[0] * target).sum(), (0, 1, 2))
        assert_close(jax.device_get(jax.jit(exact)(*arguments)), wanted, 1e-9)
    arguments = [jnp.asarray(y, jnp.float32) for y in (x, scale, bias)]
    target = as_float32(target)
    found = jax.jit(jax.grad(lambda *a: (normalize_batch(*a, counts)[0] * target).sum(), (0, 1, 2)))(*arguments)
    assert_close(jax.device_get(found), wanted, 1e-2 if abs(CASES[name][1]) >= 300 else 1e-4)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case[3]])
@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_in_float32_is_as_accurate_as_torch(name, train, torch):
    x, _ = make_case(name)
    mean, var = exact_statistics(x, None)
    exact = (x.astype(np.float64) - mean) / np.sqrt(var + layers.EPSILON)
    ours, theirs = layers.BatchNorm(), torch.nn.BatchNorm2d(x.shape[-1]).train(train)
    variables = ours.init(jax.random.key(0), jnp.asarray(x), False)
    if not train:
        stats = variables["batch_stats"] | {"mean": jnp.float32(mean), "var": jnp.float32(var)}
        variables = variables | {"batch_stats": stats}
        theirs.running_mean[:], theirs.running_var[:] = torch.from_numpy(mean), torch.from_numpy(var)
    y = jax.jit(lambda v, x: ours.apply(v, x, train, mutable=["batch_stats"])[0])(variables, x)
    their_y = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
    noise = max(np.abs(their_y - exact).max(), 1e-6)
    assert np.abs(y - exact).max() <= 3 * noise


def test_batch_norm_equals_torch(torch, x64):
    x = jnp.asarray(np.random.default_rng(6).standard_normal((3, 5, 7, 4)) * 2 + 5)
    ours, theirs = layers.BatchNorm(), torch.nn.BatchNorm2d(4).double()
    variables = randomised(ours.init(jax.random.key(0), x, False))
    theirs.load_state_dict(
        {
            name: torch.tensor(np.asarray(value))
            for name, value in (
                ("weight", variables["params"]["scale"]),
                ("bias", variables["params"]["bias"]),
                ("running_mean", variables["batch_stats"]["mean"]),
                ("running_var", variables["batch_stats"]["var"]),
                ("num_batches_tracked", 0),
            )
        }
    )
    for train in (True, False):
        theirs.train(train)
        y, new = ours.apply(variables, x, train, mutable=["batch_stats"])
        wanted = theirs(torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
        assert_close(y, wanted, 1e-12)
        variables |= new
        assert_close(
            dict(new["batch_stats"]),
            {"mean": theirs.running_mean.numpy(), "num_batches_tracked": 1, "var": theirs.running_var.numpy()},
            1e-12,
        )
