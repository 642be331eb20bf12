"""The terminal: what the user reads of a run, without the libraries' log lines."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence

import tqdm

from isnet_jax.errors import printable

_muted = False


def quiet() -> None:
    """Silences the log lines and warnings of the libraries; to be called before TensorFlow is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # it announces itself otherwise
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs what it raises, with tracebacks
    previous = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None if _is_late_future(unraisable) else previous(unraisable)
    for name in ("jax", "orbax", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(orbax|tensorflow|tensorflow_datasets|flax|ml_collections)\b.*")


def _is_late_future(unraisable: "sys.UnraisableHookArgs") -> bool:
    """Whether this is a TensorStore future that resolves after its event loop has failed."""
    return "Event loop is closed" in str(unraisable.exc_value)


@contextlib.contextmanager
def no_native_noise() -> Iterator[None]:
    """Drops what native code writes to file descriptor 2; `sys.stderr` still reaches the terminal.

    TensorFlow's decoders and file systems log every failure there, whatever the settings.
    """
    stderr, terminal = sys.stderr, os.dup(2)
    with open(os.devnull, "w") as devnull, open(terminal, "w", buffering=1, errors="backslashreplace") as copy:
        try:
            writes_to_2 = stderr.fileno() == 2
        except (AttributeError, OSError, ValueError):  # replaced by an object without a file
            writes_to_2 = False
        stderr.flush()
        os.dup2(devnull.fileno(), 2)
        if writes_to_2:
            sys.stderr = copy
        try:
            yield
        finally:
            copy.flush()
            os.dup2(terminal, 2)
            sys.stderr = stderr


def drop_native_output() -> None:
    """Drops what native code writes to file descriptor 1 from now on; `sys.stdout` still reaches the terminal."""
    sys.stdout.flush()
    terminal = os.dup(1)
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), 1)
    sys.stdout = os.fdopen(terminal, "w", buffering=1, errors="backslashreplace")


def say(text: str = "") -> None:
    """Prints text above any progress bar, unless this process is muted; see `printable`."""
    if not _muted:
        tqdm.tqdm.write(_printable_lines(text), file=sys.stdout)
        sys.stdout.flush()


def warn(text: str) -> None:
    """Prints text to standard error above any progress bar, in every process."""
    tqdm.tqdm.write(_printable_lines(text), file=sys.stderr)


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def mute() -> None:
    """Turns `say` off in this process: only the first process of a run prints."""
    global _muted
    _muted = True


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a text table: the first column aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    )
