"""Rates of the products of ISNet's convolutions on this machine, in the forms that were tried for them.

usage: python -m benchmarks.products [--quick] [--write]

  --quick  small maps, in seconds
  --write  writes docs/performance.md and its raw numbers

Each is float32, for one image: the fastest of eight runs, as a share of the rate of a product of square matrices. All
are compiled with the options of a run (isnet_jax/runtime/compiler.py), convolutions also with XLA's defaults.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks import docs
from benchmarks.compare_work import best_rate
from benchmarks.workload import cpu_name
from isnet_jax.models import layers
from isnet_jax.runtime import compiler, sharding
from isnet_jax.runtime.console import aligned

WIDE = (2048, 512, 64, 1), (512, 512, 64, 4), (256, 256, 64, 2), (128, 128, 64, 1), (64, 64, 128, 1)
POINTWISE = (512, 2048, 64), (2048, 512, 64), (256, 1024, 64), (64, 256, 128)
HIGHEST = lax.Precision.HIGHEST


def rate(function: Callable, arguments: tuple, flops: float, options: dict[str, str]) -> float:
    """FLOP/s of the function, compiled with the options."""
    compiled = jax.jit(function, compiler_options=options).lower(*arguments).compile()
    return best_rate(lambda: jax.block_until_ready(compiled(*arguments)), flops)


def gradient(function: Callable, argument: int) -> Callable:
    """The gradient of function(x, kernel) for one argument, as a function of both and of the result's gradient."""
    return lambda x, kernel, dy: jax.vjp(function, x, kernel)[1](dy)[argument]


def conv(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """The 3x3 convolution of the network."""
    padding, dims = [(dilation, dilation)] * 2, ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, None, (dilation,) * 2, dims, precision=HIGHEST)


def shifted(x: jax.Array, dilation: int) -> list[jax.Array]:
    """The nine maps that the taps of a 3x3 kernel see, as matrices of pixels x channels."""
    padded, (height, width, channels) = jnp.pad(x, ((0, 0), (dilation,) * 2, (dilation,) * 2, (0, 0))), x.shape[1:]
    corners = [(i * dilation, j * dilation) for i in range(3) for j in range(3)]
    return [padded[:, top : top + height, left : left + width].reshape(-1, channels) for top, left in corners]


def gradient_as_nine_products(x: jax.Array, dy: jax.Array, dilation: int) -> jax.Array:
    """The gradient of a 3x3 kernel, tap by tap."""
    dy = dy.reshape(-1, dy.shape[-1])
    return jnp.stack([jnp.matmul(tap.T, dy, precision=HIGHEST) for tap in shifted(x, dilation)])


def gradient_of_unfolded(x: jax.Array, dy: jax.Array, dilation: int) -> jax.Array:
    """The gradient of a 3x3 kernel, as one product with the unfolded map (im2col)."""
    unfolded = jnp.concatenate(shifted(x, dilation), -1)
    return jnp.matmul(unfolded.T, dy.reshape(-1, dy.shape[-1]), precision=HIGHEST)


def forms(quick: bool) -> list[tuple[str, str, Callable, tuple, float]]:
    """(operation, form, function, arguments, FLOPs) of everything that is measured."""
    normal, found = partial(jax.random.normal, jax.random.key(0)), []
    for inputs, outputs, side, dilation in WIDE[-1:] if quick else WIDE:
        side = 16 if quick else side
        x, dy, kernel = (
            normal((1, side, side, inputs)),
            normal((1, side, side, outputs)),
            normal((3, 3, inputs, outputs)),
        )
        apply, flops = partial(conv, dilation=dilation), 18 * inputs * outputs * side**2
        name = f"3x3, {inputs} to {outputs}"
        found += [
            (name, "forward", apply, (x, kernel), flops),
            (name, "input's gradient", gradient(apply, 0), (x, kernel, dy), flops),
            (name, "kernel's gradient", gradient(apply, 1), (x, kernel, dy), flops),
            (name, "kernel's, nine products", partial(gradient_as_nine_products, dilation=dilation), (x, dy), flops),
            (name, "kernel's, unfolded", partial(gradient_of_unfolded, dilation=dilation), (x, dy), flops),
        ]
    for inputs, outputs, side in POINTWISE[-1:] if quick else POINTWISE:
        side = 16 if quick else side
        x, dy, kernel = normal((1, side, side, inputs)), normal((1, side, side, outputs)), normal((inputs, outputs))
        autodiff, flops = partial(jnp.matmul, precision=HIGHEST), 2 * inputs * outputs * side**2
        name = f"1x1, {inputs} to {outputs}"
        for form, apply in ("", layers.matmul), (", autodiff", autodiff):
            found.append((name, f"kernel's gradient{form}", gradient(apply, 1), (x, kernel, dy), flops))
        found.append((name, "forward", layers.matmul, (x, kernel), flops))
    return found


def main(quick: bool, write: bool) -> None:
    """Runs the command with the flags of the usage."""
    options = compiler.options(sharding.make_mesh(devices=jax.devices()[:1]))
    side = 256 if quick else 2048
    square = jax.random.normal(jax.random.key(1), (side, side))
    best = rate(partial(jnp.matmul, precision=HIGHEST), (square, square), 2 * side**3, options)
    rows, raw = [["", "as in a run", "XLA's default"]], {"cpu": cpu_name(), "matrix_rate": best, "rates": []}
    for operation, form, function, arguments, flops in forms(quick):
        rates: dict[str, Any] = {"ours": rate(function, arguments, flops, options)}
        if options and form in ("forward", "input's gradient", "kernel's gradient") and operation.startswith("3x3"):
            rates["default"] = rate(function, arguments, flops, {})
        raw["rates"].append({"operation": operation, "form": form, **rates})
        shares = [f"{100 * rates[key] / best:.0f} %" if key in rates else "" for key in ("ours", "default")]
        rows.append([f"{operation}: {form}", *shares])
    section = docs.Section("products")
    section.say(f"{cpu_name()}, {best / 1e9:.0f} GFLOP/s for the product of square matrices\n")
    section.say(aligned(rows))
    if write:
        section.write(raw)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--quick", "--write"):
        parser.add_argument(flag, action="store_true")
    main(**vars(parser.parse_args()))
