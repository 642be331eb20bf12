"""Exports the network of a checkpoint: one file that other runtimes run, described by a JSON file beside it."""

import contextlib
import json
import platform
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict

from isnet_jax.checkpoints.downloads import locate
from isnet_jax.errors import UserError, translating_disk_and_memory_errors
from isnet_jax.evaluation import card, predictor
from isnet_jax.evaluation.exported import description_path
from isnet_jax.exports import formats
from isnet_jax.exports.program import IMAGE, OUTPUTS, SCORE_MAP, Program, image_spec, make_program
from isnet_jax.input.photometry import MEAN, STD
from isnet_jax.input.resizing import resize_facts
from isnet_jax.models.isnet import ISNet
from isnet_jax.runtime import compiler, files
from isnet_jax.runtime.console import say

DTYPES = "float32", "bfloat16"
ROUNDING = 1e-3  # how far a file may be from the network, see _distance
SIZES = (160, 224), (161, 95), (64, 203)  # of the images that an export of any size is compared on
LIBRARIES = "isnet_jax", "jax", "flax", "numpy", "onnx", "onnxruntime", "tensorflow", "tensorflow-cpu"


def export_checkpoint(
    checkpoint: str,
    output: str,
    kind: str,
    *,
    size: tuple[int, int] | None = None,
    scores: str = "argmax",
    dtype: str | None = None,
    config: ConfigDict | None = None,
    ema: bool = False,
    best: bool = False,
    license: str | None = None,
) -> None:
    """Writes the network of a checkpoint in a format, compares the file with the network, and describes it.

    JSON and a model card beside the file describe it.

    checkpoint, config, ema and best as in `predictor.load`; output: the file, or for a SavedModel the directory;
    kind: a key of formats.SUFFIXES; size: (height, width) of the only image size, or None for any; scores: a key of
    OUTPUTS; dtype: one of DTYPES, of the activations, by default the config's, or float32 for ONNX; license: of the
    weights, for the card. Raises UserError for anything the user can correct, and if the file does not compute what the
    network does; there is then no file.
    """
    path = Path(output)
    _check_output(path, kind)
    card.check_license(license)
    located = locate(checkpoint, "--checkpoint")
    step = card.recorded_step(located, best)
    config, model, variables = predictor.load(located, config, ema, best, step)
    model = model.clone(dtype=_choose_dtype(dtype, model, kind), remat=False)
    program, image = make_program(model, variables, scores), image_spec(size)
    is_exact = model.dtype == "float32"
    exact = program if is_exact else make_program(model.clone(dtype="float32"), variables, scores)
    facts = _facts(config, model, kind, size, scores, image, jax.eval_shape(program, image))
    facts["checkpoint"] = {"name": card.shown(str(checkpoint)), "step": step, "ema": ema, "best": best}
    say(f"{model.description}, {model.num_classes} classes, {model.dtype}: {kind}, {_describe_size(size)}")
    compiler.enable_cache()
    retry = "from the start"
    with translating_disk_and_memory_errors(f"The export to {output}", "--output", retry, "choose a smaller --size"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path, kind) as partial:
            formats.write(kind, partial, program, image, _onnx_metadata(facts))
            facts["compared"] = _compare(formats.open_to_run(kind, partial), program, exact, scores, size, output)
            if partial.is_file():
                facts["sha256"] = files.sha256(partial)
        files.atomic_write_text(description_path(path), json.dumps(facts, indent=1) + "\n")
    say(f"{_megabytes(path):.1f} MB: {output}; described in {description_path(path)}")
    library = "isnet_jax" if formats.SUFFIXES[kind] else "tf.saved_model"
    call = f"{library}.load({json.dumps(path.resolve().name)})"
    card.write(
        path, card.render(config, variables, card.Origin(str(checkpoint), located, step, ema), call, license, facts)
    )


def _check_output(path: Path, kind: str) -> None:
    suffix = formats.SUFFIXES[kind]
    if suffix and path.suffix != suffix:
        raise UserError(f"--output={path} must end in {suffix}, by which predict knows the format {kind}.")
    if not suffix and path.exists():
        raise UserError(f"--output={path} exists; a SavedModel is a directory: choose a new name, or remove that one.")
    if not suffix and path.suffix in formats.SUFFIXES.values() and path.suffix:
        raise UserError(f"--output={path} has the suffix of another format; a SavedModel is a directory: leave it out.")
    if path.is_dir():
        raise UserError(f"--output={path} is a directory; give a file that ends in {suffix}.")


def _choose_dtype(dtype: str | None, model: ISNet, kind: str) -> str:
    chosen = dtype or ("float32" if kind == "onnx" else model.dtype)
    if chosen not in DTYPES:
        raise UserError(f"The network computes in {chosen}, which no export does: add --dtype=float32.")
    if kind == "onnx" and chosen != "float32":
        raise UserError(
            f"--dtype={chosen} is not for --format=onnx, since onnxruntime has no convolution of that dtype on CPUs: "
            "leave it out, or choose stablehlo or savedmodel."
        )
    return chosen


