"""Compiles a recipe's programs for TPUs that need not be present, and reports whether they fit and what they cost.

usage: python -m isnet_jax.compile_check --config=FILE[:BACKBONE] [--topology=v5e:2x4] [--programs=train,evaluate]
                                         [--image_size=HxW] [--full] [--config.FIELD=VALUE ...]

  --topology    the TPUs, as in v5e:1x1, v5e:2x4, v6e:2x4, v4:2x2x1 or v5p:2x2x1, which takes no more than
                `pip install libtpu`; by default the devices of this machine
  --programs    train, evaluate, or both, separated by a comma (default)
  --image_size  size of the photographs to evaluate (default: the largest that config.test allows)
  --full        compiles as a run does, which takes 5 to 20 times as long, and reports where XLA expects the time to
                go. Without it XLA compiles with its lowest effort: the memory is right to a tenth, but a run keeps
                more in on-chip memory and moves less

The programs are those of isnet_jax.main, with one image size for evaluation. Exit code 1 if one of them does not fit.
"""

import re
import sys
from typing import TYPE_CHECKING, Any

from absl import flags

from isnet_jax import cli

if TYPE_CHECKING:
    from ml_collections import ConfigDict

PROGRAMS = "train", "evaluate"


def _define_flags() -> None:
    flags.DEFINE_string("topology", None, "KIND:SHAPE of TPUs")
    flags.DEFINE_list("programs", list(PROGRAMS), "programs to compile")
    flags.DEFINE_string("image_size", None, "HEIGHTxWIDTH of photographs to evaluate")
    flags.DEFINE_boolean("full", False, "compile as a run does")


def _main(config: "ConfigDict", flag_values: Any) -> None:
    programs = flag_values.programs
    if not programs or not set(programs) <= set(PROGRAMS):
        raise flags.Error(f"--programs={','.join(programs)} must name {' and '.join(PROGRAMS)}")
    image_size = _parse_size(flag_values.image_size) if flag_values.image_size else None

    from isnet_jax.training import compilation  # imports JAX

    compilation.report(config, cli.config_name(sys.argv), flag_values.topology, programs, image_size, flag_values.full)


def _parse_size(text: str) -> tuple[int, int]:
    """(height, width); raises flags.Error."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not found:
        raise flags.Error(f"--image_size={text} must be height x width, as in 512x683")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    cli.run(_main, __doc__, _define_flags, resume_hint="")
