"""What is found to be wrong with the files of a data set, and its report: equal problems are one line."""

import collections
import contextlib
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tqdm

from isnet_jax.errors import UserError, printable

MOST_LINES = 3  # of one kind; above it, they are one line with a count


class FileProblem(UserError):
    """A problem with a file: "FILE is empty.", for one.

    Problems of one `kind` are reported together; by default, those whose texts differ in numbers and brackets only.
    """

    def __init__(self, file: Path | str, text: str, kind: str = ""):
        super().__init__(f"{file} {text}")
        self.file, self.text = str(file), text
        self.kind = kind or re.sub(r"\d+", "#", re.sub(r"\(.*?\)", "", text))


def listed(names: Sequence[str], most: int = MOST_LINES) -> str:
    """Names as "a, b, c and 5 more"."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


class Report:
    """Collects problems, warnings and notes, and prints them to standard error when it is closed.

    It is a context manager: an interrupted survey tells what it has found.
    """

    def __init__(self, name: str):
        """name: of the data set, which becomes part of a file's name."""
        self.name = name
        self._sentences: dict[str, list[str]] = collections.defaultdict(list)  # by severity
        self._groups: dict[str, dict[str, list[FileProblem]]] = {"problem": {}, "warning": {}, "note": {}}
        self.num_problems = 0

    def add(self, severity: str, findings: Iterable[UserError | str]) -> None:
        """Adds findings; severity: problem, warning or note."""
        for finding in findings:
            self.num_problems += severity == "problem"
            if isinstance(finding, FileProblem):
                self._groups[severity].setdefault(finding.kind, []).append(finding)
            else:
                self._sentences[severity].append(str(finding))

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_: object) -> None:
        for severity, groups in self._groups.items():
            listing = self._write_listing(severity, groups.values())
            lines = [*self._sentences.pop(severity, ()), *_lines(groups.values(), listing)]
            for line in lines:
                tqdm.tqdm.write(printable(f"{severity}: {line}"), file=sys.stderr)
            groups.clear()

    def _write_listing(self, severity: str, groups: Iterable[list[FileProblem]]) -> str:
        """Writes the findings of large groups, one a line; returns the file's path, or "" if there are none."""
        groups = [group for group in groups if len(group) > MOST_LINES]
        if not groups:
            return ""
        prefix = f"{self.name}-{severity}s-"
        with (
            contextlib.suppress(OSError),  # a full disk takes the listing, not the report
            tempfile.NamedTemporaryFile("w", prefix=prefix, suffix=".txt", delete=False, errors="replace") as file,
        ):
            file.writelines(f"{printable(str(finding))}\n" for group in groups for finding in group)
            return file.name
        return ""


def _lines(groups: Iterable[list[FileProblem]], listing: str) -> Iterator[str]:
    for first, *others in groups:
        if len(others) < MOST_LINES:
            yield from map(str, (first, *others))
            continue
        names = listed([Path(other.file).name for other in others], MOST_LINES - 1)
        where = f"; {listing} lists all {len(others) + 1}" if listing else ""
        yield f"{first} The same holds for {names}{where}."
