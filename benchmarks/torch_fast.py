"""The fastest PyTorch ISNet that computes the same function: fused attention, and class tokens instead of pixels.

`ISNet` takes the state dicts of `torch_isnet.ISNet` and returns what it returns. What differs: attention is
`scaled_dot_product_attention`; the semantic-level context attends to one token per class, without a loop, with batch
norm weighted by the pixels of each class; and the pixels' mean is projected once per image.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import torch_isnet


def class_tokens(feats: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The token (B, C, K) of each class, as `torch_isnet.class_vectors` weights it, and its pixels (B, K).

    feats (B, C, N), logits (B, K, N).
    """
    wins = F.one_hot(logits.argmax(1), logits.shape[1]).transpose(1, 2).bool()  # (B, K, N)
    weights = _at_least_float32(logits).masked_fill(~wins, -torch.inf).softmax(-1).nan_to_num(0)  # NaN: no pixels
    return torch.einsum("bcn,bkn->bck", feats, weights.to(feats.dtype)), wins.sum(-1)


def project_tokens(projection: nn.Sequential, tokens: Tensor, counts: Tensor) -> Tensor:
    """conv-BN-act layers on tokens (B, C, K), each of which stands for `counts` (B, K) pixels in batch norm."""
    x, weight = tokens[..., None], _at_least_float32(counts[:, None, :, None])
    for layer in projection:
        if isinstance(layer, nn.Sequential):
            x = project_tokens(layer, x[..., 0], counts)[..., None]
        elif isinstance(layer, nn.BatchNorm2d) and layer.training:
            x = _weighted_batch_norm(layer, x, weight)
        else:
            x = layer(x)
    return x[..., 0]


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _weighted_batch_norm(norm: nn.BatchNorm2d, x: Tensor, weight: Tensor) -> Tensor:
    total, y = weight.sum(), _at_least_float32(x)
    mean = (weight * y).sum((0, 2, 3)) / total
    y = y - mean[:, None, None]
    var = (weight * y * y).sum((0, 2, 3)) / total
    with torch.no_grad():
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var * total / (total - 1), norm.momentum)
        norm.num_batches_tracked += 1
    scale = norm.weight * (var + norm.eps).rsqrt()
    return (y * scale[:, None, None] + norm.bias[:, None, None]).to(x.dtype)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B, C, N) queries, (B, C, M) keys and values, (B, M) biases of keys -> (B, C, N)."""
    query, key, value = (x.transpose(1, 2)[:, None].contiguous() for x in (query, key, value))
    mask = None if bias is None else bias[:, None, None].to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, mask)[:, 0].transpose(1, 2)


class ImageLevelContext(torch_isnet.ImageLevelContext):
    """With fused attention, and without the concatenated mean."""

    def forward(self, feats: Tensor) -> Tensor:
        net, mean = self.correlate_net, feats.mean((2, 3), keepdim=True)

        def project_both(block):  # the 1x1 convolution of concat(mean, feats)
            kernel, channels = block[0].weight, feats.shape[1]
            both = F.conv2d(feats, kernel[:, channels:]) + F.conv2d(mean, kernel[:, :channels])
            return block[2](block[1](both))

        query = net.query_project(feats)
        key = net.key_project[1](project_both(net.key_project[0]))
        value = project_both(net.value_project)
        context = _attend(*(x.flatten(2) for x in (query, key, value)))
        context = net.out_project(context.unflatten(2, feats.shape[2:]))
        return self.bottleneck(torch.cat([feats, context], 1))


class SemanticLevelContext(torch_isnet.SemanticLevelContext):
    """Over class tokens."""

    def forward(self, feats: Tensor, logits: Tensor, image_context: Tensor) -> Tensor:
        net = self.correlate_net
        tokens, counts = class_tokens(feats.flatten(2), logits.flatten(2))
        query = net.query_project(feats).flatten(2)
        key, value = (project_tokens(x, tokens, counts) for x in (net.key_project, net.value_project))
        context = _attend(query, key, value, counts.to(torch.promote_types(feats.dtype, torch.float32)).log())
        context = net.out_project(context.unflatten(2, feats.shape[2:]))
        return self.bottleneck(torch.cat([image_context, context], 1))


class ISNet(torch_isnet.ISNet):
    """`torch_isnet.ISNet` with the two modules above."""

    def __init__(self, *args, **fields):
        super().__init__(*args, **fields)
        self.ilc_net.__class__, self.slc_net.__class__ = ImageLevelContext, SemanticLevelContext
