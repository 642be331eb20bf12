"""Every field of a configuration with its default, and the checks that come before any work."""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from isnet_jax.errors import UserError

MAX_TEXT = 4096  # characters of a value, the longest path

# Fields that earlier versions recorded under another name, or that are gone.
RENAMED = {"test.max_programs": "test.max_shape_buckets"}
REMOVED = ("train.microbatches",)
ADDED = {  # what earlier versions did
    "model.image_level_context": True,
    "model.semantic_level_context": True,
    "data.folder.label_values": [],
    "data.folder.split_seed": 0,
    "run.wandb": "",
    "run.mlflow": "",
    "data.folder.exif": True,  # nothing to earlier data: whether images are turned is recorded with them
    "loss": {
        "class_weights": [],
        "balance_classes": False,
        "label_smoothing": 0.0,
        "ohem_threshold": 0.0,
        "ohem_min_kept": 100_000,
        "dice_weight": 0.0,
    },
    "train.optimizer": "sgd",
    "train.schedule": "poly",
    "train.warmup_steps": 0,
    "train.clip_norm": 0.0,
    "train.head_lr_factor": 1.0,
    "train.backbone_lr_factor": 1.0,
    "train.decay_norms_and_biases": True,
    "train.frozen_stages": 0,
    "train.freeze_batch_norm": False,
}
# What run.best_metric may name: scores of `metrics.scores`, of all classes or, as in iou/NAME, of one.
SCORES = (
    *("miou", "pixel_accuracy", "mean_accuracy", "mean_dice"),
    *("mean_precision", "mean_recall", "frequency_weighted_iou"),
)
CLASS_SCORES = "iou", "dice", "precision", "recall"
# Fields that change nothing in the result, so that a run may be resumed with other values.
RESUMABLE_CHANGES = (
    "mesh",
    "shard_parameters",
    "run",
    "data.source",
    "data.data_dir",
    "train.pretrained",
    "test.batch_size",
    "test.max_shape_buckets",
    "test.tta",
)


