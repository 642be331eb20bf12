"""ISNet in PyTorch, written as in the paper: the baseline for speed and the oracle for parity.

Attention builds the full N x N matrix over pixels, and the semantic-level context loops over images and classes.
Attributes have the names of the official checkpoints, so `ISNet(...).load_state_dict(torch.load(path)["model"])` is
strict in both directions. The file needs only PyTorch, and nothing in `isnet_jax` imports it.

Shapes: B images, C channels, H x W pixels, N = H W.

    net = ISNet("resnet50", num_classes=150).eval()
    logits, stage1_logits = net(images)                # (B, 3, H, W) -> twice (B, classes, H/8, W/8)

    net.train()
    losses(net(images), labels)["total"].backward()    # labels (B, H, W), 255 = ignored
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOSS_WEIGHTS = {"aux": 0.4, "stage1": 0.4, "stage2": 1.0}
IGNORED = 255
RADIX = 2  # splits of a ResNeSt convolution

Activation = Callable[[], nn.Module]


def conv(
    inputs: int, outputs: int, size: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    """A convolution with symmetric padding, so that stride 1 keeps the size."""
    return nn.Conv2d(inputs, outputs, size, stride, dilation * (size // 2), dilation, groups, bias)


def conv_norm_act(
    inputs: int, outputs: int, size: int, act: Activation, stride: int = 1, bias: bool = False
) -> nn.Sequential:
    """Convolution, batch norm and activation."""
    return nn.Sequential(conv(inputs, outputs, size, stride, bias=bias), nn.BatchNorm2d(outputs), act())


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of (B, C, H, W) to (B, C, *size)."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


# --- backbones -----------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18 and 34), of which only the first is dilated."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, downsample: nn.Module | None):
        super().__init__()
        self.conv1 = conv(inputs, width, 3, stride, dilation)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + identity)


class Bottleneck(nn.Module):
    """1x1 convolution, 3x3 convolution with the stride and the dilation, 1x1 convolution to four times the width."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, downsample: nn.Module | None):
        super().__init__()
        self.conv1 = conv(inputs, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride, dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, 4 * width)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + identity)


