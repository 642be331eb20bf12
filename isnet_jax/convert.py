"""Converts official PyTorch checkpoints to this project's and back, name by name and bit by bit.

usage: python -m isnet_jax.convert --config=configs/ade20k.py[:BACKBONE] --input=FILE.pth --output=DIR
       python -m isnet_jax.convert --config=configs/ade20k.py[:BACKBONE] --input=DIR --output=FILE.pth

  FILE.pth  an official ISNet, or the ImageNet weights of its backbone (the rest is then initialised); read without
            PyTorch and without running anything in it. Writing one needs PyTorch.
  DIR       a checkpoint directory: of a training run, or written by this command
"""

import re
from pathlib import Path

import jax
import numpy as np
from absl import flags
from flax import traverse_util

from isnet_jax import checkpoints, pth, stored
from isnet_jax.errors import UserError, mismatches

_BLOCK = r"backbone/layer(\d)_(\d+)/"
_CONTEXTS = {"image_level_context": "ilc_net", "semantic_level_context": "slc_net"}


def _official_modules(path, model):
    """Names of the convolution and the batch norm that `path`, one of our modules, has in the official network."""
    resnest = model.backbone.startswith("resnest")

    def sequential(prefix, first=0):
        return f"{prefix}.{first}", f"{prefix}.{first + 1}"

    if m := re.fullmatch(r"backbone/stem(\d)", path):
        return sequential("backbone_net.stem", 3 * int(m[1]) - 3)
    if m := re.fullmatch(_BLOCK + "downsample", path):  # ResNeSt pools first
        return sequential(f"backbone_net.layer{m[1]}.{m[2]}.downsample", int(resnest))
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


_LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
    "num_batches_tracked": "num_batches_tracked",
}


def variable_shapes(model):
    """{"params", "batch_stats"} of jax.ShapeDtypeStruct."""
    return dict(jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))))


def official_names(model):
    """{official name: (path of the variable as a tuple, its shape there)}, for every variable of `model`."""
    names = {}
    for path, leaf in traverse_util.flatten_dict(variable_shapes(model)).items():
        *modules, name = path[1:]
        child = modules.pop() if modules[-1] in ("conv", "bn") else "conv"
        conv, bn = _official_modules("/".join(modules), model)
        shape = tuple(leaf.shape[i] for i in (3, 2, 0, 1)) if name == "kernel" else leaf.shape
        names[f"{conv if child == 'conv' else bn}.{_LEAVES[name]}"] = path, shape
    return names


def _to_numpy(tensor):
    return tensor.detach().cpu().numpy() if hasattr(tensor, "detach") else np.asarray(tensor)


def _convert(state_dict, names, what):
    """State dict -> nested variables; `names` as from `official_names`. Raises UserError listing every mismatch."""
    optional = {name for name in names if name.endswith("num_batches_tracked")}  # absent before PyTorch 0.4.1
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    faults = mismatches(shapes, {name: shape for name, (_, shape) in names.items()}, optional)
    if faults:
        raise UserError(
            f"The checkpoint does not hold {what}. Names {faults}. Check that config.model (backbone, "
            "num_classes, shortcut) is that of the checkpoint."
        )
    flat = {}
    for name, (path, _) in names.items():
        tensor = _to_numpy(state_dict.get(name, np.zeros((), np.int64)))
        if path[-1] == "kernel":
            tensor = np.ascontiguousarray(tensor.transpose(2, 3, 1, 0))  # OIHW -> HWIO
        elif path[-1] == "num_batches_tracked":
            tensor = tensor.astype(np.int32)
        flat[path] = tensor
    return traverse_util.unflatten_dict(flat)


def from_torch(state_dict, model):
    """Official ISNet state dict -> variables of `model`.

    `state_dict`: name -> array or tensor, kernels OIHW, as in `torch.load(...)["model"]`. Returns {"params",
    "batch_stats"} of NumPy arrays with the dtypes given. Raises UserError that lists every missing, extra or
    mis-shaped name.
    """
    return _convert(
        state_dict,
        official_names(model),
        f"an ISNet with {model.backbone} and "
        f"{model.num_classes} classes{' and the shortcut' if model.shortcut else ''}",
    )


def to_torch(variables, model):
    """Variables {"params", "batch_stats"} of `model` -> official state dict of NumPy arrays, kernels OIHW.

    Raises UserError that lists every variable that is missing, too many or of another shape.
    """
    flat = traverse_util.flatten_dict(dict(variables))
    expected = traverse_util.flatten_dict(variable_shapes(model))
    faults = mismatches(
        *({"/".join(path): tuple(leaf.shape) for path, leaf in tree.items()} for tree in (flat, expected))
    )
    if faults:
        raise UserError(
            f"The variables are not those of an ISNet with {model.backbone} and {model.num_classes} "
            f"classes. Names {faults}."
        )
    state_dict = {}
    for name, (path, _) in official_names(model).items():
        array = np.asarray(flat[path])
        if path[-1] == "kernel":
            array = np.ascontiguousarray(array.transpose(3, 2, 0, 1))
        elif path[-1] == "num_batches_tracked":
            array = array.astype(np.int64)
        state_dict[name] = array
    return state_dict


