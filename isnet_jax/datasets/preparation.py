"""From a builder to a prepared data set: opening, preparing once, in one process at a time."""

import contextlib
import fcntl
import functools
import itertools
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from isnet_jax.datasets import store
from isnet_jax.datasets.journal import Journal
from isnet_jax.datasets.pairing import is_utf8
from isnet_jax.datasets.survey import survey
from isnet_jax.errors import UserError
from isnet_jax.runtime import files, limits

HOW = "--config.data.source=DIR (isnet_jax.prepare --dataset: --source=DIR)"


def open_or_prepare(builder_class, data_dir, source, **kwargs):
    """Does the work of `isnet_jax.datasets.prepare` for a subclass of SegmentationBuilder.

    kwargs: for the builder, besides data_dir and source.
    """
    source = _resolve(builder_class, source)
    remote, data_dir = data_dir if store.is_remote(data_dir) else None, store.local_place(data_dir)
    make = functools.partial(_open, builder_class, data_dir, source, kwargs)
    builder, result = make(), None
    place = remote and store.place_of(remote, builder.data_path.relative_to(data_dir))
    stored = place and store.holds(place)
    if stored and builder.data_path.exists():
        store.compare(place, builder.data_path)
    elif not builder.data_path.exists() or place:
        if builder_class.LAYOUT and not source and not stored:
            raise UserError(
                f"The data set {builder_class.name} is not prepared in {place or builder.data_path}: give "
                f"the folder that holds it ({builder_class.LAYOUT}) as {HOW}, or as TFDS_DATA_DIR or "
                "data_dir the place where it is prepared."
            )
        if not builder.data_path.exists() and not stored:
            _require_folder(builder)
        with _alone(builder) as folder:
            if not make().data_path.exists():  # else another process has prepared it meanwhile
                if stored:
                    store.fetch(place, builder.data_path)
                else:
                    result = _prepare(builder, folder)
        builder = make()
    prepared_from = builder.info.metadata["source"]
    if source and str(source) != prepared_from:
        raise UserError(
            f"{builder.data_path} has been prepared from {prepared_from}, but the source is now {source}: "
            f"leave it empty to use what is there, delete {builder.data_path} to prepare anew, "
            "or choose another data_dir."
        )
    if place and not stored:
        store.send(builder.data_path, place)
    return builder, result


def open_prepared(builder_class, data_dir, **kwargs):
    """Does the work of `isnet_jax.datasets.open_prepared` for a subclass of SegmentationBuilder."""
    builder = _open(builder_class, store.local_place(data_dir), None, kwargs)
    if not builder.data_path.exists():
        raise UserError(f"The data set {builder_class.name} is not prepared in {builder.data_path}.")
    return builder


def check(builder_class, source, **kwargs):
    """Does the work of `isnet_jax.datasets.check` for a subclass of SegmentationBuilder."""
    source = _resolve(builder_class, source)
    if builder_class.LAYOUT and not source:
        raise UserError(
            f"There is nothing to check: give the folder that holds the data set {builder_class.name} "
            f"({builder_class.LAYOUT}) as {HOW}."
        )
    builder = _open(builder_class, os.devnull, source, kwargs)  # nothing is ever prepared there
    _require_folder(builder)
    return survey(builder)


def _resolve(builder_class, source):
    if source and not builder_class.LAYOUT:
        raise UserError(
            f"The source is {source}, but the data set {builder_class.name} needs no source: leave it empty."
        )
    source = Path(source).expanduser().resolve() if source else None
    if source and not is_utf8(source):
        raise UserError(f"The source {source} has a name that is not UTF-8, as records need it: rename the folder.")
    return source


def _require_folder(builder):
    if builder.source and not builder.source.is_dir():
        raise UserError(
            f"The source {builder.source} is no folder: give the one that holds the data set "
            f"{builder.name} ({builder.LAYOUT}) as {HOW}."
        )


