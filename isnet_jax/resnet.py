"""ResNet v1c at output stride 8 (He et al., CVPR 2016; 3x3 stem of the "bag of tricks" paper, CVPR 2019)."""

import flax.linen as nn

from isnet_jax.layers import ConvBNAct, apply_mask, max_pool

STRIDES, DILATIONS = (1, 2, 1, 1), (1, 1, 2, 4)  # per stage: output stride 8


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18 and -34); only the first is dilated."""

    planes: int
    stride: int
    dilation: int
    project: bool

    expansion = 1

    @nn.compact
    def __call__(self, x, train, in_mask, mask):
        """x (B, H, W, C), masks at the block's input and output -> (B, ceil(H / stride), ..., planes)."""
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

    expansion = 4

    @nn.compact
    def __call__(self, x, train, in_mask, mask):
        """x (B, H, W, C), masks at the block's input and output -> (B, ceil(H / stride), ..., 4 planes)."""
        y = ConvBNAct(self.planes, 1, name="conv1")(x, train, in_mask)
        y = ConvBNAct(self.planes, 3, self.stride, self.dilation, name="conv2")(y, train, mask)
        y = ConvBNAct(4 * self.planes, 1, act=None, name="conv3")(y, train, mask)
        if self.project:
            x = ConvBNAct(4 * self.planes, 1, self.stride, act=None, name="downsample")(x, train, mask)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Stem and four stages; `block` is BasicBlock, Bottleneck or ResNeSt's block."""

    block: type
    depths: tuple[int, ...]
    stem_channels: int = 64
    remat: bool = False

    @nn.compact
    def __call__(self, x, train, masks):
        """x (B, H, W, 3), masks {2, 4, 8: (B, H/s, W/s, 1) or None} -> the outputs of the four stages."""
        half = self.stem_channels // 2

        def stem(_, x):
            for i, (features, stride) in enumerate(((half, 2), (half, 1), (self.stem_channels, 1))):
                x = ConvBNAct(features, 3, stride, name=f"stem{i + 1}")(x, train, masks[2])
            return apply_mask(max_pool(x), masks[4])

        x = (nn.remat(stem) if self.remat else stem)(self, x)
        block = nn.remat(self.block, static_argnums=(2,)) if self.remat else self.block
        outputs, level = [], 4
        for stage, (depth, stride, dilation) in enumerate(zip(self.depths, STRIDES, DILATIONS)):
            planes = 64 * 2**stage
            for i in range(depth):
                in_mask, s = masks[level], stride if i == 0 else 1
                level *= s
                x = block(
                    planes,
                    s,
                    max(dilation // 2, 1) if i == 0 else dilation,
                    project=s > 1 or x.shape[-1] != planes * self.block.expansion,
                    name=f"layer{stage + 1}_{i}",
                )(x, train, in_mask, masks[level])
            outputs.append(x)
        return tuple(outputs)
