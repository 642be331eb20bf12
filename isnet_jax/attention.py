"""Single-head attention whose memory grows with the number of pixels, not with its square."""

import jax
import jax.numpy as jnp

from isnet_jax.layers import precision

MAX_SCORES = 2**22  # query x key scores held at once, per image


def attention(query, key, value, key_bias=None):
    """softmax(query key^T / sqrt(D) + key_bias) value, softmax in float32 or wider.

    query (B, N, D), key (B, M, D), value (B, M, E), key_bias (B, M) or None -> (B, N, E). Queries go in blocks
    once N x M exceeds `MAX_SCORES`, and the backward pass forms each block's scores again.
    """
    num_queries, block = query.shape[1], max(1, MAX_SCORES // key.shape[1])
    if num_queries <= block:
        return _attend(query, key, value, key_bias)
    num_blocks = -(-num_queries // block)
    block = -(-num_queries // num_blocks)
    query = jnp.pad(query, ((0, 0), (0, num_blocks * block - num_queries), (0, 0)))
    blocks = query.reshape(query.shape[0], num_blocks, block, -1).swapaxes(0, 1)
    attend = jax.checkpoint(lambda q: _attend(q, key, value, key_bias))
    context = jax.lax.map(attend, blocks).swapaxes(0, 1)
    return context.reshape(query.shape[0], num_blocks * block, -1)[:, :num_queries]


def _attend(query, key, value, key_bias):
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bnd,bmd->bnm", query, key, precision=precision(query.dtype), preferred_element_type=dtype)
    scores = scores * query.shape[-1] ** -0.5
    if key_bias is not None:
        scores = scores + key_bias[:, None].astype(dtype)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    return jnp.einsum("bnm,bme->bne", weights, value, precision=precision(value.dtype))
