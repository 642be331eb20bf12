"""What is found in annotations: equal findings are one line with a count and three names."""

from isnet_jax.errors import UserError
from isnet_jax.runtime import console

MAX_NAMES, MAX_NAME = 3, 300  # names in a line, characters of each


class Tally:
    """Counts findings by kind, a noun phrase such as "images that are not on disk"."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}

    def add(self, kind: str, name: str | int) -> None:
        """Counts one more finding; the first names of a kind are shown."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        names = self._names.setdefault(kind, [])
        if len(names) < MAX_NAMES:
            text = f"{name}"
            names.append(text if len(text) <= MAX_NAME else f"{text[:MAX_NAME]}...")

    def lines(self) -> list[str]:
        """A line for each kind, in order of occurrence."""
        return [
            f"{kind}: {count} ({', '.join(self._names[kind])}{', ...' if count > MAX_NAMES else ''})"
            for kind, count in self._counts.items()
        ]


class Findings:
    """Problems, which stop the conversion, and notes, which do not."""

    def __init__(self) -> None:
        self.problems, self.notes = Tally(), Tally()

    def report(self) -> list[str]:
        """Prints all findings to standard error, once; returns the lines of the problems."""
        problems = self.problems.lines()
        for severity, lines in (("note", self.notes.lines()), ("problem", problems)):
            for line in lines:
                console.warn(f"{severity}: {line}")
        self.problems, self.notes = Tally(), Tally()
        return problems

    def require_none(self, source: object) -> None:
        """Reports all findings if there are problems, and raises UserError with the first of them."""
        if not self.problems.lines():
            return
        first, *others = self.report()
        more = f" {len(others)} more of these are listed above." if others else ""
        raise UserError(
            f"The annotations in {source} cannot be used as they are: {first}.{more} Correct them and run the "
            "command again."
        )
