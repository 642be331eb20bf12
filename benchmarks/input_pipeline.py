"""Speed of the training input, next to a NumPy/OpenCV statement of the official recipe on the same images.

usage: python -m benchmarks.input_pipeline --config=configs/ade20k.py [--seconds=N] [--write]
                                           [--config.data.source=DIR ...]

  --config   a recipe whose data is prepared, or with config.data.source what to prepare it from
  --seconds  how long to measure (60)
  --write    puts the result into docs/performance.md

Both run pinned to one core, in turns, and seconds are those that the process really had the core, so that the ratio
means something on a machine that others share. The official
recipe makes normalised float32; the input pipeline makes uint8, because photometry and normalisation are part of the
train step, on the accelerator.
"""

import os
import statistics
import time

import cv2
import numpy as np
from absl import flags

from benchmarks import docs, opencv_recipe
from isnet_jax import cli, datasets


class Stopwatch:
    """Seconds spent between `lap`s, by name."""

    def __init__(self):
        self.spent, self.last = {}, time.process_time()

    def lap(self, name):
        now = time.process_time()
        self.spent[name] = self.spent.get(name, 0) + now - self.last
        self.last = now

    def table(self, images):
        """Rows of milliseconds per image and share of the whole."""
        total = sum(self.spent.values())
        return "\n".join(
            f"  {name:38s}{1e3 * seconds / images:7.2f} ms {100 * seconds / total:5.1f} %"
            for name, seconds in [*self.spent.items(), ("sum", total)]
        )


def official_stages(source, config, images):
    """The official recipe, stage by stage."""
    watch = Stopwatch()
    for i in range(images):
        rng = np.random.default_rng(i)
        record = source[i % len(source)]
        watch.lap("read the record")
        image = cv2.imdecode(np.frombuffer(record["image"], np.uint8), cv2.IMREAD_COLOR_RGB)
        label = cv2.imdecode(np.frombuffer(record["label"], np.uint8), cv2.IMREAD_GRAYSCALE)
        watch.lap("decode image and label")
        image, label = opencv_recipe.resize(image, label, config, rng.uniform(*config.scale_range))
        watch.lap("resize")
        image, label = opencv_recipe.crop(image, label, config, rng)
        watch.lap("crop")
        image, label = opencv_recipe.rotate(*opencv_recipe.flip(image, label, config, rng), config, rng)
        watch.lap("mirror, rotate")
        image = opencv_recipe.distort(image, **opencv_recipe.draw_distortion(rng))
        watch.lap("photometric distortion")
        opencv_recipe.pad(opencv_recipe.normalize(image), label, config)
        watch.lap("normalise, pad")
    return watch


def pipeline_stages(source, config, images):
    """What the input pipeline does, stage by stage, without tf.data around it."""
    from isnet_jax.input import augment

    watch = Stopwatch()
    for i in range(images):
        record = source.__getitems__([i % len(source)])[0]
        watch.lap("read the record")
        label = augment.decode_label(record["label"])
        watch.lap("decode the label")
        _, plan = augment.augment_label(label, augment.generator((0, 0, i)), config)
        watch.lap("resize the label, choose the crop, ...")
        part = augment.decode_image(record["image"], plan.source_region)
        watch.lap("decode the image's part")
        augment.augment_image(part, plan)
        watch.lap("resize the image, crop, ...")
    return watch


def official_rate(source, config, seconds, first):
    """Images a second of the official recipe."""
    start, done = time.process_time(), 0
    while time.process_time() < start + seconds:
        record = source[(first + done) % len(source)]
        opencv_recipe.example(record["image"], record["label"], config, np.random.default_rng(first + done))
        done += 1
    return done / (time.process_time() - start)


def pipeline_rate(batches, batch_size, seconds):
    """Images a second out of an iterator of `pipeline.train_batches`."""
    start, done = time.process_time(), 0
    while time.process_time() < start + seconds:
        next(batches)
        done += batch_size
    return done / (time.process_time() - start)


def _main(config, values):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])  # before TensorFlow counts them
    cv2.setNumThreads(1)
    builder = datasets.load(config.data.name, config.data.data_dir, config.data.source, config.data.folder)
    from isnet_jax.input import pipeline

    source = pipeline.open_split(builder, config.data.train_split)
    config.train.global_batch_size = batch_size = min(config.train.global_batch_size, len(source))
    height, width = (
        round(float(np.mean([source[i][side] for i in range(min(len(source), 500))]))) for side in ("height", "width")
    )
    section = docs.Section("input")
    tell = section.tell
    tell(
        f"{config.data.name}, {len(source)} images, {height} x {width} (height x width) on average, to crops of "
        f"{config.augment.crop_size[0]} x {config.augment.crop_size[1]}, on one core"
    )

    turns, share = 6, values.seconds / 15  # the rest is for the stages
    batches = pipeline.train_batches(source, config, 0, 10**9)
    pipeline_rate(batches, batch_size, share / 2)  # fills the buffers
    rates = []
    for turn in range(turns):
        rates.append(
            (official_rate(source, config.augment, share, 1000 * turn), pipeline_rate(batches, batch_size, share))
        )
    official, ours = (statistics.median(r) for r in zip(*rates))
    ratios = sorted(b / a for a, b in rates)

    images = max(8, int(share * official / 2))
    for name, stages in ("official recipe", official_stages), ("input pipeline", pipeline_stages):
        stages(source, config.augment, 3)
        tell(f"\n{name}, stage by stage\n{stages(source, config.augment, images).table(images)}")
    tell(f"\nofficial recipe in NumPy/OpenCV {official:7.1f} images/s per core")
    tell(f"input pipeline                  {ours:7.1f} images/s per core")
    tell(
        f"ratio                           {statistics.median(ratios):7.2f} (median of {turns} turns, "
        f"{ratios[0]:.2f} to {ratios[-1]:.2f})"
    )

    if values.write:
        section.write()


def _define_flags():
    flags.DEFINE_float("seconds", 60, "how long to measure")
    flags.DEFINE_boolean("write", False, "write docs/performance.md")


if __name__ == "__main__":
    cli.run(_main, __doc__, _define_flags)
