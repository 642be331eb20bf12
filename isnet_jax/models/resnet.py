"""ResNet v1b, v1c and v1d at output stride 8 (He et al., CVPR 2016; the last two of "bag of tricks", CVPR 2019).

v1b has a 7x7 convolution as its stem (torchvision's ResNet). v1c has three of 3x3, the official ISNet's. v1d also pools
in its shortcuts (timm's resnet50d).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Float

from isnet_jax.models.layers import Array, ConvBNAct, Mask, apply_mask, avg_pool_2x2, avg_pool_2x2_dense, max_pool

PLANES = 64  # of the first stage; they double with every stage
STRIDES, DILATIONS = (1, 2, 1, 1), (1, 1, 2, 4)  # per stage: output stride 8
STAGES = "stem", "layer1", "layer2", "layer3", "layer4"  # how the names of ResNet's modules begin


def stage_of(module: str) -> int:
    """The index in STAGES of a module of ResNet, named as in "layer1_0"."""
    return next(i for i, stage in enumerate(STAGES) if module.startswith(stage))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18 and -34); only the first is dilated."""

    planes: int
    stride: int
    dilation: int
    project: bool

    expansion = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool, in_mask: Mask | None, mask: Mask | None
    ) -> Float[Array, "b h2 w2 o"]:
        """x -> (B, ceil(H / stride), ceil(W / stride), planes); masks at the block's input and output."""
        y = ConvBNAct(self.planes, 3, self.stride, self.dilation, name="conv1")(x, train, mask)
        y = ConvBNAct(self.planes, 3, act=None, name="conv2")(y, train, mask)
        if self.project:
            x = ConvBNAct(self.planes, 1, self.stride, act=None, name="downsample")(x, train, mask)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided, dilated), 1x1 convolutions (ResNet-50, -101 and -152)."""

    planes: int
    stride: int
    dilation: int
    project: bool
    pool: bool = False  # average 2x2 pixels of the shortcut before its projection

    expansion = 4

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool, in_mask: Mask | None, mask: Mask | None
    ) -> Float[Array, "b h2 w2 o"]:
        """x -> (B, ceil(H / stride), ceil(W / stride), 4 planes); masks at the block's input and output."""
        y = ConvBNAct(self.planes, 1, name="conv1")(x, train, in_mask)
        y = ConvBNAct(self.planes, 3, self.stride, self.dilation, name="conv2")(y, train, mask)
        y = ConvBNAct(4 * self.planes, 1, act=None, name="conv3")(y, train, mask)
        if self.project:
            stride = self.stride
            if self.pool:
                x, stride = avg_pool_2x2(x, in_mask) if stride > 1 else avg_pool_2x2_dense(x), 1
            x = ConvBNAct(4 * self.planes, 1, stride, act=None, name="downsample")(x, train, mask)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Stem and four stages; `block` is BasicBlock, Bottleneck or ResNeSt's block."""

    block: Any
    depths: tuple[int, ...]
    stem_channels: int = 64
    deep_stem: bool = True  # three 3x3 convolutions; False: one of 7x7
    pool_shortcuts: bool = False  # of each stage but the first
    remat: bool = False
    fixed_statistics: int = 0  # of that many STAGES: batch norm takes the running statistics in training, too

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 3"], train: bool, masks: Mapping[int, Mask | None]
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """x -> the outputs of the four stages; masks: of the strides 2, 4 and 8."""
        half = self.stem_channels // 2
        stage_trains = [train and i >= self.fixed_statistics for i in range(len(STAGES))]

        def stem(_, x):
            if not self.deep_stem:
                x = ConvBNAct(self.stem_channels, 7, 2, name="stem")(x, stage_trains[0], masks[2])
                return apply_mask(max_pool(x), masks[4])
            for i, (features, stride) in enumerate(((half, 2), (half, 1), (self.stem_channels, 1))):
                x = ConvBNAct(features, 3, stride, name=f"stem{i + 1}")(x, stage_trains[0], masks[2])
            return apply_mask(max_pool(x), masks[4])

        x = (nn.remat(stem) if self.remat else stem)(self, x)
        block = nn.remat(self.block, static_argnums=(2,)) if self.remat else self.block
        outputs, output_stride = [], 4
        for stage, (depth, stage_stride, dilation) in enumerate(zip(self.depths, STRIDES, DILATIONS)):
            planes = PLANES * 2**stage
            for i in range(depth):
                stride = stage_stride if i == 0 else 1
                in_mask, mask = masks[output_stride], masks[output_stride * stride]
                # timm pools in the dilated stages, too, where gluon and mmsegmentation do not
                pool = {"pool": True} if self.pool_shortcuts and i == 0 and stage > 0 else {}
                x = block(
                    planes,
                    stride,
                    dilation=max(dilation // 2, 1) if i == 0 else dilation,
                    project=stride > 1 or x.shape[-1] != planes * self.block.expansion,
                    **pool,
                    name=f"layer{stage + 1}_{i}",
                )(x, stage_trains[stage + 1], in_mask, mask)
                output_stride *= stride
            outputs.append(x)
        return tuple(outputs)
