"""The batches of a run as the network will see them, as pictures on an HTML page."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from isnet_jax.errors import UserError, translating_disk_and_memory_errors
from isnet_jax.evaluation.pictures import overlay, save_image
from isnet_jax.input import photometry, pipeline
from isnet_jax.input.data import Data, open_data
from isnet_jax.labels import IGNORED
from isnet_jax.runtime import pages, sharding
from isnet_jax.runtime.console import say
from isnet_jax.runtime.files import atomic_write_text
from isnet_jax.training.step import step_keys

ENVIRONMENT = pages.environment("isnet_jax.training")
STRIPE = 6  # pixels, of the hatching of ignored pixels
MEMORY_ADVICE = "lower config.train.global_batch_size"


def browse(config: ConfigDict, title: str, output: Path, first: int, count: int) -> None:
    """Writes index.html and its pictures into the directory `output`: `count` examples from step `first` on.

    Steps are numbered from 1, as a run logs them. Raises UserError for anything the user can correct.
    """
    resume_hint = f"from step {first}"
    with translating_disk_and_memory_errors(f"The pictures in {output}", "--output", resume_hint, MEMORY_ADVICE):
        one_device = sharding.make_mesh(devices=jax.local_devices()[:1])
        data = open_data(config, one_device, config.data.train_split, config.data.eval_split)
        if first > data.total_steps:
            raise UserError(f"--step={first} is beyond the run, which has {data.total_steps} steps; lower it.")
        batch_size = config.train.global_batch_size
        stop = min(data.total_steps, first - 1 + -(-count // batch_size))
        with pipeline.train_batches(data.training, config, first - 1, stop) as batches:
            seen = distorted(config, batches, first - 1)
            examples = itertools.islice(_examples(seen, first, data), count)
            cards = [_write(output, example, data.class_names, data.palette) for example in examples]
        page = ENVIRONMENT.get_template("browse.html").render(
            title=title, config=config, data=data, cards=cards, classes=list(zip(data.class_names, data.palette))
        )
        atomic_write_text(output / "index.html", pages.as_ascii(page))
    say(f"{len(cards)} examples of steps {first} to {stop} of {data.total_steps}: {output / 'index.html'}")


def distorted(
    config: ConfigDict, batches: Iterable[Mapping[str, np.ndarray]], first: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of `pipeline.train_batches` from step `first` on, with images as `step.train_step` distorts them."""
    distort = jax.jit(photometry.distort)
    for step, batch in enumerate(batches, first):
        key, _ = step_keys(config.seed, step)
        image = np.asarray(distort(key, batch["image"])) if config.augment.photometric else batch["image"]
        yield {**batch, "image": image.astype(np.uint8)}


def _examples(batches: Iterable[Mapping[str, np.ndarray]], first: int, data: Data) -> Iterator[dict[str, Any]]:
    for step, batch in enumerate(batches, first):
        for position, index in enumerate(batch["index"].tolist()):
            arrays = {name: batch[name][position] for name in ("image", "label", "window")}
            yield {**arrays, "step": step, "position": position, "name": data.training.name(index)}


def _write(
    output: Path, example: Mapping[str, Any], names: Sequence[str], palette: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Writes the two pictures of an example; returns what the page says about it."""
    image, label = as_seen(example["image"], example["window"]), example["label"]
    pictures = {"image": image, "labels": labels_over(image, label, palette)}
    stem, files = f"step{example['step']:06d}-{example['position']:03d}", {}
    for kind, pixels in pictures.items():
        files[kind] = f"{stem}-{kind}.png"
        save_image(output / files[kind], Image.fromarray(pixels))
    _, _, height, width = example["window"].tolist()
    shares = np.bincount(label.ravel(), minlength=256) / label.size
    return {
        **{name: example[name] for name in ("step", "position", "name")},
        **files,
        "ignored": shares[IGNORED],
        "padding": 1 - height * width / label.size,
        "classes": [(names[i], palette[i], shares[i]) for i in shares[: len(names)].argsort()[::-1] if shares[i]],
    }


def as_seen(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    """An image uint8 (H, W, 3) whose padding has the colour that normalisation makes zero.

    window: the unpadded region, (top, left, height, width).
    """
    top, left, height, width = window.tolist()
    region = slice(top, top + height), slice(left, left + width)
    seen = np.full_like(image, np.round(photometry.MEAN).astype(np.uint8))
    seen[region] = image[region]
    return seen


def labels_over(image: np.ndarray, label: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """uint8 (H, W, 3): `pictures.overlay` of a label (H, W), with ignored pixels hatched."""
    result = overlay(image, label, palette)
    rows, columns = np.indices(label.shape, np.int32)
    hatched = (label == IGNORED) & ((rows + columns) // STRIPE % 2 == 0)
    result[hatched] = result[hatched] // 2 + 110
    return result
