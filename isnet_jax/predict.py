"""Predicts the class of every pixel of images.

usage: python -m isnet_jax.predict --checkpoint=DIR [OPTIONS] --output=DIR IMAGE_OR_FOLDER...
       python -m isnet_jax.predict --checkpoint=FILE --config=FILE[:BACKBONE] [OPTIONS] --output=DIR IMAGE_OR_FOLDER...

  --checkpoint  the directory of a training run or of isnet_jax.convert, whose config is used, an official .pth or
                .safetensors file, a name such as isnet-ade20k-resnet50 or hf://OWNER/NAME, which is downloaded once, or
                an .onnx or .stablehlo file of isnet_jax.export
  --output      the directory for NAME.png (class indices, in the data set's colours) and NAME_overlay.jpg (to look at);
                subfolders of a folder are kept, existing files are replaced
  --best        use the best checkpoint of a run with config.run.best_metric, not the newest
  --ema         use the moving averages of a run's weights
  --tta         average over several scales and horizontal flips, as config.test.tta sets them: better, but several
                times slower
  --slide       predict windows of config.test.tta.crop_size (by default that of training), moved by its stride
  --tile        cut images into tiles of this size, as in 1024 or 512x2048 (height x width), at their own resolution:
                for images beyond memory, up to 1000 megapixels; --tile_overlap=N pixels, by default a quarter
  --probabilities  write NAME_confidence.png, 255 times the probability of the predicted class, and NAME_scores.npz:
                the --top=N (5) most probable classes and their probabilities, (H, W, N)
  --format      cityscapes, ade20k or lip: write only NAME.png, in greyscale, with the values that the benchmark's
                server expects

IMAGE_OR_FOLDER may be a pattern in quotes, in which ** stands for folders of any depth. Images whose names differ only
in suffix or folder are written as NAME.SUFFIX.png or FOLDER/NAME.SUFFIX.png.

Images are JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF files of any size and colour mode. An image is rotated as its EXIF
orientation says, and its prediction has the upright size. Files that cannot be read are skipped with a reason; the exit
code is then 1.
"""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from isnet_jax import cli

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def _define_flags() -> None:
    from isnet_jax.evaluation.prediction_files import FORMATS

    flags.DEFINE_string("checkpoint", None, "the weights to use", required=True)
    flags.DEFINE_string("output", None, "where predictions are written", required=True)
    flags.DEFINE_boolean("best", False, "use the best checkpoint")
    flags.DEFINE_boolean("ema", False, "use the moving averages")
    flags.DEFINE_boolean("tta", False, "average over scales and flips")
    flags.DEFINE_boolean("slide", False, "predict windows")
    flags.DEFINE_string("tile", None, "the size of tiles")
    flags.DEFINE_integer("tile_overlap", None, "pixels that tiles overlap by")
    flags.DEFINE_boolean("probabilities", False, "write probabilities")
    flags.DEFINE_integer("top", 5, "classes whose probabilities are written", lower_bound=1)
    flags.DEFINE_enum("format", None, list(FORMATS), "the file format of a benchmark")


def _main(config: "ConfigDict | None", flag_values: flags.FlagValues, *inputs: str) -> None:
    if not inputs:
        raise flags.Error("IMAGE_OR_FOLDER is missing")
    tile = _parse_tile(flag_values.tile)
    from isnet_jax.evaluation.prediction_files import predict_images

    predict_images(
        inputs,
        Path(flag_values.output),
        flag_values.checkpoint,
        config,
        ema=flag_values.ema,
        best=flag_values.best,
        tta=flag_values.tta,
        slide=flag_values.slide,
        file_format=flag_values.format,
        top=flag_values.top if flag_values.probabilities else 0,
        tile=tile,
        tile_overlap=flag_values.tile_overlap,
    )


def _parse_tile(text: str | None) -> tuple[int, int] | None:
    """(height, width); raises flags.Error."""
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if not found:
        raise flags.Error(f"--tile={text} must be the side of a square in pixels, or height x width, as in 512x2048")
    return int(found[1]), int(found[2] or found[1])


if __name__ == "__main__":
    cli.run(
        _main,
        __doc__,
        _define_flags,
        needs_config=False,
        resume_hint="from the first image",
        max_positional=sys.maxsize,
    )
