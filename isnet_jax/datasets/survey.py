"""The check of a whole data set: problems are collected and reported, classes and sizes are counted."""

import contextlib
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from isnet_jax.datasets.common import MAX_PIXELS, SegmentationBuilder
from isnet_jax.datasets.journal import Colors, Finding, Journal
from isnet_jax.datasets.pairing import Pair
from isnet_jax.datasets.problems import FileProblem, Report, listed
from isnet_jax.datasets.statistics import SplitStatistics, Survey
from isnet_jax.errors import UserError
from isnet_jax.runtime.console import no_native_noise
from isnet_jax.runtime.threads import map_in_order

MAX_NAMES = 10  # of classes in a warning


@dataclasses.dataclass
class _Checked:
    """What the check of all items gave."""

    statistics: dict[str, SplitStatistics]  # by split
    errors: list[UserError] = dataclasses.field(default_factory=list)
    colors: list[tuple[Path, Colors]] = dataclasses.field(default_factory=list)  # of label files
    num_resumed: int = 0  # findings that were in the journal


def survey(builder: SegmentationBuilder, journal: Journal | None = None) -> Survey:
    """Checks all items of a data set, and reports problems, warnings and notes on standard error.

    Findings in the journal are taken from there, new ones are added; without a journal nothing is written. Raises
    UserError if there are problems, with their number.
    """
    with Report(builder.name) as report:
        items = _list_items(builder, report)
        checked = _check_items(builder, items, journal, report)
        result = Survey(builder.NAMES, items, checked.statistics)
        if not report.num_problems:
            for found in _palettes_that_differ(checked.colors), builder.doubts(result):
                report.add("problem", found[0])
                report.add("warning", found[1])
            report.add("warning", _classes_without_pixels(result))
        report.add("warning", _images_in_two_splits(items))
        report.add("note", _notes(checked, sum(map(len, items.values()))))
    if report.num_problems:
        advice = builder.advice([*builder.findings.problems, *checked.errors])
        raise UserError(_refusal(builder, items, report.num_problems, journal) + (f" {advice}" if advice else ""))
    return result


def _list_items(builder: SegmentationBuilder, report: Report) -> dict[str, list[Any]]:
    """The items of each split; reports what is missing."""
    builder.findings = type(builder.findings)()
    items = builder.items()
    findings = builder.findings
    if not findings.problems:
        findings.problems += [f"The split {split} has no images." for split in items if not items[split]]
    report.add("problem", findings.problems)
    report.add("warning", findings.warnings)
    report.add("note", findings.notes)
    report.add(
        "warning",
        [
            f"The split {split} has {len(items[split])} images where the official one has {count}."
            for split, count in builder.COUNTS.items()
            if items.get(split) and len(items[split]) != count
        ],
    )
    return items


def _check_items(
    builder: SegmentationBuilder, items: dict[str, list[Any]], journal: Journal | None, report: Report
) -> _Checked:
    """Checks all items; the statistics are of those without problems."""

    def check(item: Any) -> tuple[str | None, bool, Finding]:
        stamp = _stamp(builder, item) if journal else None
        known = journal.get(stamp) if journal and stamp else None
        if known and len(known.counts) == len(builder.NAMES) + 1:
            return stamp, True, known
        return stamp, False, builder.check(item)

    checked = _Checked({split: SplitStatistics(len(builder.NAMES)) for split in items})
    with (
        contextlib.ExitStack() as stack,
        no_native_noise(),
        tqdm.tqdm(
            total=sum(map(len, items.values())), desc=f"checking {builder.name}", unit=" images", disable=None
        ) as bar,
    ):
        if journal:
            stack.callback(journal.flush)
        for split in items:
            for item, (stamp, is_known, finding) in zip(
                items[split], map_in_order(check, items[split], builder.cost, MAX_PIXELS)
            ):
                report.add("problem", finding.errors)
                report.add("warning", finding.warnings)
                checked.errors += finding.errors
                if not finding.errors:
                    checked.statistics[split].add(finding)
                    if finding.colors:
                        checked.colors.append((item.label, finding.colors))
                    if journal and stamp and not is_known:
                        journal.add(stamp, finding)
                checked.num_resumed += is_known
                bar.update()
                if report.num_problems:
                    bar.set_postfix(problems=report.num_problems, refresh=False)
    return checked