class SplitAttention(nn.Module):
    """Grouped 3x3 convolution to RADIX feature maps, and their sum weighted per image and channel."""

    def __init__(self, width: int, dilation: int):
        super().__init__()
        hidden = max(width * RADIX // 4, 32)
        self.conv = conv(width, width * RADIX, 3, 1, dilation, groups=RADIX)
        self.bn0 = nn.BatchNorm2d(width * RADIX)
        self.fc1 = conv(width, hidden, bias=True)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.fc2 = conv(hidden, width * RADIX, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        splits = F.relu(self.bn0(self.conv(x))).unflatten(1, (RADIX, -1))  # (B, RADIX, width, h, w)
        pooled = splits.sum(1).mean((2, 3), keepdim=True)
        scores = self.fc2(F.relu(self.bn1(self.fc1(pooled)))).unflatten(1, (RADIX, -1))
        return (scores.softmax(1) * splits).sum(1)


class SplitBottleneck(nn.Module):
    """The ResNeSt block; average pooling after the split attention applies the stride."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, downsample: nn.Module | None):
        super().__init__()
        self.conv1 = conv(inputs, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = SplitAttention(width, dilation)
        self.pool = nn.AvgPool2d(3, stride, padding=1) if stride > 1 else nn.Identity()  # counts the padding
        self.conv3 = conv(width, 4 * width)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.pool(self.conv2(x))
        return F.relu(self.bn3(self.conv3(x)) + identity)


BACKBONES = {  # block, blocks per stage, channels after the stem
    "resnet18": (BasicBlock, (2, 2, 2, 2), 64),
    "resnet34": (BasicBlock, (3, 4, 6, 3), 64),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 64),
    "resnet101": (Bottleneck, (3, 4, 23, 3), 64),
    "resnet152": (Bottleneck, (3, 8, 36, 3), 64),
    "resnest50": (SplitBottleneck, (3, 4, 6, 3), 128),
    "resnest101": (SplitBottleneck, (3, 4, 23, 3), 128),
    "resnest200": (SplitBottleneck, (3, 24, 36, 3), 128),
}


class Backbone(nn.Module):
    """ResNet v1c or ResNeSt at output stride 8."""

    def __init__(self, name: str):
        super().__init__()
        block, depths, channels = BACKBONES[name]
        self.stem = nn.Sequential(
            *conv_norm_act(3, channels // 2, 3, nn.ReLU, stride=2),
            *conv_norm_act(channels // 2, channels // 2, 3, nn.ReLU),
            *conv_norm_act(channels // 2, channels, 3, nn.ReLU),
        )
        self.channels = [64 * 2**stage * block.expansion for stage in range(4)]
        for stage, (stride, dilation) in enumerate([(1, 1), (2, 1), (1, 2), (1, 4)]):
            blocks = []
            for i in range(depths[stage]):
                outputs = self.channels[stage]
                step = stride if i == 0 else 1
                downsample = None
                if step > 1 or channels != outputs:
                    if block is SplitBottleneck:
                        pool = nn.AvgPool2d(step, step, ceil_mode=True, count_include_pad=False)
                        downsample = nn.Sequential(pool, conv(channels, outputs), nn.BatchNorm2d(outputs))
                    else:
                        downsample = nn.Sequential(conv(channels, outputs, 1, step), nn.BatchNorm2d(outputs))
                block_dilation = max(dilation // 2, 1) if i == 0 else dilation
                blocks.append(block(channels, 64 * 2**stage, step, block_dilation, downsample))
                channels = outputs
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Outputs of the four stages, at strides 4, 8, 8 and 8."""
        x = F.max_pool2d(self.stem(x), 3, 2, padding=1)
        outputs = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            outputs.append(x)
        return outputs


# --- context modules -----------------------------------------------------------------------------


class Attention(nn.Module):
    """Every pixel of `feats` attends to every pixel of `source`."""

    def __init__(self, feats_channels: int, source_channels: int, act: Activation, width: int = 256):
        super().__init__()
        self.key_project = nn.Sequential(
            conv_norm_act(source_channels, width, 1, act), conv_norm_act(width, width, 1, act)
        )
        self.query_project = nn.Sequential(
            conv_norm_act(feats_channels, width, 1, act), conv_norm_act(width, width, 1, act)
        )
        self.value_project = conv_norm_act(source_channels, width, 1, act)
        self.out_project = conv_norm_act(width, feats_channels, 1, act)

    def forward(self, feats: Tensor, source: Tensor) -> Tensor:
        query = self.query_project(feats).flatten(2)  # (B, width, N)
        key = self.key_project(source).flatten(2)
        value = self.value_project(source).flatten(2)
        scores = query.transpose(1, 2) @ key * query.shape[1] ** -0.5  # (B, N, N)
        context = scores.softmax(-1) @ value.transpose(1, 2)  # (B, N, width)
        return self.out_project(context.transpose(1, 2).unflatten(2, feats.shape[2:]))


class ImageLevelContext(nn.Module):
    """Attention of the pixels to the pixels joined with their mean (paper, section 3.2)."""

    def __init__(self, channels: int, act: Activation):
        super().__init__()
        self.correlate_net = Attention(channels, 2 * channels, act)
        self.bottleneck = conv_norm_act(2 * channels, channels, 3, act)

    def forward(self, feats: Tensor) -> Tensor:
        mean = feats.mean((2, 3), keepdim=True).expand_as(feats)
        context = self.correlate_net(feats, torch.cat([mean, feats], 1))
        return self.bottleneck(torch.cat([feats, context], 1))


def class_vectors(feats: Tensor, logits: Tensor) -> Tensor:
    """Replaces each pixel's features (B, C, H, W) by the mean over its predicted class in its image.

    The mean is weighted by the softmax, over the pixels of the class, of that class's logits (B, K, H, W). Gradients
    flow to `feats` and, through the weights, to `logits`.
    """
    out = torch.zeros_like(feats).flatten(2)
    for b in range(len(feats)):
        pixels, scores = feats[b].flatten(1), logits[b].flatten(1)  # (channels, N), (classes, N)
        winner = scores.argmax(0)
        for c in range(len(scores)):
            mask = winner == c
            if mask.any():
                weights = scores[c, mask].softmax(0)
                vector = (pixels[:, mask] * weights).sum(1, keepdim=True)
                out[b][:, mask] = vector.to(out.dtype)
    return out.view_as(feats)


class SemanticLevelContext(nn.Module):
    """Attention of the pixels to their class vectors (paper, section 3.3)."""

    def __init__(self, channels: int, act: Activation):
        super().__init__()
        self.correlate_net = Attention(channels, channels, act)
        self.bottleneck = conv_norm_act(2 * channels, channels, 3, act)

    def forward(self, feats: Tensor, logits: Tensor, image_context: Tensor) -> Tensor:
        context = self.correlate_net(feats, class_vectors(feats, logits))
        return self.bottleneck(torch.cat([image_context, context], 1))


# --- the whole network ---------------------------------------------------------------------------


class ISNet(nn.Module):
    """The whole network. LIP uses `shortcut` and `leaky_relu`; `dropout` drops whole channels.

    For ablations, either context module can be left out: the features, or the image-level context, take its place.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        num_classes: int = 150,
        shortcut: bool = False,
        leaky_relu: bool = False,
        dropout: float = 0.1,
        image_level_context: bool = True,
        semantic_level_context: bool = True,
    ):
        super().__init__()

        def act() -> nn.Module:
            return nn.LeakyReLU(0.01) if leaky_relu else nn.ReLU()

        def classifier(inputs: int, size: int) -> nn.Sequential:
            return nn.Sequential(
                *conv_norm_act(inputs, 512, size, act), nn.Dropout2d(dropout), conv(512, num_classes, bias=True)
            )

        self.backbone_net = Backbone(backbone)
        first, _, third, last = self.backbone_net.channels
        self.bottleneck = conv_norm_act(last, 512, 3, act)
        self.ilc_net = ImageLevelContext(512, act) if image_level_context else None
        self.slc_net = SemanticLevelContext(512, act) if semantic_level_context else None
        self.decoder_stage1 = classifier(512, 1)
        self.shortcut = None
        if shortcut:
            self.shortcut = conv_norm_act(first, 48, 1, act, bias=True)
            self.decoder_stage2 = classifier(512 + 48, 1)
        else:
            self.decoder_stage2 = nn.Sequential(nn.Dropout2d(dropout), conv(512, num_classes, bias=True))
        self.auxiliary_decoder = classifier(third, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        """Logits (B, K, h, w) of images (B, 3, H, W): (stage 2, stage 1), in training {"aux", "stage1", "stage2"}."""
        first, _, third, last = self.backbone_net(x)
        feats = self.bottleneck(last)
        stage1 = self.decoder_stage1(feats)
        context = feats if self.ilc_net is None else self.ilc_net(feats)
        if self.slc_net is not None:
            context = self.slc_net(feats, stage1, context)
        if self.shortcut is not None:
            detail = self.shortcut(first)
            context = torch.cat([resize(context, detail.shape[2:]), detail], 1)
        stage2 = self.decoder_stage2(context)
        if not self.training:
            return stage2, stage1
        return {"aux": self.auxiliary_decoder(third), "stage1": stage1, "stage2": stage2}


def losses(outputs: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """The weighted cross entropies by name, and their sum as "total"; labels (B, H, W), 255 ignored."""
    result = {}
    for name, weight in LOSS_WEIGHTS.items():
        logits = resize(outputs[name], labels.shape[1:])
        result[name] = weight * F.cross_entropy(logits, labels.long(), ignore_index=IGNORED)
    result["total"] = sum(result.values())
    return result
