"""The checks of a config, which come before any work."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from isnet_jax.config.fields import default, value_of
from isnet_jax.errors import UserError

MAX_TEXT = 4096  # characters of a value, the longest path
# What run.best_metric may name: scores of `metrics.scores`, of all classes or, as in iou/NAME, of one.
SCORES = (
    *("miou", "pixel_accuracy", "mean_accuracy", "mean_dice"),
    *("mean_precision", "mean_recall", "frequency_weighted_iou"),
)
CLASS_SCORES = "iou", "dice", "precision", "recall"


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
        value = value_of(config, field)
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


def split_metric(metric: str) -> tuple[str, str, str]:
    """What config.run.best_metric means: ("weights" or "ema", a score, the name of a class or "")."""
    weights, slash, rest = metric.partition("/")
    if not slash or weights not in ("weights", "ema"):
        weights, rest = "weights", metric
    score, _, name = rest.partition("/")
    return weights, score, name
