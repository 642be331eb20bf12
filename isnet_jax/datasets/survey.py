"""Checking a whole data set: every problem is told as it is found, and what was found is counted."""

import collections
import concurrent.futures
import contextlib
import itertools
import os
import sys
from typing import NamedTuple

import numpy as np
import tqdm

from isnet_jax.console import no_native_noise
from isnet_jax.errors import UserError, printable


class Census:
    """What a split holds. images: how many; pixels int64 [K + 1]: of each class and, last, ignored; occurrences
    int64 [K]: the images that hold a class; sizes: (height, width) of each image; palettes: labels that are palette
    PNGs; num_bytes: of the records.
    """

    def __init__(self, num_classes):
        self.images = self.palettes = self.num_bytes = 0
        self.sizes = []
        self.pixels, self.occurrences = np.zeros(num_classes + 1, np.int64), np.zeros(num_classes, np.int64)

    def add(self, finding):
        """Counts a Finding without errors."""
        self.images += 1
        self.sizes.append(finding.size)
        self.palettes += finding.palette
        self.num_bytes += finding.num_bytes
        self.pixels += finding.counts
        self.occurrences += finding.counts[:-1] > 0

    def table(self, split, names):
        """Returns an aligned text table of the classes."""
        labelled, width = max(self.pixels[:-1].sum(), 1), max(map(len, names))
        lines = [
            f"{split}: {self.images} images, {100 * self.pixels[-1] / max(self.pixels.sum(), 1):.2f} % of the "
            "pixels ignored; of the others",
            f"  id  {'class':<{width}}  share %   images",
        ]
        lines += [
            f"{i:4d}  {name:<{width}}  {100 * pixels / labelled:7.2f} {images:8d}"
            for i, (name, pixels, images) in enumerate(zip(names, self.pixels, self.occurrences))
        ]
        return "\n".join(lines)


class Survey(NamedTuple):
    """A data set without problems."""

    names: tuple  # of the classes
    items: dict  # split: list of items
    census: dict  # split: Census

    def tables(self):
        """Returns a text table for each split."""
        return "\n\n".join(census.table(split, self.names) for split, census in self.census.items())


def survey(builder, journal=None):
    """Checks all items of a SegmentationBuilder; tells problems, warnings and notes on standard error.

    Args:
      builder: a SegmentationBuilder.
      journal: Journal to take from what has been checked before, and to add to; None checks all and writes nothing.

    Returns:
      A Survey.

    Raises:
      UserError: there are problems; it says how many.
    """
    told = collections.Counter()

    def tell(kind, messages):
        told[kind] += len(messages)
        for message in messages:
            tqdm.tqdm.write(printable(f"{kind}: {message}"), file=sys.stderr)

    builder.problems, builder.warnings = [], []
    items = builder.items()
    if not builder.problems:
        builder.problems += [f"The split {split} has no images." for split in items if not items[split]]
    tell("problem", builder.problems)
    tell("warning", builder.warnings)
    tell(
        "warning",
        [
            f"The split {split} has {len(items[split])} images where the official one has {count}."
            for split, count in builder.COUNTS.items()
            if items.get(split) and len(items[split]) != count
        ],
    )

    def check(item):
        stamp = journal and _stamp(builder, item)
        known = stamp and journal.get(stamp)
        if known and len(known.counts) != len(builder.NAMES) + 1:
            known = None
        return stamp, known, known or builder.check(item)

    census = {split: Census(len(builder.NAMES)) for split in items}
    total, resumed = sum(map(len, items.values())), 0
    with (
        contextlib.ExitStack() as stack,
        no_native_noise(),
        tqdm.tqdm(total=total, desc=f"checking {builder.name}", unit=" images", disable=None) as bar,
    ):
        if journal:
            stack.callback(journal.flush)
        for split in items:
            for stamp, known, finding in in_order(check, items[split]):
                tell("problem", finding.errors)
                tell("warning", finding.warnings)
                if not finding.errors:
                    census[split].add(finding)
                    if stamp and not known:
                        journal.add(stamp, finding)
                resumed += bool(known)
                bar.update()
    tell(
        "note",
        [
            f"{count.palettes} of {count.images} labels of {split} are palette PNGs: their indices are taken, "
            "not their colours."
            for split, count in census.items()
            if count.palettes
        ],
    )
    if resumed:
        tell("note", [f"{resumed} of {total} images had been checked before."])
    if told["problem"]:
        raise UserError(_refusal(builder, items, told["problem"], journal))
    return Survey(builder.NAMES, items, census)


def in_order(function, items, cost=lambda item: 0, most=0):
    """Yields function(item) for each item, in their order, working ahead in threads: decoders release Python's lock.

    Results wait in memory, so a bounded number is ahead, and costs that add up to `most` at most, or a single item.
    """
    workers = min(16, os.cpu_count())
    items, running, held = iter(items), collections.deque(), 0
    following = list(itertools.islice(items, 1))
    with contextlib.ExitStack() as stack:
        pool = concurrent.futures.ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, cancel_futures=True)
        while following or running:
            while following and len(running) < 4 * workers and (not running or held + cost(following[0]) <= most):
                running.append((pool.submit(function, following[0]), cost(following[0])))
                held += cost(following[0])
                following = list(itertools.islice(items, 1))
            future, share = running.popleft()
            yield future.result()
            held -= share


def _stamp(builder, item):
    try:
        return builder.stamp(item)
    except OSError:  # the check will tell
        return None


def _refusal(builder, items, count, journal):
    where = f" in {builder.source}" if builder.source else ""
    layout = f" (the layout is {builder.LAYOUT})" if builder.LAYOUT else ""
    again = "only what has changed is checked anew" if journal else "nothing has been written"
    problems = f"{count} {'problem' if count == 1 else 'problems'}"
    if builder.source and not any(items.values()):
        return (
            f"{builder.source} does not look like the data set {builder.name}{layout}: no image with a label was "
            f"found, and the {problems} above tell why. Give the folder that holds it."
        )
    return (
        f"The data set {builder.name}{where} has {problems}, listed above, and is not prepared. Mend the files"
        f"{layout} and run again; {again}."
    )