def default(backbone: str = "resnet50") -> ConfigDict:
    """The fields that a config file may change.

    Raises UserError for an unknown `backbone` (what follows the colon in --config=FILE:backbone).
    """
    from isnet_jax.models.isnet import BACKBONES  # imports JAX, which not every command needs

    if backbone not in BACKBONES:
        raise UserError(
            f"There is no backbone {backbone!r:.200}; write --config=FILE:BACKBONE with one of {', '.join(BACKBONES)}."
        )
    config = ConfigDict(
        {
            "seed": 0,
            "mesh": "auto",  # or e.g. data=4,spatial=2, which splits the batch in 4 and the height of images in 2
            "shard_parameters": False,  # shard parameters and optimizer state over `data` (FSDP), to save memory
            "model": {
                "backbone": backbone,
                "num_classes": 0,
                "activation": "relu",  # of the head: relu or leaky_relu
                "shortcut": False,
                "image_level_context": True,  # False, here and below: an ablation without the module
                "semantic_level_context": True,
                "dropout": 0.1,
                "dtype": "float32",  # of activations: float32 or bfloat16
                "remat": False,  # rematerialise each block in the backward pass, to save memory
            },
            "data": {
                "name": "",
                "source": config_dict.placeholder(str),  # the official folder, prepared on first use
                "data_dir": config_dict.placeholder(str),  # where prepared data sets live; default: that of TFDS
                "train_split": "train",
                "eval_split": "val",
                "folder": {  # your own data, if name is "folder"; see docs/datasets.md
                    "name": "",
                    "classes": (),  # names of the label values 0, 1, ...; "" marks a value to ignore
                    "label_values": (),  # the value, or a tuple of several, of each class, if it is not 0, 1, ...
                    "palette": (),  # (r, g, b) per class, in pictures and in labels that are colour images
                    "splits": {},  # split: (images, labels), folders or patterns; a list of names or a share
                    "split_seed": 0,  # of the shares
                    "exif": True,  # turn images as EXIF says, as viewers do; False: labels fit the stored images
                },
            },
            "augment": {
                "resize": (2048, 512),  # (long, short) side before the random scale
                "keep_ratio": True,
                "scale_range": (0.5, 2.0),
                "crop_size": (512, 512),  # (height, width)
                "max_class_share": 0.75,  # of a crop's labelled pixels; above it, another crop is tried
                "flip_pairs": (),  # classes that swap in a horizontal flip
                "rotate_probability": 0.0,
                "rotate_degrees": 30,
                "photometric": True,
            },
            "loss": {  # of each of the three classifiers; docs/training.md has the formulas
                "class_weights": (),  # a number per class; (): all count alike
                "balance_classes": False,  # True: class weights from the pixels of each class in data.train_split
                "label_smoothing": 0.0,
                "ohem_threshold": 0.0,  # above 0: only pixels count whose class is less probable, as with 0.7 ...
                "ohem_min_kept": 100_000,  # ... or the hardest ones, that many for each image of the batch
                "dice_weight": 0.0,  # above 0: of a Dice loss beside the cross entropy
            },
            "train": {
                "global_batch_size": 16,
                "epochs": 1,
                "base_lr": 0.01,
                "min_lr": 1e-4,
                "weight_decay": 5e-4,
                "momentum": 0.9,  # of adamw: the first beta
                "power": 0.9,  # of poly
                "ema_decay": 0.0,  # 0: no moving average of the weights
                "optimizer": "sgd",  # or adamw
                "schedule": "poly",  # or cosine
                "warmup_steps": 0,  # in which the learning rate rises from 0 to base_lr
                "clip_norm": 0.0,  # largest norm of the gradient; 0: any
                "head_lr_factor": 1.0,  # of the learning rate of all but the backbone
                "backbone_lr_factor": 1.0,
                "decay_norms_and_biases": True,  # False: weight decay on kernels alone
                "frozen_stages": 0,  # of the backbone, as loaded: 1 the stem, 2 also layer1, ..., 5 all; 0: none
                "freeze_batch_norm": False,  # True: the backbone's batch statistics stay as loaded
                "pretrained": config_dict.placeholder(str),  # .pth of the ImageNet backbone or of a whole ISNet
            },
            "test": {
                "resize": (2048, 512),  # (long, short), or () for the original size
                "keep_ratio": True,
                "batch_size": 8,  # of `predict`, too; `main` and `evaluate` take one image per device on CPUs
                "max_shape_buckets": 8,  # padded shapes that images of mixed sizes share, one compilation each
                "tta": {  # scales and flip, for `--tta`
                    "mode": "whole",  # or slide: windows of crop_size (h, w), moved by stride (h, w)
                    "crop_size": (),
                    "stride": (),
                    "scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
                    "average": "softmax",  # or logits
                },
            },
            "run": {  # changes no step of the training
                "log_every_steps": 50,
                "eval_every_epochs": 10,
                "checkpoint_every_steps": 1000,
                "keep_checkpoints": 3,
                "best_metric": "",  # keep the best state, too: by miou, iou/NAME, ema/miou, ...; "": do not
                "stop_after_evaluations": 0,  # that many without improvement of best_metric; 0: train to the last step
                "num_pictures": 8,  # of predictions, at every evaluation
                "wandb": "",  # a project of Weights & Biases that gets the log, too; "": none
                "mlflow": "",  # an experiment of MLflow, on MLFLOW_TRACKING_URI; "": none
                "profile_steps": 0,  # traced steps, after a warm-up; the trace is for XProf and Perfetto
            },
        }
    )
    return config.lock()  # a mistyped field in a config file is an error, too


def check(config: ConfigDict) -> None:
    """Raises UserError for a value that cannot work, naming its field."""
    from isnet_jax.models.isnet import create_model
    from isnet_jax.runtime.sharding import parse_mesh

    _check_types(config, default())
    create_model(config.model)
    parse_mesh(config.mesh)
    _check_training(config)
    _check_optimizer(config)
    _check_loss(config)
    _check_best(config)
    _check_augmentation(config)
    _check_testing(config)


def _require(config: ConfigDict, fields: str, what: str, holds: Callable[[Any], bool]) -> None:
    """Raises UserError unless `holds(value)` for each of the fields, names separated by spaces."""
    for field in fields.split():
        value = functools.reduce(lambda section, name: section[name], field.split("."), config)
        with contextlib.suppress(TypeError):  # the elements of a tuple may be of any type
            if holds(value):
                continue
        raise UserError(f"config.{field} is {value!r:.200}; it must be {what}.")


def _are_positive(values: Any, count: int, kind: type | tuple[type, ...] = (int, float)) -> bool:
    return (
        len(values) == count
        and all(isinstance(x, kind) and not isinstance(x, bool) for x in values)
        and all(0 < x < math.inf for x in values)
    )


def _check_training(config: ConfigDict) -> None:
    positive = "train.global_batch_size train.epochs test.batch_size test.max_shape_buckets"
    positive += " run.log_every_steps run.eval_every_epochs run.checkpoint_every_steps run.keep_checkpoints"
    _require(config, positive, "positive", lambda n: n > 0)
    _require(config, "run.num_pictures run.profile_steps", "0 or more", lambda n: n >= 0)
    _require(config, "seed", "from 0 to 2**32 - 1", lambda n: 0 <= n < 2**32)  # JAX's keys take no larger ones
    rates = "train.base_lr train.min_lr train.weight_decay train.power"
    _require(config, rates, "a finite number, 0 or more", lambda x: 0 <= x < math.inf)
    _require(config, "train.min_lr", "at most config.train.base_lr", lambda x: x <= config.train.base_lr)
    _require(config, "train.momentum train.ema_decay", "at least 0 and below 1", lambda x: 0 <= x < 1)


