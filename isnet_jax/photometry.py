"""Photometric distortion and normalisation on the accelerator (protocols: training, steps 4 to 6).

uint8 pixels cross the bus; here each operation rounds as its uint8 definition in OpenCV does, held in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # RGB, 0..255


def normalize(images, windows=None):
    """images (B, H, W, 3), 0..255 -> float32; 0 outside windows (B, 4) = (top, left, height, width) if given."""
    x = (images.astype(jnp.float32) - jnp.asarray(MEAN)) / jnp.asarray(STD)
    if windows is None:
        return x
    top, left, height, width = (windows[:, i, None, None] for i in range(4))
    rows, columns = jnp.arange(x.shape[1])[None, :, None], jnp.arange(x.shape[2])[None, None]
    inside = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
    return jnp.where(inside[..., None], x, 0)


def distort(key, images):
    """Brightness, contrast, saturation and hue, each with probability 0.5 per image.

    images (B, H, W, 3), 0..255 RGB -> float32 of the same shape holding the integers 0..255. Contrast comes
    before saturation and hue or after them, with even odds.
    """
    return apply_distortion(images, **draw_distortion(key, images.shape[0]))


def draw_distortion(key, count):
    """The draws of `distort` for `count` images: arguments of `apply_distortion`."""
    coins, brightness, contrast, saturation, hue = jax.random.split(key, 5)
    return {
        "chosen": jax.random.bernoulli(coins, 0.5, (4, count)),
        "contrast_early": jax.random.bernoulli(jax.random.fold_in(coins, 1), 0.5, (count,)),
        "brightness": jax.random.uniform(brightness, (count,), minval=-32, maxval=32),
        "contrast": jax.random.uniform(contrast, (count,), minval=0.5, maxval=1.5),
        "saturation": jax.random.uniform(saturation, (count,), minval=0.5, maxval=1.5),
        "hue": jax.random.randint(hue, (count,), -18, 18),
    }


def apply_distortion(images, chosen, contrast_early, brightness, contrast, saturation, hue):
    """images (B, H, W, 3); chosen bool (4, B): which of brightness, contrast, saturation, hue change; the rest (B,)."""
    brightened, contrasted, saturated, hued = (c[:, None, None, None] for c in chosen)
    early, brightness, contrast = (x[:, None, None, None] for x in (contrast_early, brightness, contrast))
    saturation, hue = saturation[:, None, None], hue[:, None, None].astype(jnp.float32)

    x = images.astype(jnp.float32)
    x = jnp.where(brightened, _to_uint8(x + brightness), x)
    x = jnp.where(contrasted & early, _to_uint8(x * contrast), x)
    h, s, v = rgb_to_hsv(x)
    x = jnp.where(saturated, hsv_to_rgb(h, _to_uint8(s * saturation), v), x)
    h, s, v = rgb_to_hsv(x)
    x = jnp.where(hued, hsv_to_rgb((h + hue) % 180, s, v), x)
    return jnp.where(contrasted & ~early, _to_uint8(x * contrast), x)


def _to_uint8(x):
    """NumPy's clip and cast: what is left of the point."""
    return jnp.floor(jnp.clip(x, 0, 255))


def rgb_to_hsv(x):
    """x (..., 3), integers 0..255 -> h 0..179, s and v 0..255, float32 integers, in OpenCV's fixed point."""
    r, g, b = (x[..., i].astype(jnp.int32) for i in range(3))
    v = jnp.maximum(jnp.maximum(r, g), b)
    spread = v - jnp.minimum(jnp.minimum(r, g), b)

    def per(numerator, n):  # numerator / n with 12 fractional bits, 0 for n = 0
        return jnp.where(n > 0, jnp.round((numerator * 4096) / jnp.maximum(n, 1)), 0).astype(jnp.int32)

    s = (spread * per(255, v) + 2048) >> 12
    h = jnp.where(v == r, g - b, jnp.where(v == g, b - r + 2 * spread, r - g + 4 * spread))
    h = (h * per(30, spread) + 2048) >> 12
    h = jnp.where(h < 0, h + 180, h)
    return h.astype(jnp.float32), s.astype(jnp.float32), v.astype(jnp.float32)


def hsv_to_rgb(h, s, v):
    """Inverse of `rgb_to_hsv`, (..., 3) float32 integers: like OpenCV in float32, and like it cut off, not rounded."""
    s, v = s * np.float32(1 / 255), v * np.float32(1 / 255)
    sextant = h * np.float32(1 / 30)
    index = jnp.floor(sextant)
    fraction = sextant - index
    low, falling, rising = v * (1 - s), v * (1 - s * fraction), v * (1 - s + s * fraction)
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
