"""ISNet (Jin et al., ICCV 2021): backbone, two context modules, two-stage classification."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float
from ml_collections import ConfigDict

from isnet_jax.errors import UserError
from isnet_jax.models.attention import IMPLEMENTATIONS
from isnet_jax.models.image_level_context import ImageLevelContext
from isnet_jax.models.layers import Array, Conv, ConvBNAct, Sizes, apply_mask, masks_by_stride, resize
from isnet_jax.models.resnest import SplitAttentionBottleneck
from isnet_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from isnet_jax.models.semantic_level_context import SemanticLevelContext

BACKBONES = {  # ResNets are v1c, the official code's; b: torchvision's 7x7 stem; d: pooled shortcuts
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "resnet152": partial(ResNet, Bottleneck, (3, 8, 36, 3)),
    "resnet50b": partial(ResNet, Bottleneck, (3, 4, 6, 3), deep_stem=False),
    "resnet101b": partial(ResNet, Bottleneck, (3, 4, 23, 3), deep_stem=False),
    "resnet50d": partial(ResNet, Bottleneck, (3, 4, 6, 3), pool_shortcuts=True),
    "resnet101d": partial(ResNet, Bottleneck, (3, 4, 23, 3), pool_shortcuts=True),
    "resnest50": partial(ResNet, SplitAttentionBottleneck, (3, 4, 6, 3), stem_channels=128),
    "resnest101": partial(ResNet, SplitAttentionBottleneck, (3, 4, 23, 3), stem_channels=128),
    "resnest200": partial(ResNet, SplitAttentionBottleneck, (3, 24, 36, 3), stem_channels=128),
}
CONTEXT_MODULES = {"image_level_context": "image-level", "semantic_level_context": "semantic-level"}
HEAD_CHANNELS = 512
ACTIVATIONS: dict[str, Callable] = {"relu": nn.relu, "leaky_relu": partial(nn.leaky_relu, negative_slope=0.01)}
DTYPES = ("float32", "bfloat16", "float64")


class ISNet(nn.Module):
    """The whole network; fields as in `config.model`."""

    backbone: str
    num_classes: int
    activation: str = "relu"  # of the head; the backbone keeps ReLU
    shortcut: bool = False  # stage 2 at stride 4, joined with the backbone's first stage
    image_level_context: bool = True  # False, for ablations: the features R stand in for R_il
    semantic_level_context: bool = True  # False, for ablations: stage 2 classifies R_il
    dropout: float = 0.1
    dtype: str = "float32"
    remat: bool = False  # rematerialise each block in the backward pass
    fixed_statistics: int = 0  # of that many stages of the backbone, the stem first: see ResNet
    attention: str = "blocks"  # of the image-level context: a key of `attention.IMPLEMENTATIONS`

    @property
    def output_stride(self) -> int:
        """Stride of `logits`: an image of h x w has ceil(h / stride) x ceil(w / stride) of them."""
        return 4 if self.shortcut else 8

    @property
    def description(self) -> str:
        """See `describe`."""
        return describe({name: getattr(self, name) for name in ("backbone", *CONTEXT_MODULES)})

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"], train: bool = False, valid_size: Sizes | None = None
    ) -> dict[str, Float[Array, "b _ _ k"]]:
        """Logits before the final resize, of normalised RGB images.

        Returns `logits` (B, ceil(H/8), ceil(W/8), K) (stride 4 with the shortcut), `stage1_logits` (stride 8) and, in
        training, `auxiliary_logits` (stride 8), in float32 (float64 if the images are). With `valid_size`, each image
        is the (h, w) at the top left of its padded input, its logits are the first ceil(h/8) x ceil(w/8), and the
        padding never changes them. Training needs `mutable=["batch_stats"]` and an rng named `dropout`.
        """
        act = ACTIVATIONS[self.activation]
        dtype = jnp.float64 if images.dtype == jnp.float64 else jnp.dtype(self.dtype)
        logits_dtype = jnp.promote_types(dtype, jnp.float32)
        sizes, masks = masks_by_stride(valid_size, *images.shape[1:3])
        mask = masks[8]

        def layer(module, train_argument=2):  # the position of `train`, self included
            return nn.remat(module, static_argnums=(train_argument,)) if self.remat else module

        def classify(x, name):
            dropout = nn.Dropout(self.dropout, broadcast_dims=(1, 2), name=f"{name}_dropout")  # whole channels
            x = dropout(x, deterministic=not train)
            return Conv(self.num_classes, use_bias=True, name=name)(x).astype(logits_dtype)

        x = apply_mask(jnp.asarray(images, dtype), masks[1])
        backbone = BACKBONES[self.backbone](remat=self.remat, fixed_statistics=self.fixed_statistics, name="backbone")
        stage1, _, stage3, stage4 = backbone(x, train, masks)
        feats = layer(ConvBNAct)(HEAD_CHANNELS, 3, act=act, name="bottleneck")(stage4, train, mask)
        context = feats
        if self.image_level_context:
            context = layer(ImageLevelContext)(act, self.attention, name="image_level_context")(feats, train, mask)
        x = layer(ConvBNAct)(HEAD_CHANNELS, act=act, name="stage1_head")(feats, train, mask)
        outputs = {"stage1_logits": classify(x, "stage1_classifier")}
        if self.semantic_level_context:
            context = layer(SemanticLevelContext, train_argument=4)(act, name="semantic_level_context")(
                feats, outputs["stage1_logits"], context, train, mask
            )
        x = context
        if self.shortcut:
            detail = ConvBNAct(48, use_bias=True, act=act, name="shortcut")(stage1, train, masks[4])
            x = apply_mask(resize(x, detail.shape[1:3], sizes[8], sizes[4]), masks[4])
            x = jnp.concatenate([x, detail], -1)
            x = layer(ConvBNAct)(HEAD_CHANNELS, act=act, name="stage2_head")(x, train, masks[4])
        outputs["logits"] = classify(x, "stage2_classifier")
        if train or self.is_initializing():
            x = layer(ConvBNAct)(HEAD_CHANNELS, 3, act=act, name="auxiliary_head")(stage3, train, mask)
            auxiliary_logits = classify(x, "auxiliary_classifier")
            if train:
                outputs["auxiliary_logits"] = auxiliary_logits
        return outputs


def describe(fields: Mapping[str, Any]) -> str:
    """The backbone, and the context modules that are off: "resnet50 ISNet without image-level context".

    fields: of ISNet, those that are known.
    """
    absent = " and ".join(level for name, level in CONTEXT_MODULES.items() if not fields.get(name, True))
    return " ".join(filter(None, [fields.get("backbone"), "ISNet", absent and f"without {absent} context"]))


def count_parameters(params: Any) -> int:
    """The number of scalars in a tree of arrays, or of their shapes."""
    return sum(x.size for x in jax.tree.leaves(params))


def create_model(config: ConfigDict | Mapping[str, Any]) -> ISNet:
    """ISNet from `config.model` (any mapping of ISNet's fields).

    Raises UserError for an unknown field, backbone, activation or dtype, naming the valid ones, and for numbers
    out of range.
    """
    fields = dict(config)
    unknown = sorted(set(fields) - set(ISNet.__dataclass_fields__) | {"parent", "name"} & set(fields))
    if unknown:
        valid = [name for name in ISNet.__dataclass_fields__ if name not in ("parent", "name")]
        raise UserError(f"config.model has no field {', '.join(unknown):.200}; its fields are {', '.join(valid)}.")
    choices: dict[str, Iterable[str]] = {
        "backbone": BACKBONES,
        "activation": ACTIVATIONS,
        "dtype": DTYPES,
        "attention": IMPLEMENTATIONS,
    }
    for field, names in choices.items():
        if field in fields and fields[field] not in names:
            raise UserError(f"config.model.{field} is {fields[field]!r:.200}; choose one of {', '.join(names)}.")
    if fields.get("dtype") == "float64" and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
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
