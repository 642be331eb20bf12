"""Pairs of an image file and a label file, matched by name, and the files that lack a partner."""

import collections
import contextlib
import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from isnet_jax.datasets import decoding, label_files
from isnet_jax.datasets.patterns import Name, Pattern, suffixes_in
from isnet_jax.datasets.problems import FileProblem, listed
from isnet_jax.runtime import files

# Other files that tools write beside a label: NAME_labelTrainIds.png beside NAME.png.
COMPANIONS = tuple(
    f"_{name}" for name in "labelTrainIds labelIds instanceIds instanceTrainIds color colored overlay vis viz".split()
)
UNLABELLED, ORPHANED = "images without label", "labels without image"  # kinds of problems
MAX_LIST_BYTES = 2**28  # millions of names
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")


class Pair(NamedTuple):
    """An image file and its label file."""

    name: str  # unique in a split where that is possible: the file's name without suffix, or with its folders
    image: Path
    label: Path


@dataclasses.dataclass
class Findings:
    """What is said about the files of a data set before they are read."""

    problems: list[FileProblem | str] = dataclasses.field(default_factory=list)  # any of them stops the preparation
    warnings: list[FileProblem | str] = dataclasses.field(default_factory=list)
    notes: list[FileProblem | str] = dataclasses.field(default_factory=list)


def find_pairs(
    source: Path,
    images: str,
    labels: str,
    findings: Findings,
    list_file: str | None = None,
    label_suffixes: Sequence[str] = label_files.SUFFIXES,
) -> list[Pair]:
    """The pairs of image and label files under the folder `source`, sorted by name.

    `images` and `labels` are folders under the source, such as "val/images", or patterns, such as
    "gtFine/val/*/*_labelIds.png", whose stars match the same text in both: see `Pattern`. A file that both match
    belongs to the pattern with more letters, or is a label. Hidden files are ignored.

    `list_file` is a text file under the source with one name a line: other names are ignored. Every missing folder and
    every file without a partner is a problem; files that no pattern reaches are warned of.
    """
    image_pattern = Pattern(source, images, decoding.SUFFIXES, "{.jpg,.png,...}")
    label_pattern = _label_pattern(source, labels, image_pattern, label_suffixes)
    missing = [pattern.folder for pattern in (image_pattern, label_pattern) if not pattern.folder.is_dir()]
    if missing:
        findings.problems.append(
            f"The folder {missing[0]} is missing{f', and so is {missing[1]}' if missing[1:] else ''}."
        )
        return []
    found = _find(image_pattern, label_pattern, source / list_file if list_file else None, findings)
    if found is None:
        return []
    found_images, found_labels, names_listed = found
    image_files = _by_name(found_images, names_listed, findings)
    labels_by_name = _by_name(found_labels, names_listed, findings)
    for pattern, found_files in ((image_pattern, image_files), (label_pattern, labels_by_name)):
        if not found_files:
            findings.problems.append(_nothing_found(pattern, list_file, names_listed))
            return []
    absent = sorted(set(names_listed or {}) - image_files.keys() - labels_by_name.keys())
    if absent:
        names = listed([name[-1] for name in absent])
        findings.problems.append(
            f"{source / str(list_file)} lists {names}, but there is no {image_pattern.example(*absent[0])}."
        )
    _report_unpaired(image_pattern, label_pattern, image_files, labels_by_name, findings)
    if names_listed is None:
        _report_left_out(image_pattern, {path for _, path in found_images + found_labels}, findings)
    paired = sorted(image_files.keys() & labels_by_name.keys())
    record_names = _record_names(paired)
    return [Pair(record_names[name], image_files[name], labels_by_name[name]) for name in paired]


def _label_pattern(source: Path, text: str, images: Pattern, suffixes: Sequence[str]) -> Pattern:
    """The pattern of labels. It takes JPEG suffixes if there is nothing else: `label_files` tells what is in them."""
    pattern = Pattern(source, text, suffixes, suffixes[0])
    jpegs = Pattern(source, text, JPEG_SUFFIXES, suffixes[0])
    with contextlib.suppress(OSError):  # `_find` reports it
        if pattern.folder != images.folder and not pattern.files() and jpegs.files():
            return jpegs
    return pattern


def _find(
    images: Pattern, labels: Pattern, list_file: Path | None, findings: Findings
) -> tuple[list[tuple[Name, Path]], list[tuple[Name, Path]], dict[Name, str] | None] | None:
    """(name, path) of images and of labels, and the names listed with their lines; None after a problem."""
    try:
        found_images, found_labels = images.files(), labels.files()
        both = {path for _, path in found_images} & {path for _, path in found_labels}
        if images.num_literals > labels.num_literals:
            found_labels = [(name, path) for name, path in found_labels if path not in both]
        else:
            found_images = [(name, path) for name, path in found_images if path not in both]
        listed_names = _listed_names(list_file, images, labels, found_images + found_labels) if list_file else None
    except UnicodeDecodeError:
        findings.problems.append(f"{list_file} is not a text file in UTF-8: save it as one.")
    except OSError as error:
        findings.problems.append(f"{error.filename} cannot be read ({error.strerror or error}).")
    else:
        return found_images, found_labels, listed_names
    return None


def locate(source: Path, *places: str) -> str:
    """The first of `places` that exists under the source; if none does, the first, to be reported as missing."""
    return next((place for place in places if (source / place).exists()), places[0])


def _by_name(found: Sequence[tuple[Name, Path]], listed: Mapping[Name, str] | None, findings: Findings) -> dict:
    """{name: path}, of the listed names only unless `listed` is None."""
    files: dict[Name, Path] = {}
    for name, path in found:
        if listed is not None and name not in listed:
            continue
        if name in files:
            findings.problems.append(
                FileProblem(files[name], f"and {path.name} beside it have the same name.", "same name")
            )
        if not is_utf8(path):
            findings.problems.append(FileProblem(path, "has a name that is not UTF-8, as records need it: rename it."))
        files[name] = path
    return files


