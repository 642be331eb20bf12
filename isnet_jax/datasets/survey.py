"""The check of a whole data set: problems are reported as they are found, classes and sizes are counted."""

import collections
import contextlib
import sys
from collections.abc import Iterable
from typing import Any

import tqdm

from isnet_jax.datasets.common import SegmentationBuilder
from isnet_jax.datasets.journal import Finding, Journal
from isnet_jax.datasets.statistics import SplitStatistics, Survey
from isnet_jax.errors import UserError, printable
from isnet_jax.runtime.console import no_native_noise
from isnet_jax.runtime.threads import map_in_order


class _Reporter:
    """Prints problems, warnings and notes to standard error, and counts them."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()

    def report(self, kind: str, messages: Iterable[str]) -> None:
        for message in messages:
            self.counts[kind] += 1
            tqdm.tqdm.write(printable(f"{kind}: {message}"), file=sys.stderr)


def survey(builder: SegmentationBuilder, journal: Journal | None = None) -> Survey:
    """Checks all items of a data set, and reports problems, warnings and notes on standard error.

    Findings in the journal are taken from there, new ones are added; without a journal nothing is written. Raises
    UserError if there are problems, with their number.
    """
    reporter = _Reporter()
    items = _list_items(builder, reporter)
    statistics, num_resumed = _check_items(builder, items, journal, reporter)
    reporter.report(
        "note",
        [
            f"{split.num_palettes} of {split.num_images} labels of {name} are palette PNGs: their indices are used, "
            "not their colours."
            for name, split in statistics.items()
            if split.num_palettes
        ],
    )
    if num_resumed:
        reporter.report("note", [f"{num_resumed} of {sum(map(len, items.values()))} images had been checked before."])
    if reporter.counts["problem"]:
        raise UserError(_refusal(builder, items, reporter.counts["problem"], journal))
    return Survey(builder.NAMES, items, statistics)


def _list_items(builder: SegmentationBuilder, reporter: _Reporter) -> dict[str, list[Any]]:
    """The items of each split; reports what is missing."""
    builder.problems, builder.warnings = [], []
    items = builder.items()
    if not builder.problems:
        builder.problems += [f"The split {split} has no images." for split in items if not items[split]]
    reporter.report("problem", builder.problems)
    reporter.report("warning", builder.warnings)
    reporter.report(
        "warning",
        [
            f"The split {split} has {len(items[split])} images where the official one has {count}."
            for split, count in builder.COUNTS.items()
            if items.get(split) and len(items[split]) != count
        ],
    )
    return items


def _check_items(
    builder: SegmentationBuilder, items: dict[str, list[Any]], journal: Journal | None, reporter: _Reporter
) -> tuple[dict[str, SplitStatistics], int]:
    """Statistics of the items without problems, and the number of findings that were in the journal."""

    def check(item: Any) -> tuple[str | None, bool, Finding]:
        stamp = _stamp(builder, item) if journal else None
        known = journal.get(stamp) if journal and stamp else None
        if known and len(known.counts) == len(builder.NAMES) + 1:
            return stamp, True, known
        return stamp, False, builder.check(item)

    statistics = {split: SplitStatistics(len(builder.NAMES)) for split in items}
    total, num_resumed = sum(map(len, items.values())), 0
    with (
        contextlib.ExitStack() as stack,
        no_native_noise(),
        tqdm.tqdm(total=total, desc=f"checking {builder.name}", unit=" images", disable=None) as bar,
    ):
        if journal:
            stack.callback(journal.flush)
        for split in items:
            for stamp, is_known, finding in map_in_order(check, items[split]):
                reporter.report("problem", finding.errors)
                reporter.report("warning", finding.warnings)
                if not finding.errors:
                    statistics[split].add(finding)
                    if journal and stamp and not is_known:
                        journal.add(stamp, finding)
                num_resumed += is_known
                bar.update()
    return statistics, num_resumed


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
