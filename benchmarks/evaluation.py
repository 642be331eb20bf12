"""Evaluation in a few padded shape buckets compared with one image at a time: equal predictions, and the speed-up.

usage: python -m benchmarks.evaluation --config=FILE[:BACKBONE] [--images=N] [--longest=PIXELS] [--write]
                                       [--config.data.source=DIR ...]

  --config   a recipe whose data is prepared, or to be prepared from config.data.source
  --images   number of images (64): those of the training and evaluation splits, then resized copies of other sizes
  --longest  upper bound of their longer side in pixels (160), low enough for a CPU
  --write    writes the result into docs/performance.md

Weights are random, chosen so that many classes win pixels. Both ways run in the same process with an empty compilation
cache, in the configured dtype. One image at a time means no padding and one compilation per size, which exact
evaluation requires of frameworks without masks. Where pixels differ, the margin between their two best scores is shown.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks import docs
from benchmarks.reference import random_variables
from isnet_jax import cli, create_model, datasets
from isnet_jax.config import inference_settings
from isnet_jax.evaluation.inference import predict
from isnet_jax.evaluation.loop import ON_DEVICE, eval_step, evaluate, make_eval_step
from isnet_jax.input.photometry import normalize
from isnet_jax.input.records import Records
from isnet_jax.models.isnet import ISNet
from isnet_jax.runtime import compiler, sharding
from isnet_jax.runtime.console import aligned

if TYPE_CHECKING:  # imports TensorFlow, which cli.run must silence first
    from isnet_jax.input.pipeline import EvalBatch


class Result(NamedTuple):
    """An evaluation of all images."""

    seconds: float
    compilations: int
    confusion: np.ndarray  # int64 (K, K)


class Case(NamedTuple):
    """What both evaluations have in common."""

    config: ConfigDict
    model: ISNet
    variables: dict[str, Any]  # on the host
    mesh: Mesh
    settings: dict[str, Any]
    images: Records
    sizes: np.ndarray  # as from pipeline.eval_sizes


def resized_copies(sources: Sequence[Records], count: int, longest: int) -> list[dict[str, Any]]:
    """Examples of the sources, scaled to at most `longest` pixels, then copies of them scaled further."""
    originals = [source[i] for source in sources for i in range(len(source))]
    copies = []
    for i in range(count):
        original = originals[i % len(originals)]
        image = cv2.imdecode(np.frombuffer(original["image"], np.uint8), cv2.IMREAD_COLOR)
        label = cv2.imdecode(np.frombuffer(original["label"], np.uint8), cv2.IMREAD_GRAYSCALE)
        scale = longest / max(label.shape) * (1, 0.85, 0.7, 0.6)[i // len(originals) % 4]
        width, height = (max(32, round(n * scale)) for n in label.shape[::-1])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
        encoded_image, encoded_label = (cv2.imencode(".png", array)[1].tobytes() for array in (image, label))
        copies.append({"image": encoded_image, "label": encoded_label, "height": height, "width": width})
    return copies


def make_case(config: ConfigDict, num_images: int, longest: int) -> Case:
    """The network with random weights, and the images."""
    from isnet_jax.input import pipeline

    builder = datasets.load(config.data.name, config.data.data_dir, config.data.source, config.data.folder)
    splits = [pipeline.open_split(builder, split) for split in (config.data.train_split, config.data.eval_split)]
    examples = resized_copies(splits, num_images, longest)
    config.test.resize = ()
    sizes = pipeline.eval_sizes([(example["height"], example["width"]) for example in examples], config)
    model = create_model(config.model)
    variables = jax.device_get(random_variables(model))
    return Case(config, model, variables, sharding.make_mesh(), inference_settings(config), Records(examples), sizes)


def evaluate_in_buckets(case: Case, plan: Sequence["EvalBatch"]) -> tuple[Result, dict[int, np.ndarray]]:
    """The evaluation in padded batches, and the predictions (h, w) of each image."""
    from isnet_jax.input import pipeline

    variables, predictions = jax.device_put(case.variables, sharding.replicated(case.mesh)), {}

    def keep_predictions(_, batch, result):
        for index, prediction, (h, w) in zip(batch["index"], np.asarray(result["predictions"]), batch["label_size"]):
            if index >= 0:
                predictions[int(index)] = prediction[:h, :w]

    start = time.perf_counter()
    step = make_eval_step(case.model, case.mesh, case.settings)
    with pipeline.eval_batches(case.images, case.config, plan) as batches:
        scores = evaluate(step, variables, batches, plan, case.mesh, keep_predictions)
    return Result(time.perf_counter() - start, step._cache_size(), scores["confusion"]), predictions


def evaluate_one_by_one(case: Case, expected: dict[int, np.ndarray]) -> tuple[Result, np.ndarray]:
    """The evaluation without padding, and the margins (pixels,) of pixels predicted otherwise than expected."""
    from isnet_jax.input import pipeline

    variables = jax.device_put(case.variables, jax.devices()[0])
    plan, _ = pipeline.eval_plan(case.sizes, 1, len(case.sizes))
    confusion, margins = 0, [np.zeros(0)]
    start = time.perf_counter()
    step = jax.jit(
        partial(eval_step, model=case.model, settings=case.settings, boundary=False),
        static_argnums=2,
        compiler_options=compiler.options(case.mesh),
    )
    with pipeline.eval_batches(case.images, case.config, plan) as batches:
        for batch in batches:
            arrays = {name: jnp.asarray(batch[name]) for name in ON_DEVICE}
            result = step(variables, arrays, False)
            confusion = confusion + np.asarray(result["confusion"], np.int64)
            differs = np.asarray(result["predictions"])[0] != expected[int(batch["index"][0])]
            if differs.any():
                paused = time.perf_counter()
                images = normalize(arrays["image"])
                scores = predict(case.model, variables, images, differs.shape, **case.settings)[0][differs]
                best, second = np.sort(scores)[:, :-3:-1].T
                margins.append(best - second)
                start += time.perf_counter() - paused
    return Result(time.perf_counter() - start, step._cache_size(), confusion), np.concatenate(margins)


def _main(config: ConfigDict, flag_values: Any) -> None:
    from isnet_jax.input import pipeline

    case = make_case(config, flag_values.images, flag_values.longest)
    sizes, count = case.sizes, len(case.images)
    section = docs.Section("evaluation")
    section.say(
        f"{config.model.backbone}, {config.model.num_classes} classes, {config.model.dtype}, "
        f"{sharding.describe(case.mesh)}: {count} images of {len(np.unique(sizes, axis=0))} sizes"
    )
    batch_size = sharding.round_up_batch_size(config.test.batch_size, case.mesh)
    plan, _ = pipeline.eval_plan(sizes, batch_size, config.test.max_shape_buckets)
    padding = 100 * pipeline.padding(plan, sizes)
    buckets, predictions = evaluate_in_buckets(case, plan)
    single, margins = evaluate_one_by_one(case, predictions)
    rows = [
        ["", "compilations", "padding", "images/s", "speed-up"],
        ["one at a time", f"{single.compilations}", "0 %", f"{count / single.seconds:.2f}", "1.0"],
        [
            "in shape buckets",
            f"{buckets.compilations}",
            f"{padding:.1f} %",
            f"{count / buckets.seconds:.2f}",
            f"{single.seconds / buckets.seconds:.1f}",
        ],
    ]
    section.say(f"\n{aligned(rows)}")
    different = int(np.abs(buckets.confusion - single.confusion).sum() // 2)
    largest = f", with margins of their best score of at most {margins.max():.1e}" if len(margins) else ""
    section.say(
        f"\n{len(margins)} of {sizes[:, 2:].prod(1).sum()} pixels are predicted differently{largest}; "
        f"{different} counts of the confusion matrix differ"
    )
    if flag_values.write:
        raw = {"images": count, "padding_percent": padding, "pixels_that_differ": len(margins)}
        for name, result in ("one at a time", single), ("in shape buckets", buckets):
            raw[name] = {"compilations": result.compilations, "seconds": result.seconds}
        section.write(raw)


def _define_flags() -> None:
    flags.DEFINE_integer("images", 64, "number of images")
    flags.DEFINE_integer("longest", 160, "longer side in pixels")
    flags.DEFINE_boolean("write", False, "write docs/performance.md")


if __name__ == "__main__":
    cli.run(_main, __doc__, _define_flags)