def _open(builder_class, data_dir, source, kwargs):
    """Returns a builder, prepared or not; raises UserError if what is there is damaged or foreign."""
    try:
        builder = builder_class(data_dir=data_dir, source=source, **kwargs)
        if builder.data_path.exists():
            _check_metadata(builder)
            for path in [path for split in builder.info.splits.values() for path in split.filepaths] or ["no split"]:
                if not os.path.exists(path):
                    raise ValueError(f"{path} is missing")
    except UserError:
        raise
    except Exception as error:  # TFDS raises AssertionError, json errors and its own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"What is in {os.path.join(data_dir, builder_class.name)} is no complete data set "
            f"{builder_class.name} of this program ({reason}): delete it to prepare anew, or choose "
            "another data_dir."
        ) from None
    return builder


def _check_metadata(builder):
    """Raises an error unless what is stored beside the records can be relied on: names of files are made of it."""
    metadata, splits = builder.info.metadata, builder.info.splits
    if list(metadata["names"]) != list(builder.NAMES):  # [] loads what is stored, get not
        raise ValueError("it holds other classes")
    if "examples" not in metadata:
        raise ValueError("it was prepared by an older version")
    if not isinstance(metadata["source"], str) or np.shape(metadata["palette"]) != (len(builder.NAMES), 3):
        raise ValueError("its source is no text, or its palette no list of colours")
    if {split: len(examples) for split, examples in metadata["examples"].items()} != {
        split: info.num_examples for split, info in splits.items()
    }:
        raise ValueError("it has other examples than records")
    for name, height, width in itertools.chain(*metadata["examples"].values()):
        if not (
            isinstance(name, str)
            and files.is_plain_filename(name)
            and type(height) is type(width) is int
            and min(height, width) > 0
        ):
            raise ValueError(f"it has an example {name!a} of {height!a} x {width!a}")
        limits.check_size(width, height)


def _prepare(builder, folder):
    """Checks and writes a data set, with the journal in `folder`, which goes at the end; returns the Survey."""
    journal = Journal(folder)
    result = survey(builder, journal)
    needed, free = sum(census.num_bytes for census in result.census.values()), shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"The data set {builder.name} needs {needed / 1e9:.1f} GB in {builder.data_path}, where "
            f"{free / 1e9:.1f} GB are free: make room or choose another data_dir."
        )
    shows_progress = tfds.core.utils.tqdm_utils._active
    tfds.disable_progress_bar()  # ours is enough
    try:
        with tqdm.tqdm(
            total=sum(map(len, result.items.values())), desc=f"writing {builder.name}", unit=" images", disable=None
        ) as bar:
            builder.write(result, journal, bar.update)
    finally:
        tfds.display_progress_bar(shows_progress)
    folder.rmtree()
    return result


@contextlib.contextmanager
def _alone(builder):
    """Holds off other processes that want to prepare the same; yields the folder of the journal, epath.Path.

    The folder stays if there is a journal in it. Raises UserError for an OSError inside.
    """
    folder = builder.data_path.parent / f"checked.{builder.data_path.name}"  # of a form that TFDS passes over
    try:
        with contextlib.ExitStack() as stack:
            if _lock(folder, stack):  # so whoever made these is dead
                for left in folder.parent.glob(f"incomplete.*_{builder.data_path.name}"):
                    left.rmtree()
            stack.callback(_tidy, folder)
            yield folder
    except OSError as error:
        raise UserError(
            f"Cannot write the data set {builder.name} to {builder.data_path} ({error}): mend that or "
            "choose another data_dir."
        ) from None


def _tidy(folder):
    if folder.exists() and not list(folder.glob("*.npz")):
        folder.rmtree()


def _lock(folder, stack):
    """Makes the folder and locks it until the stack closes; returns False where locks do not work."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "lock"
        file = stack.enter_context(path.open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that prepares {folder.parent}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # some network file systems have none
            return False
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return True
        # Else the folder was removed and made anew while we waited.