def _palettes_that_differ(labels: list[tuple[Path, Colors]]) -> tuple[list[FileProblem], list[FileProblem]]:
    """Problems and warnings: labels, read by their indices, whose palette says something else than an earlier one.

    Where a colour has two indices, one of them means another class. Where an index has two colours, it may.
    """
    indices: dict[int, tuple[int, Path]] = {}  # {colour: (index, label)}
    shades: dict[int, tuple[int, Path]] = {}  # {index: (colour, label)}
    problems, warnings = [], []
    advice = "write the colour of each class in config.data.folder.palette"
    for path, colors in labels:
        for color, index in colors:
            known, earlier = indices.setdefault(color, (index, path))
            shade, other = shades.setdefault(index, (color, path))
            if known != index:
                text = (
                    f"has the colour #{color:06x} at the index {index} of its palette, but {earlier} at {known}: "
                    f"indices cannot mean classes in both. If colours do, {advice}."
                )
                problems.append(FileProblem(path, text, "a colour has two indices"))
                break
            if shade != color:
                text = (
                    f"has the colour #{color:06x} at the index {index} of its palette, but {other} has #{shade:06x} "
                    f"there. If colours mean classes, {advice}."
                )
                warnings.append(FileProblem(path, text, "an index has two colours"))
                break
    return problems, warnings


def _classes_without_pixels(survey: Survey) -> list[str]:
    warnings = []
    for split, statistics in survey.statistics.items():
        (absent,) = np.nonzero(statistics.pixels[:-1] == 0)
        if not statistics.num_images:
            continue
        if len(absent) == len(survey.class_names):
            warnings.append(f"The split {split} has no labelled pixel: it can neither be learnt from nor be scored.")
        elif len(absent):
            names = listed([survey.class_names[i] for i in absent], MAX_NAMES)
            warnings.append(
                f"The split {split} has no pixel of {len(absent)} of {len(survey.class_names)} classes: {names}."
            )
    return warnings


def _images_in_two_splits(items: dict[str, list[Any]]) -> list[str]:
    files = {split: {item.image for item in pairs if isinstance(item, Pair)} for split, pairs in items.items()}
    shared = {(a, b): files[a] & files[b] for a, b in itertools.combinations(files, 2)}
    return [f"{len(both)} images are in both {a} and {b}." for (a, b), both in shared.items() if both]


def _notes(checked: _Checked, num_items: int) -> list[str]:
    texts = {
        "num_palettes": "labels of {} are palette images: their indices are used, not their colours.",
        "num_by_color": "labels of {} are read by their colours, which config.data.folder.palette gives to classes.",
        "num_turned": "images of {} are turned as their EXIF orientation says.",
    }
    notes = [
        f"{getattr(split, field)} of {split.num_images} {text.format(name)}"
        for name, split in checked.statistics.items()
        for field, text in texts.items()
        if getattr(split, field)
    ]
    if checked.num_resumed:
        notes.append(f"{checked.num_resumed} of {num_items} images had been checked before.")
    return notes


def _stamp(builder: SegmentationBuilder, item: Any) -> str | None:
    try:
        return builder.stamp(item)
    except OSError:  # the check reports it
        return None


def _refusal(
    builder: SegmentationBuilder, items: dict[str, list[Any]], num_problems: int, journal: Journal | None
) -> str:
    source = f" in {builder.source}" if builder.source else ""
    layout = f" (the layout is {builder.LAYOUT})" if builder.LAYOUT else ""
    problems = f"{num_problems} {'problem' if num_problems == 1 else 'problems'}"
    if builder.source and not any(items.values()):
        return (
            f"{builder.source} does not look like the data set {builder.name}{layout}: no image with a label was "
            f"found, for the reasons given in the {problems} above. Give the folder that holds it."
        )
    again = "only files that have changed are checked again" if journal else "nothing has been written"
    return (
        f"The data set {builder.name}{source} has {problems}, listed above, and is not prepared. Fix the files"
        f"{layout} and run the command again; {again}."
    )
