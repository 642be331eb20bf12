"""Patterns of file names: what their stars match, and which files they leave out."""

import collections
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

Name = tuple[str, ...]  # what each star of a pattern matches


class Pattern:
    """Finds the files that match a pattern under a folder.

    `*` is any part of a name, and `**` any number of folders, none included; each real folder counts once. A pattern
    without a star is a folder, short for "FOLDER/*". Suffixes may be in upper or lower case; a pattern without one
    takes any of `suffixes`. What stars match is in Unicode's composed form: macOS decomposes the names of files.
    """

    def __init__(self, source: Path, pattern: str, suffixes: Sequence[str], shown_suffix: str):
        """shown_suffix: what `example` ends with, if the pattern has no suffix."""
        self.text = pattern
        parts = Path(pattern).parts if "*" in pattern else (*Path(pattern).parts, "*")
        parts += ("*",) if parts[-1] == "**" else ()
        depth = next(i for i, part in enumerate(parts) if "*" in part)
        self.folder = source.joinpath(*parts[:depth])
        self.parts: tuple[str, ...] = parts[depth:]
        own = next((suffix for suffix in suffixes if parts[-1].lower().endswith(suffix)), "")
        if own:
            self.suffixes: tuple[str, ...] = (own,)
            self.shown_suffix = parts[-1][-len(own) :]
            self.parts = (*self.parts[:-1], parts[-1][: -len(own)])
        else:
            self.suffixes, self.shown_suffix = tuple(suffixes), shown_suffix
        self.num_literals = len(pattern.replace("*", ""))

    def files(self) -> list[tuple[Name, Path]]:
        """(name, path) of the files that match, folder by folder, each sorted; raises OSError."""
        return [
            (tuple(unicodedata.normalize("NFC", part) for part in name), path)
            for name, path in self._walk(self.folder, self.parts, ())
        ]

    def match(self, path: Sequence[str]) -> Name | None:
        """What the stars match in the end of a path, given in parts, if it matches."""
        parts = self.parts[-1:] if "**" in self.parts else self.parts
        names: list[str] = []
        for i, (part, text) in enumerate(zip(reversed(parts), reversed(path))):
            match = re.fullmatch(self._expression(part, is_last=not i), unicodedata.normalize("NFC", text))
            if not match:
                return None
            names[:0] = match.groups()
        return tuple(names) if len(path) >= len(parts) else None

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
        return expression + f"(?i:{'|'.join(map(re.escape, self.suffixes))})" * is_last

    def _walk(self, folder: Path, parts: tuple[str, ...], name: Name) -> Iterator[tuple[Name, Path]]:
        if parts[0] == "**":
            yield from self._walk_any_depth(folder, parts[1:], name, "", set())
            return
        expression = self._expression(parts[0], is_last=not parts[1:])
        for path in sorted(folder.iterdir()):
            match = re.fullmatch(expression, path.name)
            if match and not path.name.startswith("."):
                if not parts[1:]:
                    yield name + match.groups(), path
                elif path.is_dir():
                    yield from self._walk(path, parts[1:], name + match.groups())

    def _walk_any_depth(
        self, folder: Path, parts: tuple[str, ...], name: Name, between: str, seen: set[str]
    ) -> Iterator[tuple[Name, Path]]:
        """`between`: the folders from where the two stars begin; `seen`: real paths, to which links may lead again."""
        real = os.path.realpath(folder)
        if real in seen:
            return
        seen.add(real)
        yield from self._walk(folder, parts, (*name, between))
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.name.startswith("."):
                inner = f"{between}/{path.name}" if between else path.name
                yield from self._walk_any_depth(path, parts, name, inner, seen)


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
