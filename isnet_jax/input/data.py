"""The data of a run: splits, class names, batches of an epoch, and the plan of an evaluation."""

import functools

import numpy as np
import tensorflow_datasets as tfds
from jax.sharding import Mesh
from ml_collections import ConfigDict

from isnet_jax import datasets
from isnet_jax.errors import UserError
from isnet_jax.input import pipeline
from isnet_jax.input.buckets import Buckets
from isnet_jax.input.records import Records
from isnet_jax.runtime import sharding

# Pixels that a CPU evaluates in the time that it compiles for a shape bucket: 2.5 s, at 4 s for 512x512 (ResNet-50).
# It tips the balance for few images only. On accelerators config.test.max_shape_buckets alone decides.
CPU_COMPILATION = 160_000


class Data:
    """The splits of a prepared data set, as `config` uses them. The training split is opened on first use."""

    def __init__(self, config: ConfigDict, builder: tfds.core.DatasetBuilder, mesh: Mesh):
        metadata = builder.info.metadata
        self.config, self.builder = config, builder
        self.class_names: list[str] = list(metadata["names"])
        self.palette: list[list[int]] = [list(map(int, color)) for color in metadata["palette"]]
        self.evaluation: Records = pipeline.open_split(builder, config.data.eval_split)
        self.image_names, *sides = zip(*pipeline.split_examples(builder, config.data.eval_split))
        self.eval_sizes = pipeline.eval_sizes(np.stack(sides, axis=1).tolist(), config)
        self.eval_batch_size = sharding.eval_batch_size(min(config.test.batch_size, len(self.evaluation)), mesh)
        self._bucket_cost = CPU_COMPILATION if mesh.devices.flat[0].platform == "cpu" else 0

    @functools.cached_property
    def training(self) -> Records:
        """The training split; raises UserError naming the valid ones."""
        return pipeline.open_split(self.builder, self.config.data.train_split)

    def require_labels(self, split: str) -> None:
        """Raises UserError if no pixel of a split is labelled."""
        pixels = self.builder.info.metadata.get("pixels", {})  # earlier versions did not count them
        parts = pipeline.split_parts(split)
        if all(part in pixels for part in parts) and not any(any(pixels[part][:-1]) for part in parts):
            raise UserError(
                f"No pixel of the split {split} of {self.config.data.name} is labelled: nothing can be learnt from "
                "it, and no prediction be scored. Check its labels, or choose another config.data.train_split or "
                "config.data.eval_split."
            )

    def balanced_class_weights(self) -> list[float]:
        """1 / ln(1.02 + p) for each class, p its share of the labelled pixels of the training split (K).

        The formula of ENet (Paszke et al., 2016), from 1.42 for p = 1 to 50.5 for p = 0; but 0 for classes without a
        pixel, which are never learnt. Raises UserError if the pixels were not counted.
        """
        counted = self.builder.info.metadata.get("pixels", {})
        split = self.config.data.train_split
        if not all(part in counted for part in pipeline.split_parts(split)):
            raise UserError(
                f"config.loss.balance_classes needs the number of pixels of each class, which {self.config.data.name} "
                "lacks: an earlier version prepared it. Prepare it again (isnet_jax.prepare --overwrite), or give "
                "config.loss.class_weights."
            )
        pixels = np.sum([counted[part] for part in pipeline.split_parts(split)], axis=0)[:-1]
        return np.where(pixels > 0, 1 / np.log(1.02 + pixels / pixels.sum()), 0).tolist()

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of the training split; raises UserError if there is none."""
        return pipeline.steps_per_epoch(len(self.training), self.config)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.config.train.epochs

    def eval_plan(self, done: np.ndarray | tuple = ()) -> tuple[list[pipeline.EvalBatch], Buckets]:
        """Batches in which every example but those `done` (indices) occurs once, and their shape buckets."""
        max_buckets = self.config.test.max_shape_buckets
        return pipeline.eval_plan(self.eval_sizes, self.eval_batch_size, max_buckets, done, self._bucket_cost)


def open_data(config: ConfigDict, mesh: Mesh, *splits: str) -> Data:
    """Opens the data set of `config.data`, and prepares it first if needed, with these `splits` at least.

    Raises UserError if it cannot be prepared or opened, or has another number of classes than `config.model`.
    """
    data = config.data
    needed = [part for split in splits for part in pipeline.split_parts(split)]
    builder = datasets.load(data.name, data.data_dir, data.source, data.folder, needed)
    num_classes = len(builder.info.metadata["names"])
    if config.model.num_classes != num_classes:
        raise UserError(
            f"config.model.num_classes is {config.model.num_classes}, but the data set {data.name} has {num_classes} "
            f"classes; set it to {num_classes}."
        )
    return Data(config, builder, mesh)
