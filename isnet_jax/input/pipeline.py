"""Batches of prepared data; the training batch at step t is a pure function of (seed, t).

Epoch e visits the examples in a permutation drawn from (seed, e). The augmentation of an example draws from
(seed, e, its index). There is therefore no iterator state to save, and any number of processes sees the same batches.
"""

import atexit
import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from isnet_jax.datasets.common import ENCODED
from isnet_jax.datasets.image_files import hide_accelerators
from isnet_jax.errors import UserError
from isnet_jax.input import augment, buckets
from isnet_jax.input.buckets import Buckets
from isnet_jax.input.records import Records
from isnet_jax.input.resizing import resize, target_size, use_one_opencv_thread
from isnet_jax.labels import IGNORED
from isnet_jax.runtime.threads import num_workers

PIXEL_COSTS = 1.0, 0.1  # relative: a pixel of the network's input, and one of the label

Batch = dict[str, np.ndarray]
Rows = np.ndarray | Sequence[int] | slice  # of a global batch: those of this process, as `sharding.local_rows` gives


class Batches:
    """Iterator over the batches of a tf.data.Dataset, as dicts of NumPy arrays; a context manager that closes it.

    Iterating raises UserError for examples that cannot be read or decoded. Batches left open are closed when the
    interpreter exits: threads of tf.data that still need Python then would never end.
    """

    def __init__(self, dataset: tf.data.Dataset, errors: list[UserError]):
        """errors: those raised inside the dataset, which TensorFlow replaces with errors of its own."""
        self._iterator: Iterator[Batch] = dataset.as_numpy_iterator()
        self._errors = errors
        _register_close_all()
        _open.add(self)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        try:
            return next(self._iterator)
        except tf.errors.OpError as error:
            raise (self._errors or [error])[0] from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the threads behind the iterator, which then has no more batches."""
        self._iterator = iter(())


_open: weakref.WeakSet[Batches] = weakref.WeakSet()


@functools.cache  # once a process
def _register_close_all() -> None:
    atexit.register(_close_all)


def _close_all() -> None:
    for batches in list(_open):
        batches.close()


def split_parts(split: str) -> tuple[str, ...]:
    """The splits that a name such as "train+val" joins."""
    return tuple(part.strip() for part in split.split("+"))


def open_split(builder: tfds.core.DatasetBuilder, split: str) -> Records:
    """The examples of a split, or of several as in "train+val", with image and label encoded.

    Raises UserError naming the valid splits.
    """
    parts = split_parts(split)
    if len(set(parts)) < len(parts) or not set(parts) <= set(builder.info.splits):
        raise UserError(
            f"The data set {builder.name} has no split {split!r}; config.data.train_split and config.data.eval_split "
            f"must be among {', '.join(builder.info.splits)}, or several joined by +. If its files are there, "
            "isnet_jax.prepare --overwrite prepares all splits."
        )
    source = builder.as_data_source("+".join(parts), decoders=ENCODED)
    names = [name for name, *_ in split_examples(builder, split)]
    upright = builder.info.metadata.get("upright", False)  # earlier versions never turned images
    return Records(source, names, f"{builder.data_path} ({split})", upright)


def split_examples(builder: tfds.core.DatasetBuilder, split: str) -> list[tuple[str, int, int]]:
    """(name, height, width) of the examples that `open_split` gives."""
    return [tuple(example) for part in split_parts(split) for example in builder.info.metadata["examples"][part]]


def steps_per_epoch(num_examples: int, config: ConfigDict) -> int:
    """Whole batches in an epoch (the last partial one is dropped); raises UserError if there is none."""
    steps = num_examples // config.train.global_batch_size
    if steps == 0:
        raise UserError(
            f"The split {config.data.train_split} of {config.data.name} has {num_examples} examples, fewer "
            f"than config.train.global_batch_size = {config.train.global_batch_size}; lower it."
        )
    return steps


def batch_indices(step: int, num_examples: int, batch_size: int, seed: int) -> tuple[int, np.ndarray]:
    """The epoch of the batch at `step`, and the indices of its examples, int64 (batch_size,)."""
    epoch, position = divmod(step, num_examples // batch_size)
    return epoch, epoch_order(num_examples, seed, epoch)[position * batch_size : (position + 1) * batch_size]


@functools.lru_cache(maxsize=2)
def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the examples, int64 (num_examples,), read-only."""
    order = np.random.default_rng([0, seed, epoch]).permutation(num_examples)
    order.setflags(write=False)
    return order


