"""Image-level context (ISNet paper, section 3.2): every pixel attends to all pixels and to the image as a whole.

In the paper's symbols, R are the pixel representations and R_il their image-level context: with the global average
g(R) broadcast to every pixel,

    Q = q(R),  K = k([g(R), R]),  V = v([g(R), R])
    R_il = W_il [R, out(softmax(Q K^T / sqrt(d)) V)]

where q, k, v and out are 1x1 and W_il is a 3x3 conv-BN-activation.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from isnet_jax.models.attention import IMPLEMENTATIONS
from isnet_jax.models.layers import Array, ConvBNAct, Mask, masked_mean


class ImageLevelContext(nn.Module):
    """R -> R_il; `act` is the head's activation."""

    act: Callable
    attention: str = "blocks"  # one of IMPLEMENTATIONS

    @nn.compact
    def __call__(
        self, feats: Float[Array, "b h w c"], train: bool, mask: Mask | None = None
    ) -> Float[Array, "b h w c"]:
        """feats, R -> their image-level context, R_il."""
        b, h, w, channels = feats.shape
        project = partial(ConvBNAct, channels // 2, act=self.act)
        image_mean = masked_mean(feats, mask)  # g(R): half of the input of keys and values
        query = project(name="query1")(feats, train, mask)
        query = project(name="query2")(query, train, mask)
        key = project(name="key1")(feats, train, mask, image_mean)
        key = project(name="key2")(key, train, mask)
        value = project(name="value")(feats, train, mask, image_mean)
        query, key, value = (x.reshape(b, h * w, -1) for x in (query, key, value))
        key_bias = None if mask is None else jnp.where(mask, 0.0, -jnp.inf).reshape(b, h * w)
        context = IMPLEMENTATIONS[self.attention](query, key, value, key_bias).reshape(b, h, w, -1)
        context = ConvBNAct(channels, act=self.act, name="out")(context, train, mask)
        both = jnp.concatenate([feats, context], axis=-1)
        return ConvBNAct(channels, 3, act=self.act, name="bottleneck")(both, train, mask)
