"""The examples of a split by index, from storage that may stall or fail for a while."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from isnet_jax.errors import UserError, first_line
from isnet_jax.runtime.console import warn

RETRY_DELAYS = 0.5, 2, 8  # seconds before each further try
SLOW_SECONDS = 30  # a read that takes longer is reported while it lasts

Example = Mapping[str, Any]  # `image` and `label`, encoded


@runtime_checkable
class Source(Protocol):
    """Where examples come from. If it has `__getitems__`, that reads several at once."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Example: ...


class Records:
    """Examples by index: dicts with `image` and `label`, encoded. Safe to read from many threads at once."""

    def __init__(
        self, source: Source, names: Sequence[str] | None = None, place: str = "memory", upright: bool = False
    ):
        """names: of the examples; place: where they are; both for messages.

        upright: whether EXIF orientation is applied to the images.
        """
        self._source, self._names, self._place, self.upright = source, names, place, upright

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        """The example's name, for messages."""
        return self._names[index] if self._names else f"number {index}"

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """The examples at `indices`.

        Warns while a read is slow and before each retry. Raises UserError with the name of an example that fails in
        every try.
        """
        with self._warn_if_slow(indices):
            try:
                return self._read(indices)
            except Exception:  # of any kind: storage, its driver, checksums
                return [self._read_with_retries(index) for index in indices]

    def _read(self, indices: Sequence[int]) -> list[Example]:
        if hasattr(self._source, "__getitems__"):
            return self._source.__getitems__(indices)
        return [self._source[index] for index in indices]

    def _read_with_retries(self, index: int) -> Example:
        for delay in RETRY_DELAYS:
            try:
                return self._read([index])[0]
            except Exception as error:
                warn(
                    f"example {self.name(index)} cannot be read ({first_line(error)[:200]}); trying again in {delay} s"
                )
                time.sleep(delay)
        try:
            return self._read([index])[0]
        except Exception as error:
            raise UserError(
                f"The example {self.name(index)} cannot be read from {self._place} after {1 + len(RETRY_DELAYS)} "
                f"tries: {first_line(error)[:200]}. If the storage is at fault, run the same command again once it "
                "works; otherwise prepare the data set again (isnet_jax.prepare)."
            ) from error

    @contextlib.contextmanager
    def _warn_if_slow(self, indices: Sequence[int]) -> Iterator[None]:
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
    def decoding(self, index: int) -> Iterator[None]:
        """Turns any exception of a decoder inside the block into a UserError with the example's name."""
        try:
            yield
        except Exception as error:
            raise UserError(
                f"The example {self.name(index)} in {self._place} cannot be decoded: {first_line(error)[:200]}. "
                "Prepare the data set again, and check its files with isnet_jax.prepare --check."
            ) from error
