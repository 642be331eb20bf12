"""Batches from prepared data: the batch at step t is a pure function of (seed, t).

Epoch e visits the examples in the permutation drawn from (seed, e); an example's augmentation draws from
(seed, e, its index). So there is no iterator state to save, and any number of processes sees the same batches.
"""

import atexit
import functools
import weakref
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from isnet_jax import augment, canvases
from isnet_jax.datasets.common import ENCODED
from isnet_jax.errors import UserError
from isnet_jax.losses import IGNORED
from isnet_jax.records import Records

LABEL_WEIGHTS = 1, 0.1  # what a pixel of the network's input costs, and one of the label

tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's


class Batches:
    """Iterator over the batches of a tf.data.Dataset as dicts of NumPy arrays; `close` it, or leave it to `with`.

    Raises UserError for what cannot be read or decoded. Left open it is closed when the interpreter ends: threads of
    tf.data that still want to run Python then would never end.
    """

    def __init__(self, dataset, mistakes):
        """mistakes: a list of the UserErrors raised behind the dataset, which TensorFlow makes its own errors of."""
        self._iterator, self._mistakes = dataset.as_numpy_iterator(), mistakes
        _open.add(self)

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return next(self._iterator)
        except tf.errors.OpError as error:
            raise (self._mistakes or [error])[0] from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Stops the threads behind it; it is then at its end."""
        self._iterator = iter(())


def _close_all():
    for batches in list(_open):
        batches.close()


_open: weakref.WeakSet = weakref.WeakSet()
atexit.register(_close_all)


def open_split(builder, split):
    """The Records of a split, image and label encoded; raises UserError naming the valid splits."""
    if split not in builder.info.splits:
        raise UserError(
            f"The data set {builder.name} has no split {split!r}; config.data.train_split and "
            f"config.data.eval_split must be among {', '.join(builder.info.splits)}."
        )
    names = [name for name, *_ in builder.info.metadata["examples"][split]]
    return Records(builder.as_data_source(split, decoders=ENCODED), names, f"{builder.data_path} ({split})")


def steps_per_epoch(num_examples, config):
    """Whole batches in an epoch (the last partial one is dropped); raises UserError if there is none."""
    steps = num_examples // config.train.global_batch_size
    if steps == 0:
        raise UserError(
            f"The split {config.data.train_split} of {config.data.name} has {num_examples} examples, fewer "
            f"than config.train.global_batch_size = {config.train.global_batch_size}; lower it."
        )
    return steps


def batch_indices(step, num_examples, batch_size, seed):
    """Epoch, and indices (batch_size,) int64 of the examples, of the batch at `step`."""
    epoch, position = divmod(step, num_examples // batch_size)
    return epoch, epoch_order(num_examples, seed, epoch)[position * batch_size : (position + 1) * batch_size]


@functools.lru_cache(maxsize=2)
def epoch_order(num_examples, seed, epoch):
    """int64 (num_examples,): the order in which an epoch visits the examples."""
    order = np.random.default_rng([0, seed, epoch]).permutation(num_examples)
    order.setflags(write=False)
    return order


def train_batches(source, config, start, stop, rows=slice(None)):
    """Iterator over some rows of the batches at steps start..stop-1, as dicts of NumPy arrays.

    source: Records; rows: (b,) of the global batch, as `sharding.local_rows` says, by default all. image uint8
    (b, ch, cw, 3), label uint8 (b, ch, cw), window int32 (b, 4), index int64 (b,).
    """
    crop_size = tuple(config.augment.crop_size)

    def make(step):
        epoch, indices = batch_indices(step, len(source), config.train.global_batch_size, config.seed)
        indices = indices[rows]
        images = np.zeros((len(indices), *crop_size, 3), np.uint8)
        labels, windows = np.full(images.shape[:3], IGNORED, np.uint8), np.zeros((len(indices), 4), np.int32)
        records = source.__getitems__(indices.tolist())
        for i, (index, record) in enumerate(zip(indices.tolist(), records)):
            with source.decoding(index):
                windows[i] = augment.augment(
                    record["image"], record["label"], (config.seed, epoch, index), config.augment, images[i], labels[i]
                )
        return images, labels, windows, indices

    return _parallel(make, range(start, stop), image=tf.uint8, label=tf.uint8, window=tf.int32, index=tf.int64)


def _parallel(make, numbers, **dtypes):
    """Batches of what `make` returns for each number of a range, arrays of these names and dtypes, made ahead.

    A batch is made by one thread: most of its time goes to decoders and OpenCV, which let other threads run Python.
    """
    mistakes = []

    def make_or_tell(number):
        try:
            return make(int(number))
        except UserError as error:
            mistakes.append(error)
            raise

    dataset = tf.data.Dataset.range(numbers.start, numbers.stop).map(
        lambda number: dict(
            zip(dtypes, tf.numpy_function(make_or_tell, [number], list(dtypes.values()), stateful=False))
        ),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return Batches(dataset.prefetch(2), mistakes)


class EvalBatch(NamedTuple):
    """A batch of evaluation, and the canvases it lies on."""

    shape: tuple  # (H, W) of the images
    label_shape: tuple  # (Hl, Wl)
    padded: bool  # whether some image of this canvas is smaller than it
    indices: np.ndarray  # int64 (batch_size,), of the examples; -1 fills up the last batch of a canvas

    @property
    def num_images(self):
        return int((self.indices >= 0).sum())


def eval_sizes(sizes, config):
    """int (examples, 4): height and width of the network's input, and of the image and its label, which are `sizes`."""
    resized = [augment.target_size(h, w, config.test.resize, config.test.keep_ratio) for h, w in sizes]
    return np.concatenate([resized, sizes], axis=1)


