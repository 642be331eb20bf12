"""Single-head attention whose memory grows with the number of pixels, not with its square."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from isnet_jax.models.layers import Array, has_symbolic_size, precision

MAX_SCORES = 2**22  # query x key scores held at once, per image


def attention(
    query: Float[Array, "b n d"],
    key: Float[Array, "b m d"],
    value: Float[Array, "b m e"],
    key_bias: Float[Array, "b m"] | None = None,
) -> Float[Array, "b n e"]:
    """softmax(query key^T / sqrt(D) + key_bias) value, with the softmax in float32 or wider.

    Above `MAX_SCORES` scores an image, queries are processed in blocks, and the backward pass rematerialises the
    scores of each block.
    """
    if has_symbolic_size(query) or has_symbolic_size(key):  # no number of blocks fits all sizes
        return _attend(query, key, value, key_bias)
    batch, num_queries, dim = query.shape
    block = max(1, MAX_SCORES // key.shape[1])
    if num_queries <= block:
        return _attend(query, key, value, key_bias)
    num_blocks = -(-num_queries // block)
    block = -(-num_queries // num_blocks)
    query = jnp.pad(query, ((0, 0), (0, num_blocks * block - num_queries), (0, 0)))
    blocks = query.reshape(batch, num_blocks, block, dim).swapaxes(0, 1)
    attend = jax.checkpoint(lambda block_query: _attend(block_query, key, value, key_bias))
    context = jax.lax.map(attend, blocks).swapaxes(0, 1)
    return context.reshape(batch, num_blocks * block, -1)[:, :num_queries]


def _attend(query: Array, key: Array, value: Array, key_bias: Array | None) -> Array:
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bnd,bmd->bnm", query, key, precision=precision(query.dtype), preferred_element_type=dtype)
    scores = scores * query.shape[-1] ** -0.5
    if key_bias is not None:
        scores = scores + key_bias[:, None].astype(dtype)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    return jnp.einsum("bnm,bme->bne", weights, value, precision=precision(value.dtype))


def cudnn_attention(
    query: Float[Array, "b n d"],
    key: Float[Array, "b m d"],
    value: Float[Array, "b m e"],
    key_bias: Float[Array, "b m"] | None = None,
) -> Float[Array, "b n e"]:
    """cuDNN's fused `attention`, which stores no scores. With a `key_bias`, `attention` itself: cuDNN's takes a bias of
    every score.

    Raises RuntimeError without cuDNN, and NotImplementedError for a dtype or D that it does not have.
    """
    if key_bias is not None:
        return attention(query, key, value, key_bias)
    heads = (jnp.asarray(x)[:, :, None] for x in (query, key, value))  # a single one
    return jax.nn.dot_product_attention(*heads, implementation="cudnn")[:, :, 0]


IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {"blocks": attention, "cudnn": cudnn_attention}
