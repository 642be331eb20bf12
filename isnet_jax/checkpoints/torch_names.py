"""The official PyTorch names of the network's variables, and conversion of state dicts both ways, bit by bit."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from isnet_jax.errors import UserError, mismatches
from isnet_jax.models.isnet import BACKBONES, ISNet

_BLOCK = r"backbone/layer(\d)_(\d+)/"
_CONTEXTS = {"image_level_context": "ilc_net", "semantic_level_context": "slc_net"}
_LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
    "num_batches_tracked": "num_batches_tracked",
}


def _official_modules(path: str, model: ISNet) -> tuple[str, str | None]:
    """The official names of the convolution and the batch norm (None without one) of our module `path`."""
    pools = model.backbone.startswith("resnest") or model.backbone.endswith("d")

    def sequential(prefix, first=0):
        return f"{prefix}.{first}", f"{prefix}.{first + 1}"

    if m := re.fullmatch(r"backbone/stem(\d)", path):
        return sequential("backbone_net.stem", 3 * int(m[1]) - 3)
    if path == "backbone/stem":
        return "backbone_net.conv1", "backbone_net.bn1"
    if m := re.fullmatch(_BLOCK + "downsample", path):  # ResNeSt and v1d pool first
        return sequential(f"backbone_net.layer{m[1]}.{m[2]}.downsample", int(pools))
    if m := re.fullmatch(_BLOCK + r"conv(\d)", path):
        block = f"backbone_net.layer{m[1]}.{m[2]}"
        return f"{block}.conv{m[3]}", f"{block}.bn{m[3]}"
    if m := re.fullmatch(_BLOCK + r"split_attention/(conv|fc1|fc2)", path):
        block = f"backbone_net.layer{m[1]}.{m[2]}.conv2"
        return f"{block}.{m[3]}", f"{block}.{'bn0' if m[3] == 'conv' else 'bn1'}"
    if m := re.fullmatch(r"(\w+_level_context)/bottleneck", path):
        return sequential(f"{_CONTEXTS[m[1]]}.bottleneck")
    if m := re.fullmatch(r"(\w+_level_context)/(query|key|value|out)(\d?)", path):
        number = f".{int(m[3]) - 1}" if m[3] else ""
        return sequential(f"{_CONTEXTS[m[1]]}.correlate_net.{m[2]}_project{number}")
    return {
        "bottleneck": sequential("bottleneck"),
        "shortcut": sequential("shortcut"),
        "stage1_head": sequential("decoder_stage1"),
        "stage1_classifier": ("decoder_stage1.4", None),
        "stage2_head": sequential("decoder_stage2"),
        "stage2_classifier": ("decoder_stage2.4" if model.shortcut else "decoder_stage2.1", None),
        "auxiliary_head": sequential("auxiliary_decoder"),
        "auxiliary_classifier": ("auxiliary_decoder.4", None),
    }[path]


def variable_shapes(model: ISNet) -> dict[str, Any]:
    """{"params", "batch_stats"} of `model`, as trees of jax.ShapeDtypeStruct."""
    return dict(jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))))


def official_names(model: ISNet) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """{official name: (path of our variable, official shape)} for every variable of `model`."""
    names = {}
    for path, leaf in traverse_util.flatten_dict(variable_shapes(model)).items():
        *modules, name = path[1:]
        layer = modules.pop() if modules[-1] in ("conv", "bn") else "conv"
        conv, bn = _official_modules("/".join(modules), model)
        shape = tuple(leaf.shape[i] for i in (3, 2, 0, 1)) if name == "kernel" else leaf.shape
        names[f"{conv if layer == 'conv' else bn}.{_LEAVES[name]}"] = path, shape
    return names


def _to_numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().numpy() if hasattr(tensor, "detach") else np.asarray(tensor)


def _convert(state_dict: Mapping[str, Any], names: Mapping[str, tuple], network: str) -> dict[str, Any]:
    """State dict -> nested variables, with `names` as returned by `official_names`.

    Raises UserError with every mismatch, which says that the checkpoint does not hold `network`.
    """
    optional = {name for name in names if name.endswith("num_batches_tracked")}  # absent before PyTorch 0.4.1
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    faults = mismatches(shapes, {name: shape for name, (_, shape) in names.items()}, optional)
    if faults:
        raise UserError(
            f"The checkpoint does not hold {network} ({faults}). Check that config.model (backbone, num_classes, "
            "shortcut, context modules) matches the checkpoint."
        )
    variables = {}
    for name, (path, _) in names.items():
        array = _to_numpy(state_dict.get(name, np.zeros((), np.int64)))
        if path[-1] == "kernel":
            array = np.ascontiguousarray(array.transpose(2, 3, 1, 0))  # OIHW -> HWIO
        elif path[-1] == "num_batches_tracked":
            array = array.astype(np.int32)
        variables[path] = array
    return traverse_util.unflatten_dict(variables)


def from_torch(state_dict: Mapping[str, Any], model: ISNet) -> dict[str, Any]:
    """Official ISNet state dict -> {"params", "batch_stats"} of `model`, as NumPy arrays of the same dtypes.

    The state dict maps names to arrays or tensors, kernels in OIHW order, as in `torch.load(...)["model"]`. Raises
    UserError that lists every name that is missing, unexpected or of the wrong shape.
    """
    shortcut = " and the shortcut" if model.shortcut else ""
    network = f"the {model.description}, with {model.num_classes} classes{shortcut}"
    return _convert(state_dict, official_names(model), network)


def to_torch(variables: Mapping[str, Any], model: ISNet) -> dict[str, np.ndarray]:
    """{"params", "batch_stats"} of `model` -> official ISNet state dict of NumPy arrays, kernels in OIHW order.

    Raises UserError that lists every variable that is missing, unexpected or of the wrong shape.
    """
    flat = traverse_util.flatten_dict(dict(variables))
    expected = traverse_util.flatten_dict(variable_shapes(model))
    faults = mismatches(
        *({"/".join(path): tuple(leaf.shape) for path, leaf in tree.items()} for tree in (flat, expected))
    )
    if faults:
        raise UserError(
            f"The variables are not those of the {model.description} with {model.num_classes} classes ({faults})."
        )
    state_dict = {}
    for name, (path, _) in official_names(model).items():
        array = np.asarray(flat[path])
        if path[-1] == "kernel":
            array = np.ascontiguousarray(array.transpose(3, 2, 0, 1))  # HWIO -> OIHW
        elif path[-1] == "num_batches_tracked":
            array = array.astype(np.int64)
        state_dict[name] = array
    return state_dict


def backbone_from_torch(state_dict: Mapping[str, Any], model: ISNet) -> dict[str, Any]:
    """State dict of an ImageNet backbone -> {"params": {"backbone"}, "batch_stats": {"backbone"}} of `model`.

    Accepts the official names, torchvision's and timm's (resnet50d, resnet50c, resnest101e, ...), with or without the
    prefix `backbone.`, and ignores the ImageNet classifier. Raises UserError for another network, and lists every name
    that is missing, unexpected or of the wrong shape.
    """
    tensors = {}
    for name, tensor in state_dict.items():
        name = re.sub(r"^(backbone|backbone_net)\.", "", name)
        name = re.sub(r"^conv1\.(\d)\.", r"stem.\1.", name)  # timm's deep stem
        if not re.match(r"(fc|head\.fc)\.", name):
            tensors[name] = tensor
    _check_variant(tensors, model)
    if "conv1.weight" not in tensors:
        tensors = {re.sub(r"^bn1\.", "stem.7.", name): tensor for name, tensor in tensors.items()}  # timm's, again
    names = {
        name.removeprefix("backbone_net."): path_and_shape
        for name, path_and_shape in official_names(model).items()
        if name.startswith("backbone_net.")
    }
    return _convert(tensors, names, f"the backbone {model.backbone}")


_VARIANTS = {
    "b": "whose stem is a single 7x7 convolution (torchvision's)",
    "c": "whose stem is three 3x3 convolutions (mmcls resnet50_v1c, timm resnet50c)",
    "d": "whose stem is three 3x3 convolutions and whose shortcuts are pooled (timm resnet50d)",
}


def _check_variant(tensors: Mapping[str, Any], model: ISNet) -> None:
    """Raises UserError, which names the backbone to write, if a ResNet is of another variant than `model`'s."""
    if model.backbone.startswith("resnest") or any(".conv2.fc1." in name for name in tensors):
        return
    pools = any(re.search(r"\.downsample\.2\.", name) for name in tensors)
    found = "b" if "conv1.weight" in tensors else "d" if pools else "c"
    depth, expected = re.fullmatch(r"(resnet\d+)([bd]?)", model.backbone).groups()  # type: ignore[union-attr]
    expected = expected or "c"
    if found == expected:
        return
    suffix = found.replace("c", "")
    same_kind = [name for name in BACKBONES if re.fullmatch(rf"resnet\d+{suffix}", name)]
    wanted = [name for name in same_kind if name == depth + suffix] or same_kind
    raise UserError(
        f"The checkpoint is a ResNet {_VARIANTS[found]}. The backbone {model.backbone} is another network, "
        f"{_VARIANTS[expected]}. Set config.model.backbone={' or '.join(wanted)}, or use a checkpoint of that kind."
    )