def train_batches(source: Records, config: ConfigDict, start: int, stop: int, rows: Rows = slice(None)) -> Batches:
    """The batches at steps start..stop-1, or `rows` (b,) of each.

    image uint8 (b, ch, cw, 3), of `config.augment.crop_size`; label uint8 (b, ch, cw); window int32 (b, 4), the
    unpadded region of each image, (top, left, height, width); index int64 (b,), of the example.
    """
    crop_size = tuple(config.augment.crop_size)

    def make(step: int) -> tuple[np.ndarray, ...]:
        epoch, indices = batch_indices(step, len(source), config.train.global_batch_size, config.seed)
        indices = indices[rows]
        images = np.zeros((len(indices), *crop_size, 3), np.uint8)
        labels, windows = np.full(images.shape[:3], IGNORED, np.uint8), np.zeros((len(indices), 4), np.int32)
        examples = source.__getitems__(indices.tolist())
        for i, (index, example) in enumerate(zip(indices.tolist(), examples)):
            key = config.seed, epoch, index
            with source.decoding(index):
                windows[i] = augment.augment(
                    example["image"], example["label"], key, config.augment, images[i], labels[i], source.upright
                )
        return images, labels, windows, indices

    return _parallel(make, range(start, stop), image=tf.uint8, label=tf.uint8, window=tf.int32, index=tf.int64)


def _parallel(make: Callable[[int], tuple[np.ndarray, ...]], numbers: range, **dtypes: tf.DType) -> Batches:
    """The batches that `make` returns for a range of numbers, as arrays of these names and dtypes, computed ahead.

    One thread makes a batch: most of its time is spent in decoders and OpenCV, which release the GIL.
    """
    errors: list[UserError] = []

    def make_or_record_error(number: np.int64) -> tuple[np.ndarray, ...]:
        try:
            return make(int(number))
        except UserError as error:
            errors.append(error)
            raise

    use_one_opencv_thread()
    hide_accelerators()
    dataset = tf.data.Dataset.range(numbers.start, numbers.stop).map(
        lambda number: dict(
            zip(dtypes, tf.numpy_function(make_or_record_error, [number], list(dtypes.values()), stateful=False))
        ),
        num_parallel_calls=num_workers(),
        deterministic=True,
    )
    options = tf.data.Options()
    options.autotune.enabled = False  # its thread sleeps for up to a minute, and closing the iterator waits for it
    return Batches(dataset.prefetch(2).with_options(options), errors)


class EvalBatch(NamedTuple):
    """A batch of evaluation: its shape bucket and its examples."""

    shape: tuple[int, int]  # (H, W) of the images
    label_shape: tuple[int, int]  # (Hl, Wl) of the labels
    padded: bool  # whether any image of this bucket is smaller than `shape`
    indices: np.ndarray  # int64 (batch_size,), of the examples; -1 fills up the last batch of a bucket

    @property
    def num_images(self) -> int:
        """Examples in the batch."""
        return int((self.indices >= 0).sum())


def eval_sizes(sizes: Sequence[Sequence[int]], config: ConfigDict) -> np.ndarray:
    """(height, width) of each example's network input, then of its label, int (examples, 4).

    sizes: (height, width) of each original image, which is that of its label.
    """
    resized = [target_size(h, w, config.test.resize, config.test.keep_ratio) for h, w in sizes]
    return np.concatenate([resized, sizes], axis=1)


