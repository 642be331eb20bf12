"""Semantic-level context (ISNet paper, section 3.3): every pixel attends to the regions of the predicted classes.

In the paper's symbols, R are the pixel representations, P the stage-1 logits, and Omega_c the pixels whose most likely
class is c. Each of these pixels gets the representation of its class,

    R_c = sum over i in Omega_c of softmax(P_c over Omega_c)_i R_i

and R_sl = W_sl [R_il, out(softmax(q(R) k(R_c)^T / sqrt(d)) v(R_c))] attends over pixels. All pixels of a class carry
the same vector. Attention over the K class tokens R_c is therefore the same function, if the score of each token is
raised by the log of its pixel count and batch norm is weighted by the counts: N x K scores instead of N x N.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped

from isnet_jax.models.attention import attention
from isnet_jax.models.layers import Array, ConvBNAct, Mask, precision


def class_tokens(
    feats: Float[Array, "b n c"], logits: Float[Array, "b n k"], mask: Shaped[Array, "b n 1"] | None = None
) -> tuple[Float[Array, "b k c"], Int[Array, "b k"]]:
    """The token of each class, R_c, and the number of pixels it wins, |Omega_c|.

    The token of a class that wins no pixel is zero.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    wins = logits.argmax(-1)[..., None] == jnp.arange(logits.shape[-1])  # (B, N, K)
    if mask is not None:
        wins = wins & mask
    counts = wins.sum(1)
    highest = jax.lax.stop_gradient(jnp.where(wins, logits, -jnp.inf).max(1, keepdims=True))
    weights = jnp.where(wins, jnp.exp(jnp.where(wins, logits - highest, 0)), 0)
    weights = weights / jnp.where(counts > 0, weights.sum(1), 1)[:, None]  # columns sum to 1
    tokens = jnp.einsum("bnk,bnc->bkc", weights.astype(feats.dtype), feats, precision=precision(feats.dtype))
    return tokens, counts


class SemanticLevelContext(nn.Module):
    """R, P, R_il -> R_sl; `act` is the head's activation."""

    act: Callable

    @nn.compact
    def __call__(
        self,
        feats: Float[Array, "b h w c"],
        stage1_logits: Float[Array, "b h w k"],
        image_context: Float[Array, "b h w c"],
        train: bool,
        mask: Mask | None = None,
    ) -> Float[Array, "b h w c"]:
        """feats, R; stage1_logits, P; image_context, R_il -> R_sl."""
        b, h, w, channels = feats.shape
        project = partial(ConvBNAct, channels // 2, act=self.act)
        pixels, logits = (x.reshape(b, h * w, -1) for x in (feats, stage1_logits))
        tokens, counts = class_tokens(pixels, logits, None if mask is None else mask.reshape(b, h * w, 1))
        tokens, weight = tokens[:, :, None], counts[:, :, None, None]  # an "image" of K x 1, of n_c pixels each
        query = project(name="query1")(feats, train, mask)
        query = project(name="query2")(query, train, mask)
        key = project(name="key1")(tokens, train, weight)
        key = project(name="key2")(key, train, weight)
        value = project(name="value")(tokens, train, weight)
        log_counts = jnp.log(counts.astype(jnp.promote_types(feats.dtype, jnp.float32)))  # -inf: the class is absent
        context = attention(query.reshape(b, h * w, -1), key[:, :, 0], value[:, :, 0], log_counts)
        context = ConvBNAct(channels, act=self.act, name="out")(context.reshape(b, h, w, -1), train, mask)
        both = jnp.concatenate([image_context, context], axis=-1)
        return ConvBNAct(channels, 3, act=self.act, name="bottleneck")(both, train, mask)