def _check_optimizer(config: ConfigDict) -> None:
    _require(config, "train.optimizer", "sgd or adamw", lambda name: name in ("sgd", "adamw"))
    _require(config, "train.schedule", "poly or cosine", lambda name: name in ("poly", "cosine"))
    _require(config, "train.warmup_steps", "0 or more", lambda n: n >= 0)
    _require(config, "train.clip_norm", "a finite number, 0 or more", lambda x: 0 <= x < math.inf)
    factors = "train.head_lr_factor train.backbone_lr_factor"
    _require(config, factors, "a finite number above 0", lambda x: 0 < x < math.inf)
    _require(config, "train.frozen_stages", "from 0 to 5: none, the stem, also layer1, ..., all", lambda n: 0 <= n <= 5)
    if config.train.frozen_stages == 5 and config.train.backbone_lr_factor != 1:
        raise UserError(
            f"config.train.backbone_lr_factor is {config.train.backbone_lr_factor}, but config.train.frozen_stages = 5 "
            "freezes the whole backbone; set one of them to its default, 1.0 or 0."
        )


def _check_loss(config: ConfigDict) -> None:
    loss, num_classes = config.loss, config.model.num_classes
    _require(
        config,
        "loss.class_weights",
        f"() or {num_classes} numbers, one per class, each 0 or from 1e-6 to 1e6, and not all 0",
        lambda x: (
            len(x) in (0, num_classes)
            and all(type(w) in (int, float) and (w == 0 or 1e-6 <= w <= 1e6) for w in x)
            and (len(x) == 0 or max(x) > 0)
        ),
    )
    if loss.balance_classes and loss.class_weights:
        raise UserError(
            "config.loss.class_weights and config.loss.balance_classes both weigh the classes; set class_weights to () "
            "or balance_classes to False."
        )
    _require(config, "loss.label_smoothing", "at least 0 and below 1", lambda x: 0 <= x < 1)
    _require(config, "loss.ohem_threshold", "from 0 to 1", lambda x: 0 <= x <= 1)
    _require(config, "loss.ohem_min_kept", "0 or more", lambda n: n >= 0)
    _require(config, "loss.dice_weight", "a finite number, 0 or more", lambda x: 0 <= x < math.inf)


def _check_best(config: ConfigDict) -> None:
    run = config.run
    _require(config, "run.stop_after_evaluations", "0 or more", lambda n: n >= 0)
    if run.stop_after_evaluations and not run.best_metric:
        raise UserError(
            f"config.run.stop_after_evaluations is {run.stop_after_evaluations}, but config.run.best_metric is "
            "empty, so nothing says what an improvement is. Set it as well, as in --config.run.best_metric=miou."
        )
    if run.best_metric:
        weights, score, name = split_metric(run.best_metric)
        scores = f"{', '.join(SCORES)} or, of one class, {', '.join(f'{score}/NAME' for score in CLASS_SCORES)}"
        what = f"{scores}; ema/ before it means the moving averages of the weights"
        _require(config, "run.best_metric", what, lambda _: score in (CLASS_SCORES if name else SCORES))
        if weights == "ema" and not config.train.ema_decay:
            raise UserError(
                f"config.run.best_metric is {run.best_metric!r:.200}, but no moving averages are kept: set "
                "config.train.ema_decay, such as 0.999, or leave out ema/."
            )


def split_metric(metric: str) -> tuple[str, str, str]:
    """What config.run.best_metric means: ("weights" or "ema", a score, the name of a class or "")."""
    weights, slash, rest = metric.partition("/")
    if not slash or weights not in ("weights", "ema"):
        weights, rest = "weights", metric
    score, _, name = rest.partition("/")
    return weights, score, name


def _check_augmentation(config: ConfigDict) -> None:
    classes = range(config.model.num_classes)

    def are_pairs(pairs):
        flat = [c for pair in pairs for c in pair]
        return (
            all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs)
            and len(set(flat)) == len(flat)
            and all(c in classes for c in flat)
        )

    _require(config, "augment.rotate_probability", "from 0 to 1", lambda x: 0 <= x <= 1)
    _require(config, "augment.max_class_share", "above 0 and at most 1", lambda x: 0 < x <= 1)
    _require(config, "augment.rotate_degrees", "from 1 to 180", lambda x: 1 <= x <= 180)
    _require(
        config,
        "augment.crop_size",
        "(height, width) in pixels, each at least 32",
        lambda x: _are_positive(x, 2, int) and min(x) >= 32,
    )
    _require(
        config,
        "augment.scale_range",
        "(low, high) with 0 < low <= high",
        lambda x: _are_positive(x, 2) and x[0] <= x[1],
    )
    _require(config, "augment.flip_pairs", "pairs of classes, each class at most once", are_pairs)


