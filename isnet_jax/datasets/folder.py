"""A user's own data: folders of images and labels, described by config.data.folder."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from isnet_jax.datasets import common, tables
from isnet_jax.datasets.pairing import Pair, find_pairs
from isnet_jax.errors import UserError
from isnet_jax.labels import IGNORED


@dataclasses.dataclass(eq=False)
class FolderConfig(tfds.core.BuilderConfig):
    """config.data.folder. Its name separates the data sets of a user in a data_dir."""

    classes: tuple[str, ...] = ()
    palette: tuple[tables.Color, ...] = ()
    splits: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)


class Folder(common.FolderBuilder):
    """Label files hold indices of `classes`; 255, and every class named "", become 255."""

    DESCRIPTION = "Images and labels of a user."
    LAYOUT = "the folders in config.data.folder.splits"

    def __init__(self, *, folder: Mapping[str, Any] | None = None, config: FolderConfig | None = None, **kwargs: Any):
        """The builder of the data set that `folder`, config.data.folder, describes; raises UserError if it is invalid.

        Unpickling passes `config` instead.
        """
        if config is None:
            assert folder is not None
            config = FolderConfig(
                folder["name"],
                classes=tuple(folder["classes"]),
                palette=tuple(folder["palette"]),
                splits=dict(folder["splits"]),
            )
        check(config)
        is_named = np.array([bool(name) for name in config.classes])
        self.folder_config = config
        self.NAMES = tuple(name for name in config.classes if name)
        self.PALETTE = config.palette or tables.distinct_colors(range(1, len(self.NAMES) + 1))
        self.TRAIN_IDS = np.append(np.full(255, -1), IGNORED)
        self.TRAIN_IDS[: len(is_named)] = np.where(is_named, is_named.cumsum() - 1, IGNORED)
        super().__init__(config=config, **kwargs)
        if self.data_path.exists() and self.info.metadata["folder"] != self._recorded_fields():
            raise UserError(
                f"{self.data_path} has been prepared with other classes or splits in config.data.folder: "
                "delete it to prepare it again, or choose another config.data.folder.name."
            )
        self.info.metadata["palette"] = [list(color) for color in self.PALETTE]  # no record depends on it

    def pairs(self, source: Path) -> dict[str, list[Pair]]:
        return {
            split: find_pairs(source, images, labels, self.problems)
            for split, (images, labels) in self.folder_config.splits.items()
        }

    def _recorded_fields(self) -> dict[str, Any]:
        """The fields that the records depend on, as JSON stores them."""
        return {
            "classes": list(self.folder_config.classes),
            "splits": {split: list(places) for split, places in self.folder_config.splits.items()},
        }

    def _info(self) -> tfds.core.DatasetInfo:
        info = super()._info()
        info.metadata["folder"] = self._recorded_fields()
        return info

    def _create_builder_config(self, builder_config: FolderConfig, version: Any) -> FolderConfig:
        return builder_config  # TFDS would warn about a config that the class does not list


def check(config: FolderConfig) -> None:
    """Raises UserError, naming the field of config.data.folder, if a field is invalid."""

    def require(field: str, expected: str, is_valid: Callable[[Any], Any]) -> None:
        value = getattr(config, field)
        if not is_valid(value):
            raise UserError(f"config.data.folder.{field} is {value!r}; it must be {expected}.")

    require("name", "made of letters, digits, _ and -", _is_identifier)
    require("classes", "2 to 255 different names, where '' marks a value to ignore", _are_classes)
    require(
        "palette",
        "() or an (r, g, b) of 0 to 255 for each class with a name",
        lambda palette: not palette or tables.is_palette(palette, sum(map(bool, config.classes))),
    )
    require(
        "splits",
        "a dict of split: (images, labels), two folders or patterns with equally many * under "
        "config.data.source, as in {'train': ('images/train', 'labels/train')}",
        _are_splits,
    )


def _is_identifier(text: Any) -> bool:
    return isinstance(text, str) and bool(re.fullmatch("[A-Za-z0-9_-]+", text))


def _are_classes(classes: tuple) -> bool:
    return (
        len(classes) <= 255
        and all(isinstance(name, str) for name in classes)
        and len({*classes} - {""}) == sum(map(bool, classes)) >= 2
    )


def _are_splits(splits: dict) -> bool:
    def num_stars(pattern: str) -> int:
        return pattern.count("*") or 1  # a folder is short for FOLDER/*

    return bool(splits) and all(
        _is_identifier(split)
        and split != "all"  # TFDS's name for all splits together
        and isinstance(places, (tuple, list))
        and len(places) == 2
        and all(isinstance(place, str) and place for place in places)
        and num_stars(places[0]) == num_stars(places[1])
        for split, places in splits.items()
    )
