"""Photometric distortion and normalisation on the device (`benchmarks/opencv_recipe.py`).

Pixels are transferred to the device as uint8. Every operation here rounds as its uint8 definition in OpenCV does, with
the integers held in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray, Shaped

from isnet_jax.models.layers import valid_mask

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # RGB, 0..255


def normalize(
    images: Num[Array | np.ndarray, "b h w 3"], windows: Int[Array | np.ndarray, "b 4"] | None = None
) -> Float[Array, "b h w 3"]:
    """(images - MEAN) / STD of RGB images in 0..255, in float32 (float64 under JAX_ENABLE_X64).

    `windows` gives the unpadded region of each image, (top, left, height, width). The result is zero outside it.
    """
    x = (jnp.asarray(images, jnp.float32) - jnp.asarray(MEAN)) / jnp.asarray(STD)
    if windows is None:
        return x
    _, height, width, _ = x.shape
    return jnp.where(valid_mask(windows[:, 2:], height, width, offset=windows[:, :2]), x, 0)


def distort(key: PRNGKeyArray, images: Num[Array | np.ndarray, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """RGB images in 0..255 after photometric distortion: integers 0..255 in float32.

    Brightness, contrast, saturation and hue each change with probability 0.5 per image. Contrast comes before
    saturation and hue or after them, with even odds.
    """
    return apply_distortion(images, **draw_distortion(key, images.shape[0]))


def draw_distortion(key: PRNGKeyArray, count: int) -> dict[str, Shaped[Array, "..."]]:
    """The random draws of `distort` for `count` images: the keyword arguments of `apply_distortion`."""
    coins, brightness, contrast, saturation, hue = jax.random.split(key, 5)
    return {
        "chosen": jax.random.bernoulli(coins, 0.5, (4, count)),
        "contrast_early": jax.random.bernoulli(jax.random.fold_in(coins, 1), 0.5, (count,)),
        "brightness": jax.random.uniform(brightness, (count,), minval=-32, maxval=32),
        "contrast": jax.random.uniform(contrast, (count,), minval=0.5, maxval=1.5),
        "saturation": jax.random.uniform(saturation, (count,), minval=0.5, maxval=1.5),
        "hue": jax.random.randint(hue, (count,), -18, 18),
    }


def apply_distortion(
    images: Num[Array | np.ndarray, "b h w 3"],
    chosen: Bool[Array | np.ndarray, "4 b"],
    contrast_early: Bool[Array | np.ndarray, " b"],
    brightness: Float[Array | np.ndarray, " b"],
    contrast: Float[Array | np.ndarray, " b"],
    saturation: Float[Array | np.ndarray, " b"],
    hue: Int[Array | np.ndarray, " b"],
) -> Float[Array, "b h w 3"]:
    """RGB images in 0..255 after the given changes: integers 0..255 in float32.

    `chosen` says whether brightness, contrast, saturation and hue change. Brightness is an offset, contrast and
    saturation are factors, and hue is an offset in OpenCV's units of 2 degrees.
    """
    use_brightness, use_contrast, use_saturation, use_hue = (c[:, None, None, None] for c in chosen)
    early, brightness, contrast = (x[:, None, None, None] for x in (contrast_early, brightness, contrast))
    saturation, hue = saturation[:, None, None], hue[:, None, None].astype(jnp.float32)

    x = jnp.asarray(images, jnp.float32)
    x = jnp.where(use_brightness, _to_uint8(x + brightness), x)
    x = jnp.where(use_contrast & early, _to_uint8(x * contrast), x)
    h, s, v = rgb_to_hsv(x)
    x = jnp.where(use_saturation, hsv_to_rgb(h, _to_uint8(s * saturation), v), x)
    h, s, v = rgb_to_hsv(x)
    x = jnp.where(use_hue, hsv_to_rgb((h + hue) % 180, s, v), x)
    return jnp.where(use_contrast & ~early, _to_uint8(x * contrast), x)


def _to_uint8(x: Array | np.ndarray) -> Array:
    """NumPy's clip and cast to uint8, which truncates; the dtype stays."""
    return jnp.floor(jnp.clip(x, 0, 255))


def rgb_to_hsv(
    x: Num[Array | np.ndarray, "*n 3"],
) -> tuple[Float[Array, "*n"], Float[Array, "*n"], Float[Array, "*n"]]:
    """Hue 0..179, saturation and value 0..255 of integers 0..255, in OpenCV's fixed point: integers in float32."""
    r, g, b = (x[..., i].astype(jnp.int32) for i in range(3))
    v = jnp.maximum(jnp.maximum(r, g), b)
    spread = v - jnp.minimum(jnp.minimum(r, g), b)

    def ratio(numerator, n):  # numerator / n with 12 fractional bits, 0 for n = 0
        return jnp.where(n > 0, jnp.round((numerator * 4096) / jnp.maximum(n, 1)), 0).astype(jnp.int32)

    s = (spread * ratio(255, v) + 2048) >> 12
    h = jnp.where(v == r, g - b, jnp.where(v == g, b - r + 2 * spread, r - g + 4 * spread))
    h = (h * ratio(30, spread) + 2048) >> 12
    h = jnp.where(h < 0, h + 180, h)
    return h.astype(jnp.float32), s.astype(jnp.float32), v.astype(jnp.float32)


def hsv_to_rgb(
    h: Float[Array | np.ndarray, "*n"], s: Float[Array | np.ndarray, "*n"], v: Float[Array | np.ndarray, "*n"]
) -> Float[Array, "*n 3"]:
    """Inverse of `rgb_to_hsv`: integers 0..255 in float32. Like OpenCV, it computes in float32 and truncates."""
    s, v = _product(s, np.float32(1 / 255)), v * np.float32(1 / 255)
    sextant = _product(h, np.float32(1 / 30))
    index = jnp.floor(sextant)
    fraction = sextant - index
    part = _product(s, fraction)
    low, falling, rising = v * (1 - s), v * (1 - part), v * (1 - s + part)
    orders = (
        (v, rising, low),
        (falling, v, low),
        (low, v, rising),
        (low, falling, v),
        (rising, low, v),
        (v, low, falling),
    )
    channels = [jnp.select([index == i for i in range(6)], [order[c] for order in orders]) for c in range(3)]
    return jnp.floor(jnp.stack(channels, axis=-1) * 255)


def _product(x: Array | np.ndarray, y: Array | np.ndarray | np.floating) -> Array:
    """x * y >= 0, rounded. The maximum, which changes nothing, keeps compilers from fusing it with an addition."""
    return jnp.maximum(x * y, 0)
