"""The checks of a config, which name the field and what to write."""

import pytest

from isnet_jax import config
from isnet_jax.errors import UserError


@pytest.mark.parametrize(
    "field, value",
    [
        ("augment.flip_pairs", (1, 2)),
        ("augment.flip_pairs", ((1, 2), (2, 3))),
        ("augment.flip_pairs", ((1, 11),)),
        ("augment.resize", (0, 0)),
        ("augment.resize", ("a", "b")),
        ("augment.resize", (64, 512)),
        ("augment.resize", (3,)),
        ("augment.crop_size", (64.5, 64)),
        ("augment.crop_size", (16, 64)),
        ("augment.scale_range", (2.0, 0.5)),
        ("augment.scale_range", ("0.5", "2")),
        ("test.resize", (-1, 5)),
        ("seed", -1),
        ("run.num_pictures", -1),
        ("train.power", -1.0),
        ("train.base_lr", float("inf")),
        ("train.min_lr", 0.5),
        ("model.dropout", 1.0),
        ("model.dtype", "float16"),
        ("model.activation", "gelu"),
        ("model.num_classes", 256),
        ("train.ema_decay", 1.0),
        ("train.optimizer", "adam"),
        ("train.schedule", "step"),
        ("train.warmup_steps", -1),
        ("train.clip_norm", -1.0),
        ("train.head_lr_factor", 0.0),
        ("train.backbone_lr_factor", float("nan")),
        ("train.frozen_stages", 6),
        ("loss.class_weights", (1.0,) * 10),
        ("loss.class_weights", (1.0,) * 10 + (-1.0,)),
        ("loss.class_weights", (0.0,) * 11),
        ("loss.class_weights", (True,) * 11),
        ("loss.label_smoothing", 1.0),
        ("loss.ohem_threshold", 1.1),
        ("loss.ohem_min_kept", -1),
        ("loss.dice_weight", float("inf")),
    ],
)
def test_check_names_the_field_of_an_impossible_value(field, value):
    c = config.default("resnet18")
    c.model.num_classes = 11
    config.check(c)
    c.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=f"config.{field} is "):
        config.check(c)


@pytest.mark.parametrize(
    "fields, pattern",
    [
        ({"loss.class_weights": (1, 2), "loss.balance_classes": True}, "balance_classes both weigh the classes; set"),
        ({"train.frozen_stages": 5, "train.backbone_lr_factor": 0.1}, "= 5 freezes the whole backbone; set"),
    ],
)
def test_check_refuses_options_that_contradict_each_other(fields, pattern):
    c = config.default("resnet18")
    c.model.num_classes = 2
    c.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=pattern):
        config.check(c)