def eval_plan(sizes, batch_size, max_programs, done=()):
    """Batches in which every example but those `done` occurs once, and Canvases, at most `max_programs`.

    sizes as from `eval_sizes`. Which canvas an example lies on does not depend on what is done. Nothing is dropped.
    Canvases are no more than batches can be filled.
    """
    programs = min(max_programs, 1 + len(sizes) // batch_size)
    found = canvases.choose(sizes, programs, LABEL_WEIGHTS)
    todo = np.setdiff1d(np.arange(len(sizes)), done)
    plan = []
    for i, canvas in enumerate(found.sizes.tolist()):
        padded = bool((sizes[found.which == i, :2] != canvas[:2]).any())
        indices = todo[found.which[todo] == i]
        count = -(-len(indices) // batch_size)
        filled = np.full(count * batch_size, -1)
        filled[: len(indices)] = indices
        plan += [
            EvalBatch(tuple(canvas[:2]), tuple(canvas[2:]), padded, batch)
            for batch in filled.reshape(count, batch_size)
        ]
    return plan, found


def padding(plan, sizes):
    """What a plan computes beyond the images themselves, as a share of them: canvases, and batches filled up."""
    held = np.concatenate([entry.indices[entry.indices >= 0] for entry in plan])
    computed = sum(
        len(entry.indices) * canvases.cost(np.array([*entry.shape, *entry.label_shape]), LABEL_WEIGHTS)
        for entry in plan
    )
    return computed / canvases.cost(sizes[held], LABEL_WEIGHTS).sum() - 1


def eval_batches(source, config, plan, rows=slice(None)):
    """Iterator over some rows of the batches of a plan, as dicts of NumPy arrays.

    source: Records; rows: (b,) of a batch, as `sharding.local_rows` says, by default all. image uint8 (b, H, W, 3) and
    label uint8 (b, Hl, Wl) at the top left of their canvas, image_size and label_size int32 (b, 2), index int64 (b,);
    -1 for what fills a batch up, a black pixel without label.
    """

    def make(number):
        entry = plan[number]
        indices = entry.indices[rows]
        images = np.zeros((len(indices), *entry.shape, 3), np.uint8)
        labels = np.full((len(indices), *entry.label_shape), IGNORED, np.uint8)
        sizes = np.ones((2, len(indices), 2), np.int32)
        for i, index in enumerate(indices.tolist()):
            if index >= 0:
                record = source[index]
                with source.decoding(index):
                    image, label = augment.decode_image(record["image"]), augment.decode_label(record["label"])
                    if config.test.resize:
                        image = augment.resize(
                            image, augment.target_size(*label.shape, config.test.resize, config.test.keep_ratio)
                        )
                    for array, new, size in (images[i], image, sizes[0]), (labels[i], label, sizes[1]):
                        size[i] = height, width = new.shape[:2]
                        array[:height, :width] = new
        return images, labels, *sizes, indices

    return _parallel(
        make, range(len(plan)), image=tf.uint8, label=tf.uint8, image_size=tf.int32, label_size=tf.int32, index=tf.int64
    )