def _check_testing(config: ConfigDict) -> None:
    _require(
        config,
        "augment.resize test.resize",
        "(long, short) in pixels, or ()",
        lambda x: len(x) == 0 or (_are_positive(x, 2, int) and x[0] >= x[1]),
    )
    tta = config.test.tta
    _require(config, "test.tta.mode", "whole or slide", lambda mode: mode in ("whole", "slide"))
    _require(config, "test.tta.average", "softmax or logits", lambda average: average in ("softmax", "logits"))
    _require(
        config,
        "test.tta.scales",
        "positive numbers",
        lambda scales: len(scales) > 0 and _are_positive(scales, len(scales)),
    )
    if tta.mode == "slide":
        _require(config, "test.tta.crop_size", "(height, width) in pixels", lambda x: _are_positive(x, 2, int))
        _require(
            config,
            "test.tta.stride",
            "(height, width), no larger than config.test.tta.crop_size: windows must meet",
            lambda x: _are_positive(x, 2, int) and all(s <= c for s, c in zip(x, tta.crop_size)),
        )


def _check_types(config: ConfigDict, like: ConfigDict, prefix: str = "config") -> None:
    """Raises UserError for a value of another type than the default's: a recorded config may hold anything."""
    for name, usual in like.items():
        value, kind = config.get(name), like.get_type(name)
        if isinstance(usual, ConfigDict) and isinstance(value, ConfigDict):
            _check_types(value, usual, f"{prefix}.{name}")
        elif type(value) not in ((int, float) if kind is float else (kind,)) and not (value is usual is None):
            raise UserError(f"{prefix}.{name} is {value!r:.200}; it must be of the type {kind.__name__}.")
        elif isinstance(value, str) and len(value) > MAX_TEXT:
            raise UserError(f"{prefix}.{name} is {value!r:.200}..., which is too long.")


def lines(config: ConfigDict) -> list[str]:
    """Every field and its value in Python, as in "train.base_lr = 0.01"."""
    return _lines(config, default(), "")


def _lines(config: ConfigDict, like: ConfigDict, prefix: str) -> list[str]:
    result = []
    for name, value in config.items():
        if isinstance(value, ConfigDict) and like.get(name):  # a section; the splits of a folder are a value
            result += _lines(value, like[name], f"{prefix}{name}.")
        else:
            result.append(f"{prefix}{name} = {value.to_dict() if isinstance(value, ConfigDict) else value!r}")
    return result


def inference_settings(config: ConfigDict, tta: bool = False) -> dict[str, Any]:
    """Keyword arguments of `inference.score_maps`: one scale of the whole image, or as config.test.tta says."""
    if not tta:
        return {"average": "logits"}  # the argmax of a single map needs no softmax
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


def unofficial_options(config: ConfigDict) -> list[str]:
    """Lines "FIELD=VALUE" for the options of loss and optimizer that are on; the official recipes leave all off."""
    off = default()
    fields = [f"loss.{name}" for name in off.loss]
    fields += [field for field in ADDED if field.startswith("train.") and field.partition(".")[2] in off.train]
    values = {}
    for field in fields:
        section, _, name = field.partition(".")
        if config[section][name] != off[section][name]:
            values[field] = config[section][name]
    return [f"{field}={value}" for field, value in values.items()]


def upgrade(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A config that an earlier version recorded, nested dicts, with the names that fields have now."""
    config = _copied(recorded)
    for field in (*RENAMED, *REMOVED):
        place, _, name = field.partition(".")
        if isinstance(config.get(place), dict) and name in config[place]:
            value = config[place].pop(name)
            if field in RENAMED:
                config[place][RENAMED[field].partition(".")[2]] = value
    for field, value in ADDED.items():
        *sections, name = field.split(".")
        section: Any = config
        for key in sections:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section.setdefault(name, value)
    return config


def _copied(sections: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _copied(value) if isinstance(value, Mapping) else value for name, value in sections.items()}


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Lines "field: theirs there, ours now" for `changes`."""
    return [f"{field}: {there} there, {now} now" for field, there, now in changes(ours, theirs)]


def changes(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(field, value there, value now) of the fields, of two nested dicts, that change the result."""
    return _changes(upgrade(ours), upgrade(theirs), "")


def _changes(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str) -> list[tuple[str, Any, Any]]:
    found = []
    for key in sorted(set(ours) | set(theirs)):
        field = f"{prefix}{key}"
        if field in RESUMABLE_CHANGES:
            continue
        a, b = theirs.get(key), ours.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _changes(b, a, f"{field}.")
        elif a != b:
            found.append((field, a, b))
    return found
