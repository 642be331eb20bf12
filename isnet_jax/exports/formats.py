"""Programs as files: written, and opened to run. StableHLO (jax.export), ONNX and TensorFlow's SavedModel.

They are programs of arithmetic: nothing is unpickled, and no file that they name is read. Whatever the bytes of an ONNX
file, it is opened or refused; XLA's reader of StableHLO may crash on bytes that were forged to harm it.
"""

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from isnet_jax.errors import UserError, first_line
from isnet_jax.exports.program import IMAGE, Program
from isnet_jax.runtime import files

SUFFIXES = {"stablehlo": ".stablehlo", "onnx": ".onnx", "savedmodel": ""}  # "": a directory of any name
PLATFORMS = "cpu", "cuda", "tpu"
SIGNATURE = "serving_default"
MAX_BYTES = 2**32  # of a file; the largest network has 2**29

# image uint8 (B, H, W, 3), and the names of outputs -> those outputs
Run = Callable[[np.ndarray, Sequence[str]], list[np.ndarray]]


def write(kind: str, path: Path, program: Program, image: jax.ShapeDtypeStruct, metadata: dict[str, str]) -> None:
    """Writes a program of one argument, `image`, whose shape may be symbolic, as a file or directory.

    kind: a key of SUFFIXES; metadata: what an ONNX file says about itself. Raises UserError if a library is missing, or
    the format cannot hold the program.
    """
    if kind == "stablehlo":
        path.write_bytes(export.export(jax.jit(program), platforms=PLATFORMS)(image).serialize())
    elif kind == "onnx":
        _require("onnx", kind)
        from isnet_jax.exports.onnx_conversion import to_onnx

        try:
            path.write_bytes(to_onnx(program, image, metadata).SerializeToString())
        except (NotImplementedError, ValueError) as error:
            raise UserError(f"The network cannot be written as ONNX: {first_line(error)}.") from error
    else:
        _write_savedmodel(path, program, image)


def open_to_run(kind: str, path: Path) -> Run:
    """The function that runs a file; errors as in `write`, and UserError for a file that cannot be opened or run."""
    opener = {"stablehlo": _open_stablehlo, "onnx": _open_onnx, "savedmodel": _open_savedmodel}[kind]
    run = _translating(opener, path)(path)
    return _translating(run, path)


def read_bytes(path: Path) -> bytes:
    """The content of a regular file of bounded size; raises UserError."""
    try:
        with files.open_file(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise UserError(f"{path} is larger than {MAX_BYTES >> 30} GiB, the limit.")
            return file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None


def _translating(function: Callable, path: Path) -> Callable:
    """`function`, whose errors become UserErrors: each library has its own."""

    def call(*args):
        try:
            return function(*args)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{path} cannot be opened or run ({first_line(error)[:300]}). If memory suffices for its images, "
                "it is damaged, or of a version that this one cannot read: export the checkpoint again."
            ) from error

    return call


def _open_stablehlo(path: Path) -> Run:
    exported = export.deserialize(bytearray(read_bytes(path)))
    call = jax.jit(exported.call)

    def run(image, names):
        results = call(image)
        return [np.asarray(results[name]) for name in names]

    return run


def _open_onnx(path: Path) -> Run:
    onnxruntime = _require("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    known = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in known]
    # From bytes, which cannot refer to other files for constants; its fall-back prints, and tries the same again.
    session = onnxruntime.InferenceSession(read_bytes(path), options, providers=providers, enable_fallback=False)
    return lambda image, names: session.run(list(names), {IMAGE: image})


def _write_savedmodel(path: Path, program: Program, image: jax.ShapeDtypeStruct) -> None:
    tf = _tensorflow()
    from jax.experimental import jax2tf

    is_static = all(isinstance(n, int) for n in image.shape)
    symbolic = None if is_static else [f"({', '.join(map(str, image.shape))})"]
    converted = jax2tf.convert(
        program, polymorphic_shapes=symbolic, native_serialization_platforms=PLATFORMS, with_gradient=False
    )
    spec = tf.TensorSpec([n if isinstance(n, int) else None for n in image.shape], tf.uint8, name=IMAGE)
    module = tf.Module()
    module.predict = tf.function(converted, input_signature=[spec], autograph=False)
    tf.saved_model.save(module, str(path), signatures={SIGNATURE: module.predict})


def _open_savedmodel(path: Path) -> Run:
    tf = _tensorflow()
    module = tf.saved_model.load(str(path))
    function = module.signatures[SIGNATURE]

    def run(image, names, module=module):  # a signature does not keep its module alive
        results = function(**{IMAGE: tf.constant(image)})
        return [results[name].numpy() for name in names]

    return run


def _tensorflow() -> Any:
    tf = _require("tensorflow", "savedmodel")
    tf.get_logger().setLevel("ERROR")
    tf.config.set_visible_devices([], "GPU")  # JAX has them
    return tf


def _require(library: str, kind: str) -> Any:
    """The library; raises UserError if it is not installed."""
    try:
        return importlib.import_module(library)
    except ImportError:
        extra = "train" if library == "tensorflow" else "export"
        raise UserError(
            f"The format {kind} needs {library}, which is not installed: pip install 'isnet_jax[{extra}]'."
        ) from None
