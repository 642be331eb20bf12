"""Which label belongs to which image, and which files lack a partner."""

import re
from pathlib import Path
from typing import NamedTuple

IMAGE_SUFFIXES = ".jpg", ".jpeg", ".png"


class Pair(NamedTuple):
    """An image file and its label file."""

    name: str  # what the last star of the pattern stands for; in a plain folder, the file's stem
    image: Path
    label: Path


def find_pairs(source, images, labels, problems, names=None, label_suffixes=(".png",)):
    """Matches image files and label files by their names.

    source: the root of the tree, Path. images, labels: where the files are under the source: a folder as in
    'val/images', or a pattern as in 'gtFine/val/*/*_labelIds.png', whose stars stand for the same in both. A pattern
    without suffix ('imgs/*_img'; a folder is short for 'FOLDER/*') takes any suffix in IMAGE_SUFFIXES, or
    label_suffixes, in any case. Hidden files are passed over. problems: list, gets a sentence for each missing folder
    and each file without its partner. names: optional file under the source that lists the names of the pairs wanted;
    others are passed over. Returns a list of Pair sorted by name.
    """
    patterns = [_Pattern(source, images, IMAGE_SUFFIXES), _Pattern(source, labels, label_suffixes)]
    missing = [pattern.folder for pattern in patterns if not pattern.folder.is_dir()]
    if missing:
        problems.append(f"The folder {missing[0]} is missing{f', and so is {missing[1]}' if missing[1:] else ''}.")
        return []
    try:
        wanted = names and _read_names(source / names)
        image_files, label_files = (pattern.files(problems, wanted) for pattern in patterns)
    except (OSError, UnicodeDecodeError) as error:
        path, reason = getattr(error, "filename", source / str(names)), getattr(error, "strerror", None) or error
        problems.append(f"{path} cannot be read ({reason}).")
        return []
    for pattern, files in zip(patterns, (image_files, label_files)):
        if not files:
            problems.append(f"There is no file {pattern.example('*')}{f' that {names} lists' if names else ''}.")
            return []
    for name in sorted((wanted or set()) - image_files.keys() - label_files.keys()):
        problems.append(f"{source / names} lists {name[-1]}, but there is no {patterns[0].example(*name)}.")
    for name in sorted(image_files.keys() ^ label_files.keys()):
        files, kind, pattern = (
            (image_files, "label", patterns[1]) if name in image_files else (label_files, "image", patterns[0])
        )
        partner = pattern.example(*name)
        problems.append(f"{files[name]} has no {kind} {partner.name} in {partner.parent}.")
    return [
        Pair(name[-1], image_files[name], label_files[name]) for name in sorted(image_files.keys() & label_files.keys())
    ]


def locate(source, *places):
    """Returns the first of the places that exists under the source, else the first: to be told missing."""
    return next((place for place in places if (source / place).exists()), places[0])


class _Pattern:
    """Finds the files of a pattern; a name is a tuple of what its stars stand for."""

    def __init__(self, source, pattern, suffixes):
        parts = Path(pattern).parts if "*" in pattern else (*Path(pattern).parts, "*")
        depth = next(i for i, part in enumerate(parts) if "*" in part)
        self.folder, self.parts = source.joinpath(*parts[:depth]), parts[depth:]
        self.suffixes = () if parts[-1].lower().endswith(tuple(suffixes)) else suffixes

    def files(self, problems, wanted):
        """Returns {name: path}, of the wanted names alone unless that is None."""
        files = {}
        for name, path in self._walk(self.folder, self.parts):
            if wanted is not None and name not in wanted:
                continue
            if name in files:
                problems.append(f"{files[name]} and {path.name} beside it have the same name.")
            if not is_text(path):
                problems.append(f"{path} has a name that is not UTF-8, as records need it: rename it.")
            files[name] = path
        return files

    def example(self, *name):
        """Returns the path of a name, with all suffixes it may have."""
        stars = iter(name)
        tail = "/".join(re.sub(r"\*", lambda star: next(stars, "*"), part) for part in self.parts)
        several = ",".join(self.suffixes)
        return self.folder / (tail + (f"{{{several}}}" if self.suffixes[1:] else several))

    def _walk(self, folder, parts, name=()):
        """Yields (name, path) in the order of the folders' listings sorted."""
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


def is_text(path):
    """Returns whether a path is valid UTF-8, as what is recorded of it must be."""
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:  # Python keeps other bytes as lone surrogates
        return False


def _read_names(path):
    return {(line.strip(),) for line in path.read_text().splitlines() if line.strip()}