def eval_plan(
    sizes: np.ndarray,
    batch_size: int,
    max_shape_buckets: int,
    done: Sequence[int] | np.ndarray = (),
    bucket_cost: float = 0.0,
) -> tuple[list[EvalBatch], Buckets]:
    """Batches in which every example but those `done` (indices) occurs once, and their shape buckets.

    sizes: as from `eval_sizes`. There are at most `max_shape_buckets` buckets, and no more than whole batches can fill.
    The bucket of an example does not depend on `done`. bucket_cost: what compiling for a bucket costs, in pixels of the
    network's input.
    """
    max_buckets = min(max_shape_buckets, 1 + len(sizes) // batch_size)
    chosen = buckets.choose_buckets(sizes, max_buckets, PIXEL_COSTS, bucket_cost)
    todo = np.setdiff1d(np.arange(len(sizes)), done)
    plan = []
    for i, bucket in enumerate(chosen.sizes.tolist()):
        padded = bool((sizes[chosen.which == i, :2] != bucket[:2]).any())
        indices = todo[chosen.which[todo] == i]
        count = -(-len(indices) // batch_size)
        filled = np.full(count * batch_size, -1)
        filled[: len(indices)] = indices
        plan += [
            EvalBatch(tuple(bucket[:2]), tuple(bucket[2:]), padded, batch)
            for batch in filled.reshape(count, batch_size)
        ]
    return plan, chosen


def padding(plan: Sequence[EvalBatch], sizes: np.ndarray) -> float:
    """The share by which a plan costs more than its images alone: padding to buckets, and batches filled up."""
    indices = np.concatenate([entry.indices[entry.indices >= 0] for entry in plan])
    computed = sum(
        len(entry.indices) * buckets.cost(np.array([*entry.shape, *entry.label_shape]), PIXEL_COSTS) for entry in plan
    )
    return max(computed / buckets.cost(sizes[indices], PIXEL_COSTS).sum() - 1, 0.0)  # rounding prints -0.0 otherwise


def eval_batches(source: Records, config: ConfigDict, plan: Sequence[EvalBatch], rows: Rows = slice(None)) -> Batches:
    """The batches of a plan, or `rows` (b,) of each.

    image uint8 (b, H, W, 3) and label uint8 (b, Hl, Wl), each at the top left of its padded shape; image_size and
    label_size int32 (b, 2); index int64 (b,), of the example. An entry that fills up a batch has index -1, a size of
    1 x 1, a black image and a label of 255.
    """

    def make(number: int) -> tuple[np.ndarray, ...]:
        entry = plan[number]
        indices = entry.indices[rows]
        images = np.zeros((len(indices), *entry.shape, 3), np.uint8)
        labels = np.full((len(indices), *entry.label_shape), IGNORED, np.uint8)
        image_sizes, label_sizes = np.ones((2, len(indices), 2), np.int32)
        for i, index in enumerate(indices.tolist()):
            if index < 0:
                continue
            example = source[index]
            with source.decoding(index):
                image = augment.decode_image(example["image"], upright=source.upright)
                label = augment.decode_label(example["label"])
                if config.test.resize:
                    height, width = label.shape
                    image = resize(image, target_size(height, width, config.test.resize, config.test.keep_ratio))
                image_sizes[i] = _write_top_left(image, images[i])
                label_sizes[i] = _write_top_left(label, labels[i])
        return images, labels, image_sizes, label_sizes, indices

    return _parallel(
        make, range(len(plan)), image=tf.uint8, label=tf.uint8, image_size=tf.int32, label_size=tf.int32, index=tf.int64
    )


def _write_top_left(array: np.ndarray, padded: np.ndarray) -> tuple[int, int]:
    """Writes an image or label to the top left of a padded one; returns its (height, width)."""
    height, width = array.shape[:2]
    padded[:height, :width] = array
    return height, width
