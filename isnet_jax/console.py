"""What a person sees in the terminal: their own run, no library noise."""

import contextlib
import logging
import os
import sys
import warnings

import tqdm

_muted = False


def quiet():
    """Silences the libraries' chatter; call before TensorFlow is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # it announces itself otherwise
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs what it raises, with tracebacks
    previous = sys.unraisablehook
    sys.unraisablehook = lambda found: None if _is_late(found) else previous(found)
    for name in ("jax", "orbax", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(orbax|tensorflow|tensorflow_datasets|flax|ml_collections)\b.*")


def _is_late(unraisable):
    """Whether it is one of the futures of TensorStore that come back to an event loop that has failed already."""
    return "Event loop is closed" in str(unraisable.exc_value)


@contextlib.contextmanager
def no_native_noise():
    """Drops what libraries write to the standard error of the process itself; `sys.stderr` still shows.

    TensorFlow's decoders and file systems log every failure there, whatever the settings.
    """
    stderr, shown = sys.stderr, os.dup(2)
    with open(os.devnull, "w") as nowhere, open(shown, "w", buffering=1, errors="backslashreplace") as copy:
        try:
            own = stderr.fileno() == 2
        except (AttributeError, OSError, ValueError):  # replaced by something that is no file
            own = False
        stderr.flush()
        os.dup2(nowhere.fileno(), 2)
        if own:
            sys.stderr = copy
        try:
            yield
        finally:
            copy.flush()
            os.dup2(shown, 2)
            sys.stderr = stderr


@contextlib.contextmanager
def no_native_output():
    """Drops what is written to the standard output of the process meanwhile, by whomever."""
    sys.stdout.flush()
    shown = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(shown, 1)
        os.close(shown)


def say(text=""):
    """Prints a line above any progress bar; nothing once this process is mute."""
    if not _muted:
        tqdm.tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def warn(text):
    """Prints a line to standard error above any progress bar, in any process."""
    tqdm.tqdm.write(text, file=sys.stderr)


def mute():
    """Ends `say` in this process: of several, the first one speaks."""
    global _muted
    _muted = True


def duration(seconds):
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def aligned(rows):
    """Rows of strings as an aligned text table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    )
