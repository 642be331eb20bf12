"""Ctrl-C and SIGTERM end a command in order, with one line and an exit code of their own, whenever they come.

KeyboardInterrupt alone does not: libraries that are being imported make other errors of it, and Python prints and drops
it where it has nobody to hand it to, in callbacks of the garbage collector (JAX has one) or of weak references.
"""

import contextlib
import os
import signal
import sys
import threading
from types import SimpleNamespace

RESUME = 75  # EX_TEMPFAIL of sysexits.h: the same command, run again, goes on
CODES = {signal.SIGINT: 130, signal.SIGTERM: RESUME}
RETRY_SECONDS = 0.1

_state = SimpleNamespace(goes_on="", raises=False, waits=False, signal=None)


def install(goes_on=None):
    """From now on both signals print a line and leave at once, without any clean-up; but see `raising` and `waiting`.

    goes_on: where the same command begins again, for the line; None leaves that as it is. Handlers that a library
    has put in place meanwhile, behind Python's back, are replaced.
    """
    if goes_on is not None:
        _state.goes_on = f"; the same command goes on {goes_on}"
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _handle):  # else ignored, as behind a shell
        signal.signal(signal.SIGINT, _handle)
        sys.unraisablehook = _handle_unraisable
    if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, _handle):
        signal.signal(signal.SIGTERM, _handle)


@contextlib.contextmanager
def raising():
    """Inside, a signal raises KeyboardInterrupt so that work can be put in order; a second one leaves at once."""
    _state.raises = True
    try:
        yield
    except Exception:
        if _state.signal:  # it is what a library made of the interrupt
            raise KeyboardInterrupt from None
        raise
    finally:
        _state.raises = False


@contextlib.contextmanager
def waiting():
    """Inside, a signal only makes `asked` true, for work that stops between steps; a second one leaves at once."""
    _state.waits = True
    try:
        yield
    finally:
        _state.waits = False


def asked():
    """Whether a signal has come that waits for the work to stop."""
    return _state.signal is not None


def note(number):
    """Takes a signal that came another way, to another process or to a handler of a library."""
    _state.signal = number


def leave():
    """Prints the line and ends the process."""
    what = {signal.SIGTERM: "stopped by SIGTERM"}.get(_state.signal, "interrupted")
    _print(f"\n{what}{_state.goes_on}\n")
    os._exit(CODES[_state.signal or signal.SIGINT])


def _print(text):
    with contextlib.suppress(Exception):  # not by print: it may be a print that was interrupted
        os.write(sys.stderr.fileno(), text.encode())


def _handle(number, frame):
    again = _state.signal is not None
    _state.signal = signal.Signals(number)
    if _state.waits and not again:
        _print("\nstopping after this step; once more to leave at once\n" if number == signal.SIGINT else "")
        return
    if not _state.raises or again or _importing(frame):
        leave()
    raise KeyboardInterrupt


def _importing(frame):
    while frame and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _handle_unraisable(unraisable):
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        return sys.__unraisablehook__(unraisable)
    number, _state.signal = _state.signal or signal.SIGINT, None  # dropped: try again when the callback is over
    main = threading.main_thread().ident
    threading.Timer(RETRY_SECONDS, signal.pthread_kill, (main, number)).start()
