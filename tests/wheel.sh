#!/usr/bin/env bash
# The path of someone who has the wheel alone: installs it into a new environment in an empty folder, converts a
# checkpoint, predicts three photographs, exports the network, and compares the masks. The photographs are noise, and the
# weights random.
#
#   tests/wheel.sh WHEEL [PYTHON]
set -euo pipefail
wheel=$(realpath "$1") python=${2:-python3}
weights=$(realpath "$(dirname "$0")/reference/weights.py")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
unset PYTHONPATH
"$python" -m venv "$folder/venv"
cd "$folder"
PATH=$folder/venv/bin:$PATH JAX_PLATFORMS=cpu
export PATH JAX_PLATFORMS

# Shows a command, and runs it.
try() {
  printf '\n$ %s\n' "$*"
  "$@"
}

# The same, for a command that must end with an error.
try_in_vain() {
  if try "$@"; then
    echo "that should have been an error" >&2
    exit 1
  fi
}

try python --version
try pip install --quiet --quiet "$wheel"
pip list 2>/dev/null | grep -i -E '^(jax|flax|numpy|isnet)'
if pip list 2>/dev/null | grep -i -E '^(tensorflow|onnx|torch)'; then
  echo "prediction needs none of these" >&2
  exit 1
fi
try isnet --help

cp "$weights" .
cat >samples.py <<'END'
"""Three photographs of noise, and random weights in a file as the official code names them."""

import numpy as np
import weights
from PIL import Image
from safetensors.numpy import save_file

from isnet_jax import create_model
from isnet_jax.checkpoints.torch_names import official_names
from isnet_jax.cli import load_config

rng = np.random.default_rng(0)
for name, size in ("a.jpg", (96, 128)), ("b.png", (120, 90)), ("c.webp", (64, 64)):
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    coarse.resize(size[::-1], Image.Resampling.BICUBIC).save(f"photos/{name}")
names = official_names(create_model(load_config("quickstart").model))
save_file({name: weights.tensor(name, shape, 0) for name, (_, shape) in names.items()}, "isnet.safetensors")
END
mkdir photos
try python samples.py
try isnet convert --config=quickstart --input=isnet.safetensors --output=isnet
try isnet predict --checkpoint=isnet --output=predictions photos
try_in_vain isnet train --config=quickstart
try isnet export --checkpoint=isnet --format=stablehlo --output=model.stablehlo
try_in_vain isnet export --checkpoint=isnet --format=onnx --output=model.onnx
try pip install --quiet --quiet "${wheel}[export]"
try isnet export --checkpoint=isnet --format=onnx --output=model.onnx

cat >compare.py <<'END'
"""The masks of the checkpoint, of the command, of the ONNX file and of StableHLO."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

import isnet_jax

segmenter, stablehlo = isnet_jax.load("isnet"), isnet_jax.load("model.stablehlo")
session = onnxruntime.InferenceSession("model.onnx")
for path in sorted(Path("photos").iterdir()):
    image = np.array(Image.open(path).convert("RGB"))
    mask = segmenter.predict(path)
    [[onnx_mask]] = session.run(["classes"], {"image": image[None]})
    assert len(np.unique(mask)) > 1, "a mask of one class compares nothing"
    for other in onnx_mask, stablehlo.predict(path), np.array(Image.open(f"predictions/{path.stem}.png")):
        np.testing.assert_array_equal(other, mask)
    counts = np.bincount(mask.ravel(), minlength=len(segmenter.classes))
    print(path, mask.shape, dict(zip(segmenter.classes, counts.tolist())), "equal in all four")
assert "tensorflow" not in sys.modules
END
try python compare.py
