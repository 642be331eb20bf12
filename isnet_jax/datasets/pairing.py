"""Pairs of an image file and a label file, matched by name, and the files that lack a partner."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

IMAGE_SUFFIXES = ".jpg", ".jpeg", ".png"

Name = tuple[str, ...]  # what each star of a pattern matches


class Pair(NamedTuple):
    """An image file and its label file."""

    name: str  # what the last star of the pattern matches; in a plain folder, the stem of the file
    image: Path
    label: Path


def find_pairs(
    source: Path,
    images: str,
    labels: str,
    problems: list[str],
    list_file: str | None = None,
    label_suffixes: Sequence[str] = (".png",),
) -> list[Pair]:
    """The pairs of image and label files under the folder `source`, sorted by name.

    `images` and `labels` are folders under the source, such as "val/images", or patterns, such as
    "gtFine/val/*/*_labelIds.png", whose stars match the same text in both. A folder is short for "FOLDER/*". A pattern
    without a suffix, such as "imgs/*_img", takes any of IMAGE_SUFFIXES or `label_suffixes`, in upper or lower case.
    Hidden files are ignored.

    `list_file` is a text file under the source that lists one name a line: other names are ignored. Every missing
    folder and every file without a partner adds a sentence to `problems`.
    """
    image_pattern = _Pattern(source, images, IMAGE_SUFFIXES)
    label_pattern = _Pattern(source, labels, label_suffixes)
    missing = [pattern.folder for pattern in (image_pattern, label_pattern) if not pattern.folder.is_dir()]
    if missing:
        problems.append(f"The folder {missing[0]} is missing{f', and so is {missing[1]}' if missing[1:] else ''}.")
        return []
    try:
        listed = _read_names(source / list_file) if list_file else None
        image_files = image_pattern.files(problems, listed)
        label_files = label_pattern.files(problems, listed)
    except (OSError, UnicodeDecodeError) as error:
        path, reason = getattr(error, "filename", source / str(list_file)), getattr(error, "strerror", None) or error
        problems.append(f"{path} cannot be read ({reason}).")
        return []
    for pattern, files in ((image_pattern, image_files), (label_pattern, label_files)):
        if not files:
            problems.append(
                f"There is no file {pattern.example('*')}{f' that {list_file} lists' if list_file else ''}."
            )
            return []
    for name in sorted((listed or set()) - image_files.keys() - label_files.keys()):
        problems.append(f"{source / str(list_file)} lists {name[-1]}, but there is no {image_pattern.example(*name)}.")
    for name in sorted(image_files.keys() ^ label_files.keys()):
        if name in image_files:
            path, partner_kind, partner = image_files[name], "label", label_pattern.example(*name)
        else:
            path, partner_kind, partner = label_files[name], "image", image_pattern.example(*name)
        problems.append(f"{path} has no {partner_kind} {partner.name} in {partner.parent}.")
    paired = sorted(image_files.keys() & label_files.keys())
    return [Pair(name[-1], image_files[name], label_files[name]) for name in paired]


def locate(source: Path, *places: str) -> str:
    """The first of `places` that exists under the source; if none does, the first, to be reported as missing."""
    return next((place for place in places if (source / place).exists()), places[0])


class _Pattern:
    """Finds the files that match a pattern."""

    def __init__(self, source: Path, pattern: str, suffixes: Sequence[str]):
        parts = Path(pattern).parts if "*" in pattern else (*Path(pattern).parts, "*")
        depth = next(i for i, part in enumerate(parts) if "*" in part)
        self.folder, self.parts = source.joinpath(*parts[:depth]), parts[depth:]
        self.suffixes = () if parts[-1].lower().endswith(tuple(suffixes)) else tuple(suffixes)

    def files(self, problems: list[str], listed: set[Name] | None) -> dict[Name, Path]:
        """{name: path}, of the listed names only unless `listed` is None."""
        files: dict[Name, Path] = {}
        for name, path in self._walk(self.folder, self.parts):
            if listed is not None and name not in listed:
                continue
            if name in files:
                problems.append(f"{files[name]} and {path.name} beside it have the same name.")
            if not is_utf8(path):
                problems.append(f"{path} has a name that is not UTF-8, as records need it: rename it.")
            files[name] = path
        return files

    def example(self, *name: str) -> Path:
        """The path of a name, with all suffixes that it may have in braces."""
        stars = iter(name)
        tail = "/".join(re.sub(r"\*", lambda star: next(stars, "*"), part) for part in self.parts)
        suffixes = ",".join(self.suffixes)
        return self.folder / (tail + (f"{{{suffixes}}}" if self.suffixes[1:] else suffixes))

    def _walk(self, folder: Path, parts: tuple[str, ...], name: Name = ()) -> Iterator[tuple[Name, Path]]:
        """Yields (name, path), folder by folder, each sorted."""
        expression = "(.+)".join(map(re.escape, parts[0].split("*")))
        if not parts[1:] and self.suffixes:
            expression += f"(?i:{'|'.join(map(re.escape, self.suffixes))})"
        for path in sorted(folder.iterdir()):
            match = re.fullmatch(expression, path.name)
            if match and not path.name.startswith("."):
                if not parts[1:]:
                    yield name + match.groups(), path
                elif path.is_dir():
                    yield from self._walk(path, parts[1:], name + match.groups())


def is_utf8(path: Path) -> bool:
    """Whether a path is valid UTF-8, the encoding of names in records."""
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:  # Python decodes other bytes as lone surrogates
        return False


def _read_names(path: Path) -> set[Name]:
    return {(line.strip(),) for line in path.read_text().splitlines() if line.strip()}