def _listed_names(path: Path, images: Pattern, labels: Pattern, found: Sequence[tuple[Name, Path]]) -> dict[Name, str]:
    """{name: line} of a list. A line is a name, with its suffix or folders or not; a label or a number may follow it.

    Raises OSError, and UnicodeDecodeError for a file that is not UTF-8.
    """
    known = {"/".join(part for part in name if part): name for name, _ in found}
    suffixes = (*decoding.SUFFIXES, *labels.suffixes, ".mat")
    listed: dict[Name, str] = {}
    with files.open_file(path) as file:
        lines = file.read(MAX_LIST_BYTES).decode("utf-8-sig").splitlines()
    for line in lines:
        line = unicodedata.normalize("NFC", line.strip())
        if not line:
            continue
        first, *others = line.split()
        texts = [line]
        if others and (re.fullmatch(r"-?\d+", others[0]) or "/" in first or first.lower().endswith(suffixes)):
            texts.append(first)  # as VOC and PaddleSeg write lines
        candidates = [key for text in texts for key in _keys(text, suffixes, (images, labels))]
        name = next((known[key] for key in candidates if key in known), (line,))
        listed[name] = line
    return listed


def _keys(text: str, suffixes: tuple[str, ...], patterns: Sequence[Pattern]) -> list[str]:
    """Names that a line may mean, those with the most folders first."""
    parts = text.replace("\\", "/").split("/")
    matches = [match for pattern in patterns if (match := pattern.match(parts))]
    keys = ["/".join(filter(None, match)) for match in matches]
    stem = parts[-1].rpartition(".")[0] if parts[-1].lower().endswith(suffixes) else parts[-1]
    for end in dict.fromkeys((stem, parts[-1])):
        keys += ["/".join([*parts[i:-1], end]) for i in range(len(parts))]
    return sorted(filter(None, keys), key=lambda key: -key.count("/"))


def _nothing_found(pattern: Pattern, list_file: str | None, listed: Mapping[Name, str] | None) -> str:
    text = f"There is no file {pattern.example()}"
    if list_file:
        first = next(iter((listed or {}).values()), None)
        said = f"its first line is {first[:80]!r}" if first else "it is empty"
        return f"{text} that {list_file} lists; {said}."
    kinds = suffixes_in(pattern.folder)
    tools = " isnet_jax.prepare --from=coco, labelme or cvat draws such labels."
    return f"{text}; the folder holds {kinds}.{tools if '.json' in kinds or '.xml' in kinds else ''}"


def _report_unpaired(
    images: Pattern, labels: Pattern, image_files: Mapping, label_files: Mapping, findings: Findings
) -> None:
    companions: collections.Counter[str] = collections.Counter()
    for name in sorted(image_files.keys() ^ label_files.keys()):
        if name in image_files:
            partner = labels.example(*name)
            problem = FileProblem(image_files[name], f"has no label {partner.name} in {partner.parent}.", UNLABELLED)
            findings.problems.append(problem)
            continue
        ending = next((ending for ending in COMPANIONS if name[-1].endswith(ending)), "")
        if ending and (*name[:-1], name[-1].removesuffix(ending)) in image_files:
            companions[ending] += 1
            continue
        partner = images.example(*name)
        problem = FileProblem(label_files[name], f"has no image {partner.name} in {partner.parent}.", ORPHANED)
        findings.problems.append(problem)
    for ending, number in companions.items():
        findings.notes.append(f"{number} files *{ending} in {labels.folder} are passed over: they are of other tools.")


def _report_left_out(images: Pattern, matched: set[Path], findings: Findings) -> None:
    """Tells how many images no pattern matches; `matched`: the files that one does."""
    left_out = [path for path in images.files_below(decoding.SUFFIXES) if path not in matched]
    deeper = [path for path in left_out if images.is_deeper(path)]
    others = [path for path in left_out if not images.is_deeper(path)]
    if deeper:
        shown = listed([str(path.relative_to(images.folder)) for path in deeper])
        findings.warnings.append(
            f"{len(deeper)} images lie in deeper folders of {images.folder} than {images.text} reaches, and are left "
            f"out: {shown}. Two stars stand for folders of any depth: images/**/*.jpg, for instance, and the same for "
            "the labels."
        )
    unreadable = images.files_below(decoding.UNREADABLE)
    if unreadable:
        shown = listed([str(path.relative_to(images.folder)) for path in unreadable])
        findings.warnings.append(
            f"{len(unreadable)} files in {images.folder} cannot be read, and are left out: {shown}. Convert "
            "photographs to JPEG or PNG, and cut films into frames."
        )
    if others:
        shown = listed([str(path.relative_to(images.folder)) for path in others])
        findings.notes.append(f"{len(others)} images in {images.folder} do not match {images.text}: {shown}.")


def _record_names(names: Sequence[Name]) -> dict[Name, str]:
    """{name: text}, all different: the last part of each name if these are, or else all parts, or also a number."""
    last = [name[-1] for name in names]
    if len(set(last)) == len(last):
        return dict(zip(names, last))
    joined = ["_".join(part.replace("/", "_") for part in name if part) for name in names]
    if len(set(joined)) < len(joined):
        joined = [f"{text}_{i}" for i, text in enumerate(joined)]
    return dict(zip(names, joined))


def is_utf8(path: Path) -> bool:
    """Whether a path is valid UTF-8, the encoding of names in records."""
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:  # Python decodes other bytes as lone surrogates
        return False
