"""Speed of the training input, compared with the official recipe in NumPy and OpenCV on the same images.

usage: python -m benchmarks.input_pipeline --config=configs/ade20k.py [--seconds=N] [--write]
                                           [--config.data.source=DIR ...]

  --config   a recipe whose data is prepared, or to be prepared from config.data.source
  --seconds  duration of the measurement (60)
  --write    writes the result into docs/performance.md, and its raw numbers

Both run on the same core, alternately, and only the CPU time of the process counts. The ratio is therefore meaningful
on a machine under other load. The official recipe makes normalised float32 images. The input pipeline makes uint8
images, because photometric distortion and normalisation are part of the train step, on the accelerator. The input
pipeline alone is then timed by wall clock, in a separate process, on one core and on all cores.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import cv2
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from benchmarks import docs, opencv_recipe
from isnet_jax import cli, datasets
from isnet_jax.input.records import Records
from isnet_jax.runtime.console import aligned

TURNS = 6  # of the official recipe and the input pipeline
GPUS, GOAL, H100_FLOPS = 8, 0.45, 989e12  # a usual host, its share of the peak (dense bfloat16, SXM)


class Stopwatch:
    """CPU seconds of each stage of a loop."""

    def __init__(self):
        self.spent, self.last = {}, time.process_time()

    def lap(self, stage: str) -> None:
        """Ends a stage; the next one begins."""
        now = time.process_time()
        self.spent[stage] = self.spent.get(stage, 0) + now - self.last
        self.last = now

    def table(self, num_images: int) -> str:
        """Rows of milliseconds per image and percentages of the total."""
        total = sum(self.spent.values())
        return "\n".join(
            f"  {stage:38s}{1e3 * seconds / num_images:7.2f} ms {100 * seconds / total:5.1f} %"
            for stage, seconds in [*self.spent.items(), ("sum", total)]
        )


def official_stages(source: Records, config: ConfigDict, num_images: int) -> Stopwatch:
    """Times the stages of the official recipe; config: `config.augment`."""
    watch = Stopwatch()
    for i in range(num_images):
        rng = np.random.default_rng(i)
        example = source[i % len(source)]
        watch.lap("read the record")
        image, label = opencv_recipe.decode(example["image"], example["label"])
        watch.lap("decode image and label")
        image, label = opencv_recipe.resize(image, label, config, rng.uniform(*config.scale_range))
        watch.lap("resize")
        image, label = opencv_recipe.crop(image, label, config, rng)
        watch.lap("crop")
        image, label = opencv_recipe.rotate(*opencv_recipe.flip(image, label, config, rng), config, rng)
        watch.lap("flip, rotate")
        image = opencv_recipe.distort(image, **opencv_recipe.draw_distortion(rng))
        watch.lap("photometric distortion")
        opencv_recipe.pad(opencv_recipe.normalize(image), label, config)
        watch.lap("normalise, pad")
    return watch


def pipeline_stages(source: Records, config: ConfigDict, num_images: int) -> Stopwatch:
    """Times the stages of the input pipeline, without tf.data; config: `config.augment`."""
    from isnet_jax.datasets.image_files import decode_image, decode_label
    from isnet_jax.input import augment

    watch = Stopwatch()
    for i in range(num_images):
        example = source[i % len(source)]
        watch.lap("read the record")
        label = decode_label(example["label"])
        watch.lap("decode the label")
        _, plan = augment.augment_label(label, augment.generator((0, 0, i)), config)
        watch.lap("resize the label, choose the crop, ...")
        region = decode_image(example["image"], plan.source_region)
        watch.lap("decode the region of the image")
        augment.augment_image(region, plan)
        watch.lap("resize the image, crop, ...")
    return watch


def official_rate(source: Records, config: ConfigDict, seconds: float, first: int) -> float:
    """Images per second of the official recipe; config: `config.augment`, first: index and seed of the first image."""
    start, done = time.process_time(), 0
    while time.process_time() < start + seconds:
        example = source[(first + done) % len(source)]
        opencv_recipe.example(example["image"], example["label"], config, np.random.default_rng(first + done))
        done += 1
    return done / (time.process_time() - start)


def pipeline_rate(batches: Iterator[dict[str, np.ndarray]], batch_size: int, seconds: float) -> float:
    """Images per second from an iterator of `pipeline.train_batches`."""
    start, done = time.process_time(), 0
    while time.process_time() < start + seconds:
        next(batches)
        done += batch_size
    return done / (time.process_time() - start)


def measure_rates(source: Records, config: ConfigDict, seconds: float) -> list[tuple[float, float]]:
    """Images per second of the official recipe and of the input pipeline, in turns of `seconds` each.

    config: as `open_source` leaves it, whose batch the source can fill.
    """
    from isnet_jax.input import pipeline

    rates, batch_size = [], config.train.global_batch_size
    with pipeline.train_batches(source, config, 0, 10**9) as batches:
        pipeline_rate(batches, batch_size, seconds / 2)  # fills the buffers
        for turn in range(TURNS):
            official = official_rate(source, config.augment, seconds, 1000 * turn)
            rates.append((official, pipeline_rate(batches, batch_size, seconds)))
    return rates


def clock_rate(cores: Sequence[int], config: ConfigDict, seconds: float) -> float:
    """Images per second of the input pipeline on `cores`, by wall clock; for a process of its own."""
    os.sched_setaffinity(0, cores)  # before TensorFlow is imported and counts the cores
    cv2.setNumThreads(1)
    from isnet_jax.input import pipeline

    source, batch_size = open_source(config), config.train.global_batch_size
    with pipeline.train_batches(source, config, 0, 10**9) as batches:
        for _ in range(8):  # fills the buffers
            next(batches)
        start, done = time.perf_counter(), 0
        while time.perf_counter() < start + seconds:
            next(batches)
            done += batch_size
        return done / (time.perf_counter() - start)


def scaling(config: ConfigDict, cores: Sequence[int], seconds: float) -> dict[int, float]:
    """{number of cores: images per second of the input pipeline}, for one core and for all."""
    rates = {}
    for count in dict.fromkeys((1, len(cores))):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            rates[count] = pool.submit(clock_rate, cores[:count], config, seconds).result()
    return rates


def needed_rate(config: ConfigDict) -> tuple[float, float]:
    """TFLOP of a training image, and the images per second that eight H100 take at GOAL of their bfloat16 rate."""
    import jax

    from benchmarks.accelerator_jax import count_image_flops
    from isnet_jax import create_model

    model = create_model(config.model)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32)))
    flops = count_image_flops(model, variables, tuple(config.augment.crop_size), True)
    return flops * 1e-12, GPUS * GOAL * H100_FLOPS / flops


def open_source(config: ConfigDict) -> Records:
    """The training split; the batch becomes smaller where the data set is."""
    from isnet_jax.input import pipeline

    builder = datasets.load(config.data.name, config.data.data_dir, config.data.source, config.data.folder)
    source = pipeline.open_split(builder, config.data.train_split)
    config.train.global_batch_size = min(config.train.global_batch_size, len(source))
    return source


def _main(config: ConfigDict, flag_values: Any) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])  # before TensorFlow is imported and counts the cores
    cv2.setNumThreads(1)
    source = open_source(config)
    sample = [source[i] for i in range(min(len(source), 500))]
    height, width = (round(float(np.mean([example[side] for example in sample]))) for side in ("height", "width"))
    section = docs.Section("input")
    section.say(
        f"{config.data.name}, {len(source)} images, {height} x {width} (height x width) on average, to crops of "
        f"{config.augment.crop_size[0]} x {config.augment.crop_size[1]}, on one core"
    )
    seconds = flag_values.seconds / 21  # of a turn: 12.5 of these are for the turns, 6 for the scaling
    rates = measure_rates(source, config, seconds)
    official, ours = (statistics.median(column) for column in zip(*rates))
    ratios = sorted(b / a for a, b in rates)
    num_images = max(8, int(seconds * official / 2))
    for name, stages in ("official recipe", official_stages), ("input pipeline", pipeline_stages):
        stages(source, config.augment, 3)  # warms up
        section.say(f"\n{name}, stage by stage\n{stages(source, config.augment, num_images).table(num_images)}")
    section.say(f"\nofficial recipe in NumPy/OpenCV {official:7.1f} images/s per core")
    section.say(f"input pipeline                  {ours:7.1f} images/s per core")
    section.say(
        f"ratio                           {statistics.median(ratios):7.2f} (median of {TURNS} turns, "
        f"{ratios[0]:.2f} to {ratios[-1]:.2f})"
    )
    by_cores = scaling(config, cores, 3 * seconds)
    rows = [["cores", "images/s (wall clock)"], *([f"{count}", f"{rate:.1f}"] for count, rate in by_cores.items())]
    section.say(f"\n{aligned(rows)}")
    tflop, needed = needed_rate(config)
    section.say(
        f"\na host of {GPUS} H100 that train {config.model.backbone} at {100 * GOAL:.0f} % of their bfloat16 rate "
        f"consume {needed:,.0f} images/s ({tflop:.2f} TFLOP each): {needed / ours:.1f} cores like this one"
    )
    if flag_values.write:
        section.write(
            {
                "images": len(source),
                "turns": [{"official": a, "ours": b} for a, b in rates],
                "images_per_second_by_cores": by_cores,
                "tflop_per_image": tflop,
                "images_per_second_needed": needed,
            }
        )


def _define_flags() -> None:
    flags.DEFINE_float("seconds", 60, "how long to measure")
    flags.DEFINE_boolean("write", False, "write docs/performance.md")


if __name__ == "__main__":
    cli.run(_main, __doc__, _define_flags)
