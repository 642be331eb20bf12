"""Patterns of file names: what their stars match, and which files they leave out."""

import collections
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

Name = tuple[str, ...]  # what each star of a pattern matches


class Pattern:
    """Finds the files that match a pattern under a folder.

    `*` is any part of a name, and `**` any number of folders, none included. A pattern without a star is a folder,
    short for "FOLDER/*", and one without a suffix takes any of `suffixes`, in upper or lower case.
    """

    def __init__(self, source: Path, pattern: str, suffixes: Sequence[str], shown_suffix: str):
        """shown_suffix: what `example` ends with, if the pattern has no suffix."""
        self.text = pattern
        parts = Path(pattern).parts if "*" in pattern else (*Path(pattern).parts, "*")
        parts += ("*",) if parts[-1] == "**" else ()
        depth = next(i for i, part in enumerate(parts) if "*" in part)
        self.folder, self.parts = source.joinpath(*parts[:depth]), parts[depth:]
        has_suffix = parts[-1].lower().endswith(tuple(suffixes))
        self.suffixes, self.shown_suffix = ((), "") if has_suffix else (tuple(suffixes), shown_suffix)
        self.num_literals = sum(len(part.replace("*", "")) for part in parts)

    def files(self) -> list[tuple[Name, Path]]:
        """(name, path) of the files that match, folder by folder, each sorted; raises OSError."""
        return list(self._walk(self.folder, self.parts, (), (os.path.realpath(self.folder),)))

    def match(self, filename: str) -> Name | None:
        """What the stars of the last part match in a file's name, if it matches."""
        match = re.fullmatch(self._expression(self.parts[-1], is_last=True), filename)
        return match and match.groups()

    def example(self, *name: str) -> Path:
        """The path of a name; stars without a text stay."""
        stars = iter(name)
        parts = [re.sub(r"\*+", lambda star: next(stars, star[0]), part) for part in self.parts]
        return self.folder.joinpath(*filter(None, parts[:-1]), parts[-1] + self.shown_suffix)

    def files_below(self, suffixes: tuple[str, ...]) -> list[Path]:
        """All files of these suffixes below the first star, hidden ones aside, sorted. Links are not followed."""
        found = []
        for folder, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [Path(folder) / name for name in names if name.lower().endswith(suffixes)]
        return sorted(path for path in found if not path.name.startswith("."))

    def is_deeper(self, path: Path) -> bool:
        """Whether a file lies in deeper folders than the pattern reaches."""
        return "**" not in self.parts and len(path.relative_to(self.folder).parts) > len(self.parts)

    def _expression(self, part: str, is_last: bool) -> str:
        expression = "(.+)".join(map(re.escape, part.split("*")))
        if is_last and self.suffixes:
            expression += f"(?i:{'|'.join(map(re.escape, self.suffixes))})"
        return expression

    def _walk(
        self, folder: Path, parts: tuple[str, ...], name: Name, ancestors: tuple[str, ...]
    ) -> Iterator[tuple[Name, Path]]:
        """`ancestors`: real paths of the folders above, which a link may lead back to."""
        if parts[0] == "**":
            yield from self._walk_any_depth(folder, parts[1:], name, "", ancestors)
            return
        expression = self._expression(parts[0], is_last=not parts[1:])
        for path in sorted(folder.iterdir()):
            match = re.fullmatch(expression, path.name)
            if match and not path.name.startswith("."):
                if not parts[1:]:
                    yield name + match.groups(), path
                elif path.is_dir():
                    yield from self._walk(path, parts[1:], name + match.groups(), ancestors)

    def _walk_any_depth(
        self, folder: Path, parts: tuple[str, ...], name: Name, between: str, ancestors: tuple[str, ...]
    ) -> Iterator[tuple[Name, Path]]:
        """`between`: the folders from where the two stars begin."""
        yield from self._walk(folder, parts, (*name, between), ancestors)
        for path in sorted(folder.iterdir()):
            real = os.path.realpath(path)
            if path.is_dir() and not path.name.startswith(".") and real not in ancestors:
                inner = f"{between}/{path.name}" if between else path.name
                yield from self._walk_any_depth(path, parts, name, inner, (*ancestors, real))


def num_stars(pattern: str) -> int:
    """The stars of a pattern that match a text each; two stars together are one."""
    return len(re.findall(r"\*+", pattern)) + Path(pattern).parts[-1:].count("**") or 1


def suffixes_in(folder: Path) -> str:
    """What a folder holds, by suffix: "12 .json, 3 folders"; "nothing" if it is empty."""
    counts = collections.Counter(
        "folders" if path.is_dir() else path.suffix.lower() or "without suffix"
        for path in folder.iterdir()
        if not path.name.startswith(".")
    )
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common(5)) or "nothing"
