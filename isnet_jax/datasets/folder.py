"""A user's own data: folders of images and labels, described by config.data.folder."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from isnet_jax.datasets import folder_config, label_values, tables
from isnet_jax.datasets.folder_builder import FolderBuilder
from isnet_jax.datasets.label_values import COLORS, LabelProblem
from isnet_jax.datasets.pairing import ORPHANED, UNLABELLED, Pair, find_pairs
from isnet_jax.datasets.statistics import Survey
from isnet_jax.errors import UserError
from isnet_jax.labels import IGNORED

LIST_ADVICE = (
    "To leave images without a label out, give a split a third element, a text file under config.data.source with one "
    "name a line: ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation/train.txt'), for instance."
)


PATTERN_ADVICE = (
    "If names differ in their endings, write patterns whose stars match the same text in both: ('images/*.jpg', "
    "'labels/*.jpg.png') or ('images/*_img.jpg', 'labels/*_gt.png'), for instance."
)


@dataclasses.dataclass(eq=False)
class FolderConfig(tfds.core.BuilderConfig):
    """config.data.folder. Its name separates the data sets of a user in a data_dir."""

    fields: dict[str, Any] = dataclasses.field(default_factory=dict)  # as in config.data.folder, but for the name


class Folder(FolderBuilder):
    """Labels hold indices of `classes`, or `label_values`, or colours of the `palette`; 255, and every class named "",
    become 255.
    """

    DESCRIPTION = "Images and labels of a user."
    LAYOUT = "the folders in config.data.folder.splits"

    def __init__(self, *, folder: Mapping[str, Any] | None = None, config: FolderConfig | None = None, **kwargs: Any):
        """The builder of the data set that `folder`, config.data.folder, describes; raises UserError if it is invalid.

        Unpickling passes `config` instead.
        """
        if config is None:
            assert folder is not None
            fields = folder_config.with_defaults(folder)
            folder_config.check(fields)
            config = FolderConfig(fields.pop("name"), fields=fields)
        self.fields = fields = config.fields
        self._found: dict[tuple, list[Pair]] = {}  # by source, patterns and list
        names = fields["classes"]
        self.NAMES = tuple(name for name in names if name)
        self.UPRIGHT = fields["exif"]
        self.compares_palettes = not fields["label_values"]
        ids = train_ids(names)
        self.TRAIN_IDS = value_table(ids, fields["label_values"])
        colors = tables.colors_of_named(names, fields["palette"])
        self.PALETTE = colors or tables.distinct_colors(range(1, len(self.NAMES) + 1))
        if fields["palette"] and not fields["label_values"]:
            of = ids if len(fields["palette"]) == len(names) else range(len(self.NAMES))
            self.IDS_OF_COLORS = ids_of_colors(fields["palette"], of)
        super().__init__(config=config, **kwargs)
        self.info.metadata["palette"] = [list(color) for color in self.PALETTE]

    @property
    def all_splits(self) -> tuple[str, ...]:
        return tuple(self.fields["splits"])

    def items(self) -> dict[str, list[Pair]]:
        self._found.clear()
        return super().items()

    def pairs(self, source: Path, split: str) -> list[Pair]:
        images, labels, *rest = self.fields["splits"][split]
        list_file = rest[0] if rest and isinstance(rest[0], str) else None
        place = source, images, labels, list_file
        if place not in self._found:  # splits that share a place tell its problems once
            self._found[place] = find_pairs(source, images, labels, self.findings, list_file)
        return self._share(split, self._found[place]) if rest and list_file is None else self._found[place]

    def has_split(self, split: str) -> bool:
        self._found.clear()
        try:
            return super().has_split(split)
        finally:
            self._found.clear()

    def _share(self, split: str, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs of a split that takes a share of them: of the same order, after the splits before it."""
        *place, share = self.fields["splits"][split]
        seed, before = self.fields["split_seed"], 0.0
        for other, (*other_place, other_share) in self.fields["splits"].items():
            if other == split:
                break
            before += other_share if other_place == place else 0
        order = sorted(pairs, key=lambda pair: hashlib.sha256(f"{seed}/{pair.name}".encode()).digest())
        first, end = (round(len(order) * part) for part in (before, before + share))
        if pairs and first == end:
            self.findings.problems.append(
                f"The split {split} takes {share} of {len(pairs)} pairs, which is none: write a larger share."
            )
        return sorted(order[first:end])

    def _recorded_fields(self, depends_on_palette: bool) -> dict[str, Any]:
        """The fields that the records depend on, as JSON stores them."""
        names = [name for name in self.fields if depends_on_palette or name != "palette"]
        return folder_config.as_json({name: self.fields[name] for name in names})

    def require_same_fields(self) -> None:
        """See `SegmentationBuilder.require_same_fields`; earlier versions recorded fewer fields."""
        current = folder_config.as_json(self.fields)
        recorded = {"label_values": [], "split_seed": 0, **self.info.metadata["folder"]}
        changed = " and ".join(name for name, value in recorded.items() if current.get(name) != value)
        if changed:
            raise UserError(
                f"{self.data_path} has been prepared with other {changed:.300} in config.data.folder: prepare "
                "it again with isnet_jax.prepare --overwrite, or choose another config.data.folder.name."
            )

    def _info(self) -> tfds.core.DatasetInfo:
        info = super()._info()
        info.metadata["folder"] = self._recorded_fields(True)
        return info

    def write(self, survey: Survey, *args: Any) -> None:
        has_colors = any(split.num_palettes or split.num_by_color for split in survey.statistics.values())
        self.info.metadata["folder"] = self._recorded_fields(has_colors)
        super().write(survey, *args)

    def _create_builder_config(self, builder_config: FolderConfig, version: Any) -> FolderConfig:
        return builder_config  # TFDS would warn about a config that the class does not list

    def advice(self, problems: Sequence[UserError | str]) -> str:
        """See `SegmentationBuilder.advice`: the lines of a config for what was found."""
        found: dict[str, label_values.Found] = {}
        kinds = {getattr(problem, "kind", "") for problem in problems}
        sentences = [PATTERN_ADVICE if ORPHANED in kinds else LIST_ADVICE] if UNLABELLED in kinds else []
        for problem in problems:
            if isinstance(problem, LabelProblem):
                total = found.setdefault(problem.by, {})
                for value, pixels in problem.found.items():
                    total[value] = total.get(value, 0) + pixels
        sentences += [folder_config.advice(by, total, self.fields) for by, total in found.items()]
        return " ".join(sentences)

    def doubts(self, survey: Survey) -> tuple[list[str], list[str]]:
        """See `SegmentationBuilder.doubts`: masks of 0 and 255 leave one class, and nothing to learn."""
        if self.fields["label_values"] or self.reads_by == COLORS:
            return [], []
        splits = survey.statistics.values()
        pixels = np.sum([split.pixels for split in splits], axis=0)
        (occurring,) = np.nonzero(pixels[:-1])
        if len(occurring) == 1 and pixels[-1]:
            (value,) = np.flatnonzero(occurring[0] == self.TRAIN_IDS)
            found = f"All labels hold two values: {value} ({self.NAMES[occurring[0]]}) and 255, which is ignored. "
            return [found + folder_config.binary_advice(int(value), self.fields["classes"])], []
        num_binary, num_mixed = sum(split.num_binary for split in splits), sum(split.num_mixed for split in splits)
        if num_binary and not num_mixed and len(self.NAMES) == 2:
            return [], [
                f"{num_binary} labels hold one class and 255, which is ignored, and none holds both classes and 255. "
                "If 255 is a class in these, write c.data.folder.label_values = (0, (1, 255))."
            ]
        return [], []


def ids_of_colors(palette: Sequence[tables.Color], ids: Iterable[int]) -> dict[int, int]:
    """{0xrrggbb: train id}, without colours that stand for different ids."""
    meanings: dict[int, set[int]] = {}
    for color, i in zip(palette, ids):
        meanings.setdefault(label_values.code(color), set()).add(int(i))
    return {color: found.pop() for color, found in meanings.items() if len(found) == 1}


def train_ids(names: Sequence[str]) -> np.ndarray:
    """The train id of each class, int64 (n,); 255 of those without a name."""
    is_named = np.array([bool(name) for name in names])
    return np.where(is_named, is_named.cumsum() - 1, IGNORED)


def value_table(ids: np.ndarray, values: Sequence[int | Sequence[int]]) -> np.ndarray:
    """The train id of each value in a label file, as `FolderBuilder.TRAIN_IDS`.

    values: of each class, one or several; or () for 0, 1, ...
    """
    of_class = [value if isinstance(value, tuple | list) else (value,) for value in values or range(len(ids))]
    table = np.full(max(256, 1 + max(map(max, of_class))), -1)
    table[IGNORED] = IGNORED
    for i, values_of_class in zip(ids, of_class):
        table[list(values_of_class)] = i
    return table
