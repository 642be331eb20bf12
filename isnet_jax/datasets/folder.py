"""Your own data: folders of images and labels, and what the labels mean, as config.data.folder says."""

import dataclasses
import re

import numpy as np
import tensorflow_datasets as tfds

from isnet_jax.datasets import common, tables
from isnet_jax.datasets.pairing import find_pairs
from isnet_jax.errors import UserError
from isnet_jax.labels import IGNORED


@dataclasses.dataclass(eq=False)
class FolderConfig(tfds.core.BuilderConfig):
    """config.data.folder; its name keeps data sets apart in a data_dir."""

    classes: tuple = ()
    palette: tuple = ()
    splits: dict = dataclasses.field(default_factory=dict)


class Folder(common.FolderBuilder):
    """Label files hold indices of `classes`; 255, and a class named '', become 255."""

    DESCRIPTION = "Images and labels of a user."
    LAYOUT = "the folders in config.data.folder.splits"

    def __init__(self, *, folder=None, config=None, **kwargs):
        """folder: config.data.folder; raises UserError if it cannot work. config: a FolderConfig, as unpickling passes it."""
        plan = config or FolderConfig(
            folder["name"],
            classes=tuple(folder["classes"]),
            palette=tuple(folder["palette"]),
            splits=dict(folder["splits"]),
        )
        check(plan)
        named = np.array([bool(name) for name in plan.classes])
        self.plan = plan
        self.NAMES = tuple(name for name in plan.classes if name)
        self.PALETTE = plan.palette or tables.distinct_colors(range(1, len(self.NAMES) + 1))
        self.TRAIN_IDS = np.append(np.full(255, -1), IGNORED)
        self.TRAIN_IDS[: len(named)] = np.where(named, named.cumsum() - 1, IGNORED)
        super().__init__(config=plan, **kwargs)
        if self.data_path.exists() and self.info.metadata["folder"] != self._recorded():
            raise UserError(
                f"{self.data_path} has been prepared with other classes or splits in config.data.folder: "
                "delete it to prepare anew, or choose another config.data.folder.name."
            )
        self.info.metadata["palette"] = [list(color) for color in self.PALETTE]  # no record depends on it

    def pairs(self, source):
        return {
            split: find_pairs(source, images, labels, self.problems)
            for split, (images, labels) in self.plan.splits.items()
        }

    def _recorded(self):
        """Returns what the stored records depend on, as JSON has it."""
        return {
            "classes": list(self.plan.classes),
            "splits": {split: list(places) for split, places in self.plan.splits.items()},
        }

    def _info(self):
        info = super()._info()
        info.metadata["folder"] = self._recorded()
        return info

    def _create_builder_config(self, builder_config, version):
        return builder_config  # TFDS warns of any that the class does not list


def check(plan):
    """Raises UserError, naming the field of config.data.folder, unless the FolderConfig can work."""

    def require(field, what, holds):
        value = getattr(plan, field)
        if not holds(value):
            raise UserError(f"config.data.folder.{field} is {value!r}; it must be {what}.")

    def is_name(text):
        return isinstance(text, str) and re.fullmatch("[A-Za-z0-9_-]+", text)

    def stars(place):
        return place.count("*") or 1  # a folder is short for FOLDER/*

    require("name", "made of letters, digits, _ and -", is_name)
    require(
        "classes",
        "2 to 255 different names, where '' marks a value to ignore",
        lambda classes: (
            len(classes) <= 255
            and all(isinstance(name, str) for name in classes)
            and len({*classes} - {""}) == sum(map(bool, classes)) >= 2
        ),
    )
    require(
        "palette",
        "() or an (r, g, b) of 0 to 255 for each class with a name",
        lambda palette: (
            not palette
            or len(palette) == sum(map(bool, plan.classes))
            and all(
                isinstance(color, (tuple, list)) and len(color) == 3 and all(x in range(256) for x in color)
                for color in palette
            )
        ),
    )
    require(
        "splits",
        "a dict of split: (images, labels), two folders or patterns with equally many * under "
        "config.data.source, as in {'train': ('images/train', 'labels/train')}",
        lambda splits: (
            splits
            and all(
                is_name(split)
                and split != "all"
                and isinstance(places, (tuple, list))
                and len(places) == 2
                and all(isinstance(place, str) and place for place in places)
                and stars(places[0]) == stars(places[1])
                for split, places in splits.items()
            )
        ),
    )
