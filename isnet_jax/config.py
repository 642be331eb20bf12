"""Every field of a configuration with its default, and the checks that come before any work."""
from ml_collections import ConfigDict, config_dict

from isnet_jax.errors import UserError
from isnet_jax.models import BACKBONES, create_model


def default(backbone="resnet50"):
    """The fields a config file may change.

    Raises UserError for a `backbone` (what follows the colon in --config=FILE:backbone) that does not exist.
    """
    if backbone not in BACKBONES:
        raise UserError(f"There is no backbone {backbone!r}; write --config=FILE:BACKBONE with one of "
                        f"{', '.join(BACKBONES)}.")
    return ConfigDict({
        "seed": 0,
        "model": {
            "backbone": backbone,
            "num_classes": 0,
            "activation": "relu",  # of the head: relu or leaky_relu
            "shortcut": False,
            "dropout": 0.1,
            "dtype": "float32",  # of activations: float32 or bfloat16
            "remat": False,  # recompute each backbone block in the backward pass to save memory
        },
        "data": {
            "name": "",
            "source": config_dict.placeholder(str),  # the official folder, prepared on first use
            "data_dir": config_dict.placeholder(str),  # where prepared data lives; TFDS's default if unset
            "train_split": "train",
            "eval_split": "val",
        },
        "augment": {
            "resize": (2048, 512),  # (long, short) side before the random scale
            "keep_ratio": True,
            "scale_range": (0.5, 2.0),
            "crop_size": (512, 512),  # (h, w)
            "max_class_share": 0.75,  # of a crop's labelled pixels; another crop is tried above it
            "flip_pairs": (),  # classes that change places in the mirror
            "rotate_probability": 0.0,
            "rotate_degrees": 30,
            "photometric": True,
        },
        "train": {
            "global_batch_size": 16,
            "epochs": 1,
            "base_lr": 0.01,
            "min_lr": 1e-4,
            "weight_decay": 5e-4,
            "momentum": 0.9,
            "power": 0.9,
            "ema_decay": 0.0,  # 0: no moving average of the weights
            "pretrained": config_dict.placeholder(str),  # .pth of the ImageNet backbone or of a whole ISNet
        },
        "test": {
            "resize": (2048, 512),  # (long, short), or () for the original size
            "keep_ratio": True,
            "batch_size": 8,
        },
        "run": {  # changes nothing in what is computed
            "log_every_steps": 50,
            "eval_every_epochs": 10,
            "checkpoint_every_steps": 1000,
            "keep_checkpoints": 3,
            "num_pictures": 8,
        },
    })


def _require(condition, field, value, needed):
    if not condition:
        raise UserError(f"config.{field} is {value!r}; it must be {needed}.")


def check(config):
    """Raises UserError for a value that cannot work, naming its field."""
    create_model(config.model)
    train, augment, test, run = config.train, config.augment, config.test, config.run
    for section, field in (("train", "global_batch_size"), ("train", "epochs"), ("test", "batch_size"),
                           ("run", "log_every_steps"), ("run", "eval_every_epochs"), ("run", "checkpoint_every_steps"),
                           ("run", "keep_checkpoints")):
        _require(config[section][field] > 0, f"{section}.{field}", config[section][field], "positive")
    _require(0 <= train.min_lr <= train.base_lr, "train.min_lr", train.min_lr, "from 0 to config.train.base_lr")
    _require(0 <= train.momentum < 1, "train.momentum", train.momentum, "at least 0 and below 1")
    _require(0 <= train.ema_decay < 1, "train.ema_decay", train.ema_decay, "at least 0 and below 1")
    _require(train.weight_decay >= 0, "train.weight_decay", train.weight_decay, "at least 0")
    _require(len(augment.resize) in (0, 2), "augment.resize", augment.resize, "(long, short) or ()")
    _require(len(test.resize) in (0, 2), "test.resize", test.resize, "(long, short) or ()")
    _require(len(augment.crop_size) == 2 and min(augment.crop_size) >= 32, "augment.crop_size", augment.crop_size,
             "(height, width), each at least 32")
    scales = augment.scale_range
    _require(len(scales) == 2 and 0 < scales[0] <= scales[1], "augment.scale_range", scales,
             "(low, high) with 0 < low <= high")
    _require(0 <= augment.rotate_probability <= 1, "augment.rotate_probability", augment.rotate_probability,
             "from 0 to 1")
    classes = [c for pair in augment.flip_pairs for c in pair]
    _require(all(len(pair) == 2 for pair in augment.flip_pairs) and len(set(classes)) == len(classes)
             and all(0 <= c < config.model.num_classes for c in classes), "augment.flip_pairs", augment.flip_pairs,
             "pairs of classes, each class once")


RESUMABLE_CHANGES = ("run", "data.source", "data.data_dir", "train.pretrained")


def differences(ours, theirs, prefix=""):
    """Lines "field: theirs -> ours" for the fields of two nested dicts that change what is computed."""
    lines = []
    for key in sorted(set(ours) | set(theirs)):
        field = f"{prefix}{key}"
        if field in RESUMABLE_CHANGES:
            continue
        a, b = theirs.get(key), ours.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(b, a, f"{field}.")
        elif a != b:
            lines.append(f"{field}: {a} there, {b} now")
    return lines
