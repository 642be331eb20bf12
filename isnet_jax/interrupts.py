"""Ctrl-C ends a command with one line and exit code 130, whenever it comes.

KeyboardInterrupt alone does not: libraries that are being imported make other errors of it, and Python prints and drops
it where it has nobody to hand it to, in callbacks of the garbage collector (JAX has one) or of weak references.
"""
import contextlib
import os
import signal
import sys
import threading
from types import SimpleNamespace

CODE = 130
RETRY_SECONDS = 0.1

_state = SimpleNamespace(line="interrupted", raises=False, raised=False)


def install(line="interrupted"):
    """From now on Ctrl-C prints `line` and leaves at once, without any clean-up; inside `raising` it raises."""
    _state.line = line
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in the background of a shell it is ignored
        signal.signal(signal.SIGINT, _handle)
        sys.unraisablehook = _handle_unraisable


@contextlib.contextmanager
def raising():
    """Inside, Ctrl-C raises KeyboardInterrupt so that work can be put in order; a second one leaves at once."""
    _state.raises = True
    try:
        yield
    except Exception:
        if _state.raised:  # it is what a library made of the interrupt
            raise KeyboardInterrupt from None
        raise
    finally:
        _state.raises = False


def leave():
    """Prints the line and ends the process."""
    with contextlib.suppress(Exception):  # not by print: it may be a print that was interrupted
        os.write(sys.stderr.fileno(), f"\n{_state.line}\n".encode())
    os._exit(CODE)


def _handle(_, frame):
    if not _state.raises or _state.raised or _importing(frame):
        leave()
    _state.raised = True
    raise KeyboardInterrupt


def _importing(frame):
    while frame and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _handle_unraisable(unraisable):
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        return sys.__unraisablehook__(unraisable)
    _state.raised = False  # dropped: try again when the callback is over
    main = threading.main_thread().ident
    threading.Timer(RETRY_SECONDS, signal.pthread_kill, (main, signal.SIGINT)).start()
