"""Image-level context (ISNet paper, section 3.2): every pixel attends to all pixels and to the image as a whole."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from isnet_jax.attention import attention
from isnet_jax.layers import ConvBNAct, masked_mean


class ImageLevelContext(nn.Module):
    """Every pixel attends to all pixels and to the image as a whole."""

    act: Callable

    @nn.compact
    def __call__(self, feats, train, mask=None):
        """feats (B, H, W, C), mask (B, H, W, 1) -> feats with their image-level context, (B, H, W, C)."""
        b, h, w, channels = feats.shape
        image_mean = masked_mean(feats, mask)  # (B, 1, 1, C): half of the input of key and value
        query = ConvBNAct(channels // 2, act=self.act, name="query1")(feats, train, mask)
        query = ConvBNAct(channels // 2, act=self.act, name="query2")(query, train, mask)
        key = ConvBNAct(channels // 2, act=self.act, name="key1")(feats, train, mask, image_mean)
        key = ConvBNAct(channels // 2, act=self.act, name="key2")(key, train, mask)
        value = ConvBNAct(channels // 2, act=self.act, name="value")(feats, train, mask, image_mean)
        query, key, value = (x.reshape(b, h * w, -1) for x in (query, key, value))  # (B, N, C / 2)
        key_bias = None if mask is None else jnp.where(mask, 0, -jnp.inf).reshape(b, h * w)
        context = attention(query, key, value, key_bias).reshape(b, h, w, -1)
        context = ConvBNAct(channels, act=self.act, name="out")(context, train, mask)
        both = jnp.concatenate([feats, context], axis=-1)  # (B, H, W, 2 C)
        return ConvBNAct(channels, 3, act=self.act, name="bottleneck")(both, train, mask)