@contextlib.contextmanager
def _replacing(path: Path, kind: str) -> Iterator[Path]:
    """Yields a temporary path that becomes `path` at the end, and is removed if anything fails."""
    if formats.SUFFIXES[kind]:
        with files.atomic_write(path) as partial:
            yield partial
        return
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _facts(
    config: ConfigDict,
    model: ISNet,
    kind: str,
    size: tuple[int, int] | None,
    scores: str,
    image: jax.ShapeDtypeStruct,
    outputs: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, Any]:
    """What the JSON file says: how to prepare an image, what comes out, and where the network is from."""
    names, palette = predictor.class_table(config)
    return {
        "format": kind,
        "input": {"name": IMAGE, **_array_facts(image), "meaning": "RGB, 0 to 255; normalisation is inside"},
        "resize": resize_facts(config.test.resize, config.test.keep_ratio, size),
        "normalisation": {"mean": MEAN, "std": STD},
        "outputs": [{"name": name, **_array_facts(outputs[name])} for name in (OUTPUTS[scores], SCORE_MAP)],
        "score_map": f"logits at stride {model.output_stride}: ceil(height / stride) x ceil(width / stride)",
        "scores": scores,
        "dtype": model.dtype,
        "classes": names,
        "palette": palette,
        "config": card.shareable(config),
        "versions": {"python": platform.python_version()} | card.versions_of(LIBRARIES),
    }


def _array_facts(array: Any) -> dict[str, Any]:
    shape = [n if isinstance(n, int) else str(n) for n in array.shape]
    return {"dtype": str(array.dtype), "shape": shape}


def _onnx_metadata(facts: Mapping[str, Any]) -> dict[str, str]:
    return {name: json.dumps(facts[name]) for name in ("classes", "palette", "resize", "scores")}


def _compare(
    run: formats.Run, program: Program, exact: Program, scores: str, size: tuple[int, int] | None, output: str
) -> dict[str, Any]:
    """Compares a file with the network's program on three images, and says how far they are apart.

    exact: the program in float32. Raises UserError if the file is further from the program than rounding explains.
    """
    reference, exact_reference, names = jax.jit(program), jax.jit(exact), (OUTPUTS[scores], SCORE_MAP)

    def compute(function, image):
        outputs = function(image)
        return [np.asarray(outputs[name]) for name in names]

    largest, deviation, differing, pixels = 0.0, 0.0, 0, 0
    for seed, shape in enumerate([size] * 3 if size else SIZES):
        image = _test_image(*shape, seed)
        expected = compute(reference, image)
        rounded = expected if exact is program else compute(exact_reference, image)
        found = run(image, names)
        for name, theirs, ours, in_float32 in zip(names, found, expected, rounded):
            _require_close(f"{output}: {name}", theirs, ours, ROUNDING + 2 * _distance(ours, in_float32))
        largest = max(largest, float(np.abs(found[1] - expected[1]).max()))
        deviation = max(deviation, float(expected[1].std()))
        classes = [x[0] if scores == "argmax" else x[0].argmax(-1) for x in (found, expected)]
        differing, pixels = differing + int((classes[0] != classes[1]).sum()), pixels + classes[0].size
    say(
        f"compared with the network on 3 images: scores differ by at most {largest:.2g} (their standard deviation is "
        f"{deviation:.2g}), and the class at {differing} of {pixels} pixels"
    )
    return {
        "images": 3,
        "largest_difference_of_scores": largest,
        "standard_deviation_of_scores": deviation,
        "differing_pixels": differing,
        "pixels": pixels,
    }


def _require_close(what: str, found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Raises UserError unless an output of a file is of the right kind, and within a distance."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        error = f"it is {found.dtype} {found.shape} in place of {expected.dtype} {expected.shape}"
    elif not _distance(found, expected) <= tolerance:  # or is no number
        error = f"they differ by {_distance(found, expected):.2g} (see docs/export.md), more than {tolerance:.2g}"
    else:
        return
    raise UserError(
        f"{what} is not what the network computes: {error}, which rounding does not explain. The file was removed. "
        "Please report this, with the versions of jax and of the format's library; another --format may work."
    )


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """The share of pixels whose classes differ; of scores, the root mean square difference in standard deviations.

    The largest difference would not do: where two classes tie, rounding alone can change a few scores by much.
    """
    if b.dtype == np.uint8:
        return float((a != b).mean())
    return float(np.sqrt(np.square(a - b).mean()) / max(b.std(), np.finfo(np.float32).tiny))


def _test_image(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth shapes with fine noise, uint8 (1, height, width, 3)."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.random((6, 8, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(255 * coarse + rng.normal(0, 8, coarse.shape), 0, 255).astype(np.uint8)[None]


def _describe_size(size: tuple[int, int] | None) -> str:
    return f"images of {size[0]}x{size[1]}" if size else "any number of images of any size"


def _megabytes(path: Path) -> float:
    parts = path.rglob("*") if path.is_dir() else [path]
    return sum(part.stat().st_size for part in parts if part.is_file()) / 1e6
