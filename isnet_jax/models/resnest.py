"""The block of ResNeSt (Zhang et al., 2020): a bottleneck with split attention, radix 2, one group."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from isnet_jax.models.layers import Array, Conv, ConvBNAct, Mask, avg_pool_2x2, avg_pool_3x3, masked_mean

RADIX, REDUCTION = 2, 4


class SplitAttention(nn.Module):
    """3x3 convolution into two splits, weighted per channel by attention over their global averages."""

    features: int
    dilation: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool, mask: Mask | None) -> Float[Array, "b h w c"]:
        """x (B, H, W, features) -> same shape."""
        y = ConvBNAct(RADIX * self.features, 3, 1, self.dilation, groups=RADIX, name="conv")(x, train, mask)
        splits = y.reshape(*y.shape[:3], RADIX, self.features)  # (B, H, W, R, C)
        pooled = masked_mean(splits.sum(3), mask)  # (B, 1, 1, C)
        hidden = max(self.features * RADIX // REDUCTION, 32)
        pooled = ConvBNAct(hidden, use_bias=True, name="fc1")(pooled, train)
        weights = Conv(RADIX * self.features, use_bias=True, name="fc2")(pooled)
        weights = weights.reshape(-1, 1, 1, RADIX, self.features).astype(jnp.promote_types(y.dtype, jnp.float32))
        return (jax.nn.softmax(weights, axis=3).astype(y.dtype) * splits).sum(3)


class SplitAttentionBottleneck(nn.Module):
    """1x1, split attention, 3x3/2 average pool where strided, 1x1; the shortcut is pooled, then projected."""

    planes: int
    stride: int
    dilation: int
    project: bool

    expansion = 4

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool, in_mask: Mask | None, mask: Mask | None
    ) -> Float[Array, "b h2 w2 o"]:
        """x -> (B, ceil(H / stride), ceil(W / stride), 4 planes); masks at the block's input and output."""
        y = ConvBNAct(self.planes, 1, name="conv1")(x, train, in_mask)
        y = SplitAttention(self.planes, self.dilation, name="split_attention")(y, train, in_mask)
        if self.stride > 1:
            y = avg_pool_3x3(y)
        y = ConvBNAct(4 * self.planes, 1, act=None, name="conv3")(y, train, mask)
        if self.project:
            x = avg_pool_2x2(x, in_mask) if self.stride > 1 else x
            x = ConvBNAct(4 * self.planes, 1, act=None, name="downsample")(x, train, mask)
        return nn.relu(x + y)
