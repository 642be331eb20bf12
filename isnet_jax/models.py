"""ISNet (Jin et al., ICCV 2021): backbone, two context modules, two-stage classification."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from isnet_jax.errors import UserError
from isnet_jax.image_level_context import ImageLevelContext
from isnet_jax.layers import ChannelDropout, Conv, ConvBNAct, apply_mask, halve, resize, valid_mask
from isnet_jax.resnest import SplitAttentionBottleneck
from isnet_jax.resnet import BasicBlock, Bottleneck, ResNet
from isnet_jax.semantic_level_context import SemanticLevelContext

BACKBONES = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "resnet152": partial(ResNet, Bottleneck, (3, 8, 36, 3)),
    "resnest50": partial(ResNet, SplitAttentionBottleneck, (3, 4, 6, 3), stem_channels=128),
    "resnest101": partial(ResNet, SplitAttentionBottleneck, (3, 4, 23, 3), stem_channels=128),
    "resnest200": partial(ResNet, SplitAttentionBottleneck, (3, 24, 36, 3), stem_channels=128),
}
ACTIVATIONS = {"relu": nn.relu, "leaky_relu": partial(nn.leaky_relu, negative_slope=0.01)}
DTYPES = ("float32", "bfloat16", "float64")


class ISNet(nn.Module):
    """The whole network; fields as in `config.model`."""

    backbone: str
    num_classes: int
    activation: str = "relu"  # of the head; the backbone keeps ReLU
    shortcut: bool = False  # stage 2 at stride 4, joined with the backbone's first stage
    dropout: float = 0.1
    dtype: str = "float32"
    remat: bool = False  # form each block again in the backward pass

    @property
    def output_stride(self):
        """Of `logits`: an image of h x w has ceil(h / stride) x ceil(w / stride) of them."""
        return 4 if self.shortcut else 8

    @nn.compact
    def __call__(self, images, train=False, valid_size=None):
        """Logits before the final resize.

        images (B, H, W, 3), normalised RGB. `valid_size` (B, 2), the (h, w) of each image at the top left of its
        canvas: what lies outside it never changes the logits inside. Returns a mapping of
        `logits` (B, ceil(H/8), ceil(W/8), K) (stride 4 with the shortcut), `stage1_logits` (stride 8) and, in
        training, `auxiliary_logits` (stride 8), each float32 (float64 where the images are). Where `valid_size`
        is given the first ceil(h/8) x ceil(w/8) are the image's. `train` may be in how many parts each layer goes over
        the batch (layers.py). Training needs `mutable=["batch_stats"]` and
        an rng named `dropout`.
        """
        act = ACTIVATIONS[self.activation]

        def layer(module, train_argument=2):
            return nn.remat(module, static_argnums=(train_argument,)) if self.remat else module

        dtype = jnp.float64 if images.dtype == jnp.float64 else jnp.dtype(self.dtype)
        wide = jnp.promote_types(dtype, jnp.float32)
        masks, sizes, size, shape = {}, {}, valid_size, images.shape[1:3]
        for stride in (1, 2, 4, 8):
            sizes[stride], masks[stride] = size, None if size is None else valid_mask(size, *shape)
            size, shape = None if size is None else halve(size), [halve(n) for n in shape]

        x = apply_mask(images.astype(dtype), masks[1])
        stage1, _, stage3, stage4 = BACKBONES[self.backbone](remat=self.remat, name="backbone")(x, train, masks)

        def classifier(x, name):
            x = ChannelDropout(self.dropout, name=f"{name}_dropout")(x, train)
            return Conv(self.num_classes, use_bias=True, name=name)(x).astype(wide)

        mask = masks[8]
        feats = layer(ConvBNAct)(512, 3, act=act, name="bottleneck")(stage4, train, mask)
        image_context = layer(ImageLevelContext)(act, name="image_level_context")(feats, train, mask)
        x = layer(ConvBNAct)(512, act=act, name="stage1_head")(feats, train, mask)
        outputs = {"stage1_logits": classifier(x, "stage1_classifier")}
        x = layer(SemanticLevelContext, 4)(act, name="semantic_level_context")(
            feats, outputs["stage1_logits"], image_context, train, mask
        )
        if self.shortcut:
            detail = ConvBNAct(48, use_bias=True, act=act, name="shortcut")(stage1, train, masks[4])
            x = apply_mask(resize(x, detail.shape[1:3], sizes[8], sizes[4]), masks[4])
            x = jnp.concatenate([x, detail], -1)
            x = layer(ConvBNAct)(512, act=act, name="stage2_head")(x, train, masks[4])
        outputs["logits"] = classifier(x, "stage2_classifier")
        if train or self.is_initializing():
            x = layer(ConvBNAct)(512, 3, act=act, name="auxiliary_head")(stage3, train, mask)
            auxiliary_logits = classifier(x, "auxiliary_classifier")
            if train:
                outputs["auxiliary_logits"] = auxiliary_logits
        return outputs


def create_model(config):
    """ISNet from `config.model` (any mapping of ISNet's fields).

    Raises UserError for an unknown field, backbone, activation or dtype, naming the valid ones, and for numbers
    out of range.
    """
    fields = dict(config)
    unknown = sorted(set(fields) - set(ISNet.__dataclass_fields__) | {"parent", "name"} & set(fields))
    if unknown:
        valid = [name for name in ISNet.__dataclass_fields__ if name not in ("parent", "name")]
        raise UserError(f"config.model has no field {', '.join(unknown):.200}; its fields are {', '.join(valid)}.")
    for field, valid in (("backbone", BACKBONES), ("activation", ACTIVATIONS), ("dtype", DTYPES)):
        if field in fields and fields[field] not in valid:
            raise UserError(f"config.model.{field} is {fields[field]!r:.200}; choose one of {', '.join(valid)}.")
    if fields.get("dtype") == "float64" and not jax.config.jax_enable_x64:
        raise UserError(
            "config.model.dtype is float64, which JAX only computes with JAX_ENABLE_X64=1 in the environment."
        )
    for field in ("backbone", "num_classes"):
        if field not in fields:
            raise UserError(f"config.model.{field} is missing; set it in the config file.")
    if not 1 <= fields["num_classes"] <= 255:
        raise UserError(
            f"config.model.num_classes is {fields['num_classes']}; it must be from 1 to 255, since "
            "255 marks ignored pixels."
        )
    if not 0 <= fields.get("dropout", 0.1) < 1:
        raise UserError(f"config.model.dropout is {fields['dropout']}; it must be at least 0 and below 1.")
    return ISNet(**fields)
