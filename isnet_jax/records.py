"""The examples of a split by number, read with patience: storage over a network stalls, and fails at times."""

import contextlib
import threading
import time

from isnet_jax.console import warn
from isnet_jax.errors import UserError

PAUSES = 0.5, 2, 8  # seconds before each further try
SLOW_SECONDS = 30  # after so long a wait is told of


class Records:
    """List-like; an example is a dict with `image` and `label`, encoded. Many threads may read at once."""

    def __init__(self, source, names=None, place="memory"):
        """source: list-like, with or without `__getitems__`; names: of the examples; place: where they lie."""
        self._source, self._names, self._place = source, names, place

    def __len__(self):
        return len(self._source)

    def name(self, index):
        return self._names[index] if self._names else f"number {index}"

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        """Examples at `indices`; tells of long waits, and tries again, then raises UserError with the one at fault."""
        with self._telling(indices):
            try:
                return self._read(indices)
            except Exception:  # of any kind: storage, its driver, checksums
                return [self._persist(index) for index in indices]

    def _read(self, indices):
        if hasattr(self._source, "__getitems__"):
            return self._source.__getitems__(indices)
        return [self._source[index] for index in indices]

    def _persist(self, index):
        for pause in (*PAUSES, None):
            try:
                return self._read([index])[0]
            except Exception as error:
                if pause is None:
                    raise UserError(
                        f"The example {self.name(index)} cannot be read from {self._place}, not in "
                        f"{1 + len(PAUSES)} tries: {_reason(error)}. If the storage is at fault, run the "
                        "same command again when it is mended; otherwise prepare the data set anew "
                        "(isnet_jax.prepare)."
                    ) from error
                warn(f"example {self.name(index)} cannot be read ({_reason(error)}); trying again in {pause} s")
                time.sleep(pause)

    @contextlib.contextmanager
    def _telling(self, indices):
        names = ", ".join(self.name(index) for index in indices[:3]) + (", ..." if len(indices) > 3 else "")
        timer = threading.Timer(
            SLOW_SECONDS, warn, [f"reading {names} from {self._place} has taken more than {SLOW_SECONDS} s so far"]
        )
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def decoding(self, index):
        """Makes a UserError with the example's name of whatever decoders raise inside."""
        try:
            yield
        except Exception as error:
            raise UserError(
                f"The example {self.name(index)} in {self._place} cannot be decoded: {_reason(error)}. "
                "Prepare the data set anew, and see isnet_jax.prepare --check."
            ) from error


def _reason(error):
    lines = str(getattr(error, "message", error)).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
