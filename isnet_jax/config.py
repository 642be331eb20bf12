"""Every field of a configuration with its default, and the checks that come before any work."""

import contextlib
import functools

from ml_collections import ConfigDict, config_dict

from isnet_jax.errors import UserError

MAX_TEXT = 4096  # characters, as many as a path has


def default(backbone="resnet50"):
    """The fields a config file may change.

    Raises UserError for a `backbone` (what follows the colon in --config=FILE:backbone) that does not exist.
    """
    from isnet_jax.models import BACKBONES  # with JAX, which not every command needs

    if backbone not in BACKBONES:
        raise UserError(
            f"There is no backbone {backbone!r:.200}; write --config=FILE:BACKBONE with one of {', '.join(BACKBONES)}."
        )
    config = ConfigDict(
        {
            "seed": 0,
            "mesh": "auto",  # of all devices: auto, or as in data=4,spatial=2, where each image is cut in two
            "shard_parameters": False,  # parameters and optimizer state split over `data`, to save memory
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
                "folder": {  # your own data, if name is "folder"; see docs/datasets.md
                    "name": "",
                    "classes": (),  # the i-th is what value i in the label files means; "": ignored
                    "palette": (),  # an (r, g, b) for each class; distinct colors if empty
                    "splits": {},  # split: (folder of images, folder of labels)
                },
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
                "microbatches": 1,  # parts in which each layer goes over it, to save memory; the result is the same
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
                "max_programs": 8,  # images of mixed sizes share so many canvases, each a compiled program
                "tta": {  # scales and mirror, for `--tta`
                    "mode": "whole",  # or slide, with windows of crop_size (h, w) moved by stride (h, w)
                    "crop_size": (),
                    "stride": (),
                    "scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
                    "average": "softmax",  # or logits
                },
            },
            "run": {  # changes nothing in what is computed
                "log_every_steps": 50,
                "eval_every_epochs": 10,
                "checkpoint_every_steps": 1000,
                "keep_checkpoints": 3,
                "num_pictures": 8,
            },
        }
    )
    return config.lock()  # a mistyped field in a config file is an error, too


def check(config):
    """Raises UserError for a value that cannot work, naming its field."""
    from isnet_jax.models import create_model
    from isnet_jax.sharding import parse

    _check_kinds(config, default())
    create_model(config.model)
    parse(config.mesh)

    def require(fields, what, holds):
        for field in fields.split():
            value = functools.reduce(lambda section, name: section[name], field.split("."), config)
            with contextlib.suppress(TypeError):  # what is inside a tuple may be of any kind
                if holds(value):
                    continue
            raise UserError(f"config.{field} is {value!r:.200}; it must be {what}.")

    def numbers(value, count, kind=(int, float)):
        return (
            len(value) == count
            and all(isinstance(x, kind) and not isinstance(x, bool) for x in value)
            and all(0 < x < float("inf") for x in value)
        )

    require(
        "train.global_batch_size train.microbatches train.epochs test.batch_size test.max_programs "
        "run.log_every_steps run.eval_every_epochs run.checkpoint_every_steps run.keep_checkpoints",
        "positive",
        lambda n: n > 0,
    )
    require("run.num_pictures", "0 or more", lambda n: n >= 0)
    require("seed", "from 0 to 2**32 - 1", lambda n: 0 <= n < 2**32)  # JAX's keys know no larger ones
    require(
        "train.base_lr train.min_lr train.weight_decay train.power",
        "a finite number, 0 or more",
        lambda x: 0 <= x < float("inf"),
    )
    require("train.min_lr", "at most config.train.base_lr", lambda x: x <= config.train.base_lr)
    require("train.momentum train.ema_decay", "at least 0 and below 1", lambda x: 0 <= x < 1)
    require("augment.rotate_probability", "from 0 to 1", lambda x: 0 <= x <= 1)
    require("augment.max_class_share", "above 0 and at most 1", lambda x: 0 < x <= 1)
    require("augment.rotate_degrees", "from 1 to 180", lambda x: 1 <= x <= 180)
    require(
        "augment.resize test.resize",
        "(long, short) in pixels, or ()",
        lambda x: len(x) == 0 or numbers(x, 2, int) and x[0] >= x[1],
    )
    require("test.tta.mode", "whole or slide", lambda mode: mode in ("whole", "slide"))
    require("test.tta.average", "softmax or logits", lambda average: average in ("softmax", "logits"))
    require("test.tta.scales", "positive numbers", lambda scales: len(scales) and numbers(scales, len(scales)))
    if config.test.tta.mode == "slide":
        require("test.tta.crop_size", "(height, width) in pixels", lambda x: numbers(x, 2, int))
        require(
            "test.tta.stride",
            "(height, width), no larger than config.test.tta.crop_size: windows must meet",
            lambda x: numbers(x, 2, int) and all(s <= c for s, c in zip(x, config.test.tta.crop_size)),
        )
    require(
        "augment.crop_size",
        "(height, width) in pixels, each at least 32",
        lambda x: numbers(x, 2, int) and min(x) >= 32,
    )
    require("augment.scale_range", "(low, high) with 0 < low <= high", lambda x: numbers(x, 2) and x[0] <= x[1])
    require(
        "augment.flip_pairs",
        "pairs of classes, each class at most once",
        lambda pairs: (
            all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs)
            and len({c for pair in pairs for c in pair}) == 2 * len(pairs)
            and all(c in range(config.model.num_classes) for pair in pairs for c in pair)
        ),
    )


def _check_kinds(config, like, prefix="config"):
    """Raises UserError for a value of another kind than the default's: what comes from a file may be of any."""
    for name, usual in like.items():
        value, kind = config.get(name), like.get_type(name)
        if isinstance(usual, ConfigDict) and isinstance(value, ConfigDict):
            _check_kinds(value, usual, f"{prefix}.{name}")
        elif type(value) not in ((int, float) if kind is float else (kind,)) and not (value is usual is None):
            raise UserError(f"{prefix}.{name} is {value!r:.200}; it must be of the type {kind.__name__}.")
        elif isinstance(value, str) and len(value) > MAX_TEXT:
            raise UserError(f"{prefix}.{name} is {value!r:.200}..., which is too long.")


RESUMABLE_CHANGES = (
    "mesh",
    "shard_parameters",
    "run",
    "data.source",
    "data.data_dir",
    "train.pretrained",
    "train.microbatches",
    "test.batch_size",
    "test.max_programs",
    "test.tta",
)


def inference_settings(config, tta=False):
    """Keyword arguments of `inference.score_maps`: one scale, the whole image, or what config.test.tta says."""
    if not tta:
        return {"average": "logits"}  # the argmax of one map needs no softmax
    t = config.test.tta
    return {
        "mode": t.mode,
        "crop_size": tuple(t.crop_size),
        "stride": tuple(t.stride),
        "scales": tuple(t.scales),
        "flip": True,
        "flip_pairs": tuple(config.augment.flip_pairs),
        "average": t.average,
    }


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
