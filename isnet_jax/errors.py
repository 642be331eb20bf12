"""UserError, the one exception for mistakes that the user can correct, and texts for its messages."""

import contextlib
import textwrap
from collections.abc import Collection, Iterator, Mapping
from typing import Any


class UserError(Exception):
    """Bad input: a config, path, image, label, checkpoint or mesh.

    The message is one paragraph: what is wrong, where (file, field, line), what to do. Commands print it
    without a traceback and exit with `code`.
    """

    code = 1


def printable(text: str) -> str:
    """`text` with its control characters escaped: a file name may hold terminal escape sequences."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def paragraph(error: Exception) -> str:
    """The error as one paragraph for stderr, wrapped at 110 columns, with control characters escaped."""
    text = printable(f"error: {error}".replace("\n", " "))
    return textwrap.fill(text, 110, break_long_words=False, break_on_hyphens=False)


@contextlib.contextmanager
def translating_disk_and_memory_errors(
    activity: str, flag: str, resume_hint: str, memory_advice: str
) -> Iterator[None]:
    """Raises UserError in place of an OSError or of JAX's error for exhausted device memory.

    activity: the subject of the message, such as "The run in DIR"; flag: the one that names the output directory;
    resume_hint: where the same command resumes; memory_advice: how to need less device memory.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of our output is gone
        raise
    except OSError as error:
        raise UserError(
            f"{activity} stopped because a file cannot be read or written: {error}. Make room, or choose "
            f"another {flag}; the same command resumes {resume_hint}."
        ) from error
    except RuntimeError as error:  # JaxRuntimeError is one
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"The device has too little memory for this config: {memory_advice} ({first_line(error)[:200]})."
        ) from None


def first_line(error: Exception) -> str:
    """Of the error's message, or the error's type if it has none."""
    message = str(getattr(error, "message", error))  # TensorFlow's attribute leaves the graph out
    return next(iter(message.strip().splitlines()), type(error).__name__)


def mismatches(found: Mapping[str, Any], expected: Mapping[str, Any], optional: Collection[str] = ()) -> str:
    """All differences between two {name: shape} in one text; "" if there are none.

    Names in `optional` may be missing from `found`.
    """
    wrong_shapes = [
        f"{name} {found[name]} instead of {expected[name]}"
        for name in sorted(set(found) & set(expected))
        if found[name] != expected[name]
    ]
    faults = {
        "missing": sorted(set(expected) - set(found) - set(optional)),
        "not in the network": sorted(set(found) - set(expected)),
        "of the wrong shape": wrong_shapes,
    }
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in faults.items() if names)
