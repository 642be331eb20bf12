"""Semantic-level context (ISNet paper, section 3.3): every pixel attends to the regions of the predicted classes.

In the paper each pixel carries the representation of its predicted class, and attention runs over pixels. All
pixels of a class carry the same vector, so attention over the K class tokens, with each token's score raised by
the log of its pixel count, and batch norm weighted by the counts are the same function: N x K instead of N x N.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from isnet_jax.attention import attention
from isnet_jax.layers import ConvBNAct, precision


def class_tokens(feats, logits, mask=None):
    """Representation of every class that wins a pixel, and how many it wins.

    feats (B, N, C), logits (B, N, K), mask (B, N, 1) or None -> tokens (B, K, C), counts (B, K) int32. A token is
    the sum of its pixels' feats weighted by the softmax, over those pixels, of the class's own logit; a class
    that wins no pixel has a zero token.
    """
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    wins = wide.argmax(-1)[..., None] == jnp.arange(logits.shape[-1])  # (B, N, K)
    if mask is not None:
        wins = wins & mask
    counts = wins.sum(1)
    highest = jax.lax.stop_gradient(jnp.where(wins, wide, -jnp.inf).max(1, keepdims=True))
    weights = jnp.where(wins, jnp.exp(jnp.where(wins, wide - highest, 0)), 0)
    weights = weights / jnp.where(counts > 0, weights.sum(1), 1)[:, None]  # columns sum to 1
    tokens = jnp.einsum("bnk,bnc->bkc", weights.astype(feats.dtype), feats, precision=precision(feats.dtype))
    return tokens, counts


class SemanticLevelContext(nn.Module):
    """Every pixel attends to the regions of the predicted classes."""

    act: Callable

    @nn.compact
    def __call__(self, feats, stage1_logits, image_context, train, mask=None):
        """feats and image_context (B, H, W, C), stage1_logits (B, H, W, K), mask (B, H, W, 1) -> (B, H, W, C)."""
        b, h, w, channels = feats.shape
        tokens, counts = class_tokens(
            *(None if x is None else x.reshape(b, h * w, -1) for x in (feats, stage1_logits, mask))
        )
        tokens, weight = tokens[:, :, None], counts[:, :, None, None]  # K x 1 "images", each entry n_c pixels
        query = ConvBNAct(channels // 2, act=self.act, name="query1")(feats, train, mask)
        query = ConvBNAct(channels // 2, act=self.act, name="query2")(query, train, mask)
        key = ConvBNAct(channels // 2, act=self.act, name="key1")(tokens, train, weight)
        key = ConvBNAct(channels // 2, act=self.act, name="key2")(key, train, weight)
        value = ConvBNAct(channels // 2, act=self.act, name="value")(tokens, train, weight)
        log_counts = jnp.log(counts.astype(jnp.promote_types(feats.dtype, jnp.float32)))  # -inf: class absent
        context = attention(query.reshape(b, h * w, -1), key[:, :, 0], value[:, :, 0], log_counts)
        context = ConvBNAct(channels, act=self.act, name="out")(context.reshape(b, h, w, -1), train, mask)
        both = jnp.concatenate([image_context, context], axis=-1)  # (B, H, W, 2 C)
        return ConvBNAct(channels, 3, act=self.act, name="bottleneck")(both, train, mask)
