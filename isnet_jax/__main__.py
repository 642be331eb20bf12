"""All commands under one name.

usage: isnet COMMAND [ARGUMENTS ...]       isnet COMMAND --help

  train          trains and evaluates, and resumes
  evaluate       scores a checkpoint
  predict        the classes of all pixels of your images
  prepare        checks the files of a data set and prepares it
  browse         the batches of a run, as the network will see them
  summary        blocks, parameters, FLOPs and memory of a network, and the length of a run
  convert        official .pth files to checkpoints, and back
  export         a checkpoint as a file for other runtimes: StableHLO, ONNX, SavedModel
  compare        evaluations side by side
  report         an evaluation as a page to look at
  compile-check  whether a recipe fits a TPU, and what it costs there

`isnet train` is `python -m isnet_jax.main`, and `isnet COMMAND` is `python -m isnet_jax.COMMAND` for all others.
"""

import re
import runpy
import sys

MODULES = {"train": "main", "compile-check": "compile_check"}  # the other commands are called like their modules


def main() -> None:
    """Runs the command that the first argument names; its exit code is that of the process."""
    usage = (__doc__ or "").strip()
    commands = re.findall(r"^  ([a-z-]+)  +", usage, re.M)
    if sys.argv[1:2] and sys.argv[1] in commands:
        module = f"isnet_jax.{MODULES.get(sys.argv[1], sys.argv[1])}"
        sys.argv[:2] = [f"{sys.argv[0]} {sys.argv[1]}"]
        runpy.run_module(module, run_name="__main__")
    elif {"--help", "-h", "help"} & set(sys.argv[1:]):
        print(usage)
    else:
        found = f"there is no command {sys.argv[1]!r}" if sys.argv[1:] else "COMMAND is missing"
        print(f"error: {found}\n\n{usage}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
