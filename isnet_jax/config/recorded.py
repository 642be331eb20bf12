"""Configs that earlier starts or versions recorded, and how they differ from one of now."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from isnet_jax.config.checks import check
from isnet_jax.config.fields import default
from isnet_jax.errors import UserError

# Fields that earlier versions recorded under another name, or that are gone.
RENAMED = {"test.max_programs": "test.max_shape_buckets"}
REMOVED = ("train.microbatches",)
ADDED = {  # what earlier versions did; fields of RESUMABLE_CHANGES need no entry
    "model.image_level_context": True,
    "model.semantic_level_context": True,
    "data.folder.label_values": [],
    "data.folder.split_seed": 0,
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


def from_record(recorded: Mapping[str, Any], path: str) -> ConfigDict:
    """The config in a JSON file at `path`; fields that it lacks have their defaults. Raises UserError if it is none."""

    def with_tuples(value):  # JSON has no tuples
        if isinstance(value, dict):
            return {name: with_tuples(x) for name, x in value.items()}
        return tuple(map(with_tuples, value)) if isinstance(value, list) else value

    upgraded = upgrade(recorded)
    try:
        config = default(upgraded["model"]["backbone"])
        with config.unlocked():  # additional facts, such as train_examples, do no harm
            config.update(with_tuples(upgraded))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{path} does not hold a config of isnet_jax ({reason}); give the config as --config=FILE."
        ) from None
    check(config)
    return config


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