def backbone_from_torch(state_dict, model):
    """ImageNet checkpoint of the backbone -> {"params": {"backbone"}, "batch_stats": {"backbone"}}.

    Takes the official v1c and ResNeSt names and timm's (resnet50c, resnest101e, ...), with or without a
    `backbone.` prefix; the ImageNet classifier is left out. Raises UserError for another network, such as
    torchvision's ResNet with its 7x7 stem, and lists every name that does not fit.
    """
    tensors = {}
    for name, tensor in state_dict.items():
        name = re.sub(r"^(backbone|backbone_net)\.", "", name)
        name = re.sub(r"^conv1\.(\d)\.", r"stem.\1.", name)  # timm's deep stem
        tensors[name] = tensor
    if "conv1.weight" in tensors:
        size = "x".join(map(str, tensors["conv1.weight"].shape[2:]))
        raise UserError(
            f"The checkpoint is a ResNet with one {size} convolution as its stem (torchvision's, v1b). "
            "ISNet's backbone is v1c, with three 3x3 convolutions, another network: take an ImageNet "
            "checkpoint of that kind (mmcls resnet50_v1c, timm resnet50c, resnest101e)."
        )
    tensors = {
        re.sub(r"^bn1\.", "stem.7.", name): tensor
        for name, tensor in tensors.items()
        if not re.match(r"(fc|head\.fc)\.", name)
    }
    names = {
        name.removeprefix("backbone_net."): place
        for name, place in official_names(model).items()
        if name.startswith("backbone_net.")
    }
    return _convert(tensors, names, f"the backbone {model.backbone}")


def load_network(path, model, ema=False):
    """{"params", "batch_stats"} of a whole ISNet: an official `.pth`, or a checkpoint directory. Raises UserError.

    ema: of a run, the moving averages of its weights.
    """
    template = variable_shapes(model)
    if Path(path).is_dir():
        return checkpoints.load_variables(path, template, ema)
    if ema:
        raise UserError(f"{path} is a file, which holds no moving averages; leave out --ema.")
    variables = from_torch(pth.state_dict(path), model)
    return jax.tree.map(lambda x, wanted: np.asarray(x, wanted.dtype), variables, template)


def load_pretrained(path, model, variables):
    """`variables` {"params", "batch_stats"} with those found at `path` in their place, in the same dtypes.

    path: a `.pth` file with an official ISNet or an ImageNet backbone, or a checkpoint directory. Raises UserError
    if it cannot be read or is of another network.
    """
    if Path(path).is_dir():
        return checkpoints.load_variables(path, variables)
    state_dict = pth.state_dict(path)
    is_isnet = any(name.startswith("ilc_net.") for name in state_dict)
    loaded = (from_torch if is_isnet else backbone_from_torch)(state_dict, model)
    return {
        kind: {
            **variables[kind],
            **{
                name: jax.tree.map(lambda new, old: np.asarray(new, old.dtype), tree, variables[kind][name])
                for name, tree in loaded[kind].items()
            },
        }
        for kind in loaded
    }


def _define_flags():
    flags.DEFINE_string("input", None, "FILE.pth or DIR", required=True)
    flags.DEFINE_string("output", None, "DIR or FILE.pth", required=True)


def _main(config, values):
    from isnet_jax.models import create_model

    model = create_model(config.model)
    if not Path(values.input).exists():
        raise UserError(f"--input={values.input} does not exist; give a .pth file or a checkpoint directory.")
    if values.output.endswith((".pth", ".pt")):
        variables = checkpoints.load_variables(values.input, variable_shapes(model))
        _write_pth(values.output, to_torch(variables, model))
    else:
        start = jax.jit(lambda: model.init(jax.random.key(config.seed), np.zeros((1, 32, 32, 3), np.float32)))()
        variables = load_pretrained(values.input, model, jax.device_get(start))
        checkpoints.save_variables(values.output, config, variables, Path(values.input).resolve())
    print(
        f"{values.input} -> {values.output}: {config.model.backbone} ISNet, {config.model.num_classes} classes, "
        f"{sum(x.size for x in jax.tree.leaves(variables['params'])) / 1e6:.1f} M parameters"
    )


def _write_pth(path, state_dict):
    try:
        import torch
    except ImportError:
        raise UserError("Writing a .pth file needs PyTorch, which is not installed: pip install torch.") from None
    try:
        with stored.replacing(Path(path)) as partial:
            torch.save({"model": {name: torch.from_numpy(array.copy()) for name, array in state_dict.items()}}, partial)
    except (OSError, RuntimeError) as error:
        raise UserError(f"--output={path} cannot be written ({error}).") from None


if __name__ == "__main__":
    from isnet_jax import command

    command.run(_main, __doc__, _define_flags)
