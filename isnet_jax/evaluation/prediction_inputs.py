"""The image files that `predict` is given, and the names of what it writes for them."""

import collections
import glob
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from isnet_jax.datasets import decoding
from isnet_jax.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
HEIF_SUFFIXES = (".heic", ".heif")
MAX_NAME_BYTES = 255  # of a file, on all common file systems
FRAMES_ADVICE = "cut videos into frames, as ffmpeg -i VIDEO frames/%06d.png does"
HEIF_ADVICE = "convert HEIF files, as heif-convert or mogrify -format jpg does"
NO_SUFFIX = "without suffix"


def find_images(inputs: Sequence[str | Path]) -> tuple[dict[Path, Path], collections.Counter[str]]:
    """The images in `inputs`, files, folders and patterns, and the number of other files in them, by suffix.

    Images are {name in the output, relative and without suffix: path}. A folder contributes all images below it,
    recognised by their suffix; links are followed, hidden files ignored. In a pattern ** stands for folders of any
    depth. Images whose names would be equal keep their suffix in it, or get that of their folder before it. Raises
    UserError for a path that does not exist, for a video, and for a folder or a pattern without images.
    """
    found: list[tuple[Path, Path]] = []
    passed_over: collections.Counter[str] = collections.Counter()
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            named, others = _images_below(path)
        elif path.suffix.lower() in VIDEO_SUFFIXES and path.exists():
            raise UserError(f"{given} is a video: {FRAMES_ADVICE}, and predict the folder of frames.")
        elif path.exists():
            named, others = [(Path(path.name), path)], collections.Counter()
        elif glob.has_magic(str(given)):
            named, others = _images_matching(str(given))
        else:
            raise UserError(f"The image or folder {given} does not exist.")
        if not named:
            rest = f": it holds {describe(others)}" if others else ""
            kind = "folder" if path.is_dir() else "pattern"
            raise UserError(f"The {kind} {given} holds no images ({', '.join(decoding.SUFFIXES)}){rest}.")
        passed_over += others
        found += named
    return _named_apart(found), passed_over


def _named_apart(found: Sequence[tuple[Path, Path]]) -> dict[Path, Path]:
    """{name without suffix: path}, with longer names where these are equal; raises UserError if they still are."""
    images = {os.path.abspath(path): (name, path) for name, path in found}  # each once
    names = {key: name.with_suffix("") for key, (name, _) in images.items()}
    for longer in (lambda name, path: name, lambda name, path: name.parent / path.absolute().parent.name / name.name):
        counts = collections.Counter(names.values())
        names = {key: longer(*images[key]) if counts[name] > 1 else name for key, name in names.items()}
    named: dict[Path, Path] = {}
    for key, name in names.items():
        path = images[key][1]
        if name in named:
            raise UserError(
                f"{named[name]} and {path} would both be written to {name}.png: rename one, or predict them into "
                "different --output directories."
            )
        named[name] = path
    return named


def describe(counts: Mapping[str, int]) -> str:
    """Files by suffix, the most frequent first, and what to do with videos and HEIF files."""
    text = ", ".join(
        f"{count} {suffix}" for suffix, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
    advice = [
        sentence
        for suffixes, sentence in ((VIDEO_SUFFIXES, FRAMES_ADVICE), (HEIF_SUFFIXES, HEIF_ADVICE))
        if any(suffix in counts for suffix in suffixes)
    ]
    return "; ".join([text, *advice])


def _images_below(folder: Path) -> tuple[list[tuple[Path, Path]], collections.Counter[str]]:
    """(path relative to the folder, path) of the images below it, each folder once, and the other files by suffix."""

    def fail(error: OSError) -> None:
        raise UserError(f"The folder {error.filename} cannot be read ({error.strerror}).")

    named, others, seen = [], collections.Counter[str](), set()
    for directory, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:  # a link leads here, too
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(directory, name)
            if name.startswith("."):
                continue
            if name.lower().endswith(decoding.SUFFIXES):
                named.append((path.relative_to(folder), path))
            else:
                others[path.suffix.lower() or NO_SUFFIX] += 1
    return sorted(named), others


def _images_matching(pattern: str) -> tuple[list[tuple[Path, Path]], collections.Counter[str]]:
    """(path relative to the folder before the first wildcard, path) of the images that match, and the other files."""
    parts = Path(pattern).parts
    root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    named, others = [], collections.Counter[str]()
    for path in map(Path, sorted(glob.glob(pattern, recursive=True))):
        if path.name.lower().endswith(decoding.SUFFIXES) and path.is_file():
            named.append((path.relative_to(root), path))
        elif path.is_file():
            others[path.suffix.lower() or NO_SUFFIX] += 1
    return named, others


def check_output(output: str | Path, images: Mapping[Path, Path], inputs: Sequence[str | Path]) -> None:
    """Raises UserError if writing to the directory `output` would touch an input, or anything outside `output`."""
    root = Path(output).resolve()
    for given in inputs:
        path = Path(given).resolve()
        if root == path.parent and path.is_file() or path.is_dir() and root.is_relative_to(path):
            raise UserError(
                f"--output={output} is where the images of {given} are; choose a directory apart from them."
            )
    paths = {path.resolve(): path for path in images.values()}
    for name, path in images.items():
        for target in output_paths(root, name):
            if len(os.fsencode(target.name)) > MAX_NAME_BYTES:
                raise UserError(f"The name of {path} is too long for {target.name}, its prediction: shorten it.")
            if target in paths:
                raise UserError(
                    f"With --output={output}, {paths[target]}, an image to predict, would be overwritten; choose "
                    "another directory."
                )
    for parent in {name.parent for name in images}:
        if not (root / parent).resolve().is_relative_to(root):
            raise UserError(
                f"{Path(output) / parent} leads out of --output={output} by a symbolic link: remove the "
                "link, or choose another directory."
            )


def output_paths(root: Path, name: Path) -> tuple[Path, Path, Path, Path]:
    """The files that may be written for an image: its prediction, the overlay, the confidence and the scores."""
    endings = ".png", "_overlay.jpg", "_confidence.png", "_scores.npz"
    prediction, overlay, confidence, scores = (root / name.with_name(name.name + ending) for ending in endings)
    return prediction, overlay, confidence, scores
