"""Ctrl-C and SIGTERM end a command with one line and their own exit code, at whatever moment they arrive.

KeyboardInterrupt alone does not. Libraries that are being imported turn it into other errors. Where no caller can catch
it, Python prints and drops it: in callbacks of the garbage collector (JAX has one) and of weak references.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, SimpleNamespace
from typing import NoReturn

RESUME_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: the same command, run again, resumes
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: RESUME_EXIT_CODE}
RETRY_SECONDS = 0.1


class StopRequested(BaseException):
    """Raised between two steps or batches, on every process, after a signal asked the run to stop."""


# `signal` is the first one that arrived; `raised`, whether as KeyboardInterrupt; the flags are set inside the context
# managers of the same names.
_state = SimpleNamespace(hint="", interruptible=False, deferred=False, signal=None, raised=False)


def install(resume_hint: str | None = None) -> None:
    """Handles both signals from now on: they print a line and exit at once, without any clean-up.

    `interruptible` and `deferred` change that. resume_hint: where the same command resumes, such as "from the last
    checkpoint"; it ends the line. None keeps the current hint, "" removes it. Handlers that a library has installed in
    native code are replaced.
    """
    if resume_hint is not None:
        _state.hint = f"; the same command resumes {resume_hint}" if resume_hint else ""
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _handle):  # shells ignore it for background jobs
        signal.signal(signal.SIGINT, _handle)
        sys.unraisablehook = _handle_unraisable
    if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, _handle):
        signal.signal(signal.SIGTERM, _handle)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A signal raises KeyboardInterrupt inside, so that clean-up runs; a second one exits at once."""
    _state.interruptible = True
    try:
        yield
    except Exception:
        if was_raised():
            raise KeyboardInterrupt from None
        raise
    finally:
        _state.interruptible = False


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """A signal only makes `stop_requested` true inside; a second one exits at once.

    For work that can stop between steps only.
    """
    _state.deferred = True
    try:
        yield
    finally:
        _state.deferred = False


def stop_requested() -> bool:
    """Whether a signal has asked this process to stop."""
    return _state.signal is not None


def was_raised() -> bool:
    """Whether a signal has been raised as KeyboardInterrupt, which a library may have turned into another error."""
    return _state.raised


def record_signal(number: signal.Signals) -> None:
    """Records a signal that another process or a library's handler received."""
    _state.signal = number


def exit_now() -> NoReturn:
    """Prints the line and ends the process with the exit code of its signal."""
    reason = "stopped by SIGTERM" if _state.signal == signal.SIGTERM else "interrupted"
    _print(f"\n{reason}{_state.hint}\n")
    os._exit(EXIT_CODES[_state.signal or signal.SIGINT])


def _print(text: str) -> None:
    with contextlib.suppress(Exception):  # not `print`, which may be what the signal interrupted
        os.write(sys.stderr.fileno(), text.encode())


def _handle(number: int, frame: FrameType | None) -> None:
    repeated = _state.signal is not None
    _state.signal = signal.Signals(number)
    if _state.deferred and not repeated:
        if number == signal.SIGINT:
            _print("\nstopping after this step; press Ctrl-C again to exit immediately\n")
        return
    if not _state.interruptible or repeated or _importing(frame):
        exit_now()
    _state.raised = True
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    """Whether the interrupted code runs inside an import."""
    while frame and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _handle_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Sends the signal again if Python has dropped its KeyboardInterrupt in a callback."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    number, _state.signal = _state.signal or signal.SIGINT, None
    main_thread = threading.main_thread().ident
    threading.Timer(RETRY_SECONDS, signal.pthread_kill, (main_thread, number)).start()  # the callback is over by then
