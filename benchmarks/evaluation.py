"""Evaluation on a few canvases next to one image at a time: the same predictions, and how much faster.

usage: python -m benchmarks.evaluation --config=FILE[:BACKBONE] [--images=N] [--longest=PIXELS] [--write]
                                       [--config.data.source=DIR ...]

  --config   a recipe whose data is prepared, or with config.data.source what to prepare it from
  --images   how many images (64): those of the training and evaluation splits, then resized copies of other sizes
  --longest  their longest side at most, in pixels (160), so that a CPU will do
  --write    puts the result into docs/performance.md

Weights are random, of a kind under which many classes win pixels. Both ways run in the same process from nothing
compiled, in the configured dtype; one at a time means no padding and a program for every size, as frameworks without
masks must do it to be exact. Pixels that differ are shown with the margin between their two best scores.
"""

import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import docs
from isnet_jax import cli, create_model, datasets
from isnet_jax.checkpoints import torch_names
from isnet_jax.config import inference_settings
from isnet_jax.evaluation.inference import predict
from isnet_jax.evaluation.loop import ON_DEVICE, eval_step, evaluate, make_eval_step
from isnet_jax.input.photometry import normalize
from isnet_jax.input.records import Records
from isnet_jax.runtime import sharding

REFERENCE = Path(__file__).resolve().parents[1] / "tests/reference"


class Copies(list):
    """Records of the splits, scaled to at most `longest` pixels, and copies scaled further."""

    def __init__(self, sources, count, longest):
        super().__init__()
        records = [source[i] for source in sources for i in range(len(source))]
        for i in range(count):
            record = records[i % len(records)]
            image = cv2.imdecode(np.frombuffer(record["image"], np.uint8), cv2.IMREAD_COLOR)
            label = cv2.imdecode(np.frombuffer(record["label"], np.uint8), cv2.IMREAD_GRAYSCALE)
            scale = longest / max(label.shape) * (1, 0.85, 0.7, 0.6)[i // len(records) % 4]
            size = [max(32, round(n * scale)) for n in label.shape[::-1]]
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
            self.append(
                {
                    "image": cv2.imencode(".png", image)[1].tobytes(),
                    "height": size[1],
                    "width": size[0],
                    "label": cv2.imencode(".png", label)[1].tobytes(),
                    "name": str(i).encode(),
                }
            )


def random_variables(model):
    """The weights of the recorded cases, for a network of any shape."""
    import runpy

    weights = SimpleNamespace(**runpy.run_path(str(REFERENCE / "weights.py")))
    names = torch_names.official_names(model)
    variables = torch_names.from_torch(
        {name: weights.tensor(name, shape, 0) for name, (_, shape) in names.items()}, model
    )
    return jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, variables)


def _main(config, values):
    from isnet_jax.input import pipeline

    builder = datasets.load(config.data.name, config.data.data_dir, config.data.source, config.data.folder)
    splits = config.data.train_split, config.data.eval_split
    source = Records(Copies([pipeline.open_split(builder, split) for split in splits], values.images, values.longest))
    config.test.resize = ()
    model, mesh, settings = create_model(config.model), sharding.make_mesh(), inference_settings(config)
    variables = jax.device_put(random_variables(model), sharding.replicated(mesh))
    sizes = pipeline.eval_sizes([(record["height"], record["width"]) for record in source], config)
    plan, found = pipeline.eval_plan(sizes, config.test.batch_size, config.test.max_shape_buckets)
    section = docs.Section("evaluation")
    tell = section.tell
    tell(
        f"{config.model.backbone}, {model.num_classes} classes, {config.model.dtype}, {mesh.size} "
        f"{mesh.devices.flat[0].device_kind}: {len(source)} images of {len(np.unique(sizes, axis=0))} sizes"
    )
    start = time.perf_counter()
    step = make_eval_step(model, mesh, settings)
    shared = {}

    def keep(entry, batch, result):
        predictions = np.asarray(result["predictions"])
        shared.update(
            {
                int(i): prediction[:h, :w]
                for i, prediction, (h, w) in zip(batch["index"], predictions, batch["label_size"])
                if i >= 0
            }
        )

    batched = evaluate(step, variables, pipeline.eval_batches(source, config, plan), plan, mesh, keep)
    batched_seconds, programs = time.perf_counter() - start, step._cache_size()

    start = time.perf_counter()
    one = jax.jit(partial(eval_step, model=model, settings=settings, boundary=False), static_argnums=2)
    alone_plan, _ = pipeline.eval_plan(sizes, 1, len(sizes))
    total, differing, margins = 0, 0, []
    on_one = jax.device_put(variables, jax.devices()[0])
    for batch in pipeline.eval_batches(source, config, alone_plan):
        arrays = {name: jnp.asarray(batch[name]) for name in ON_DEVICE}
        result = one(on_one, arrays, False)
        total = total + np.asarray(result["confusion"], np.int64)
        batch["prediction"] = np.asarray(result["predictions"])[0]
        index = int(batch["index"][0])
        wrong = batch["prediction"] != shared[index]
        if wrong.any():
            pause = time.perf_counter()
            scores = np.sort(predict(model, on_one, normalize(arrays["image"]), wrong.shape, **settings)[0][wrong])
            margins += [scores[:, -1] - scores[:, -2]]
            differing += wrong.sum()
            start += time.perf_counter() - pause
    alone_seconds, alone_programs = time.perf_counter() - start, one._cache_size()

    padding = pipeline.padding(plan, sizes)
    pixels = int((sizes[:, 2] * sizes[:, 3]).sum())
    tell(f"one at a time      {alone_programs:3d} programs                 {len(source) / alone_seconds:8.2f} images/s")
    tell(
        f"batched, canvases  {programs:3d} programs  {100 * padding:5.1f} % padding "
        f"{len(source) / batched_seconds:8.2f} images/s  {alone_seconds / batched_seconds:.1f} times as fast"
    )
    largest = f", whose two best scores differ by at most {np.concatenate(margins).max():.1e}" if margins else ""
    tell(
        f"{differing} of {pixels} pixels are predicted differently{largest}; "
        f"{np.abs(batched['confusion'] - total).sum() // 2} counts of the confusion matrix move"
    )
    if values.write:
        section.write()


def _define_flags():
    flags.DEFINE_integer("images", 64, "how many images")
    flags.DEFINE_integer("longest", 160, "longest side in pixels")
    flags.DEFINE_boolean("write", False, "write docs/performance.md")


if __name__ == "__main__":
    cli.run(_main, __doc__, _define_flags)
