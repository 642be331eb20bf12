"""Opens data sets, and prepares them once, in one process at a time."""

import contextlib
import fcntl
import functools
import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from isnet_jax.datasets import staleness, store
from isnet_jax.datasets.common import SegmentationBuilder
from isnet_jax.datasets.folder_builder import FolderBuilder
from isnet_jax.datasets.journal import Journal
from isnet_jax.datasets.pairing import is_utf8
from isnet_jax.datasets.statistics import Survey
from isnet_jax.datasets.survey import survey
from isnet_jax.errors import UserError
from isnet_jax.runtime import files, limits
from isnet_jax.runtime.console import warn


class Request(NamedTuple):
    """What of a data set is wanted."""

    splits: tuple[str, ...] | None = None  # to prepare, if it is not prepared; all by default
    needed: tuple[str, ...] | None = None  # the others may be left out where their files are missing
    overwrite: bool = False  # prepare it again
    refuse_stale: bool = False  # raise an error, instead of warning, if the original files have changed


SOURCE_FLAGS = "--config.data.source=DIR (isnet_jax.prepare --dataset: --source=DIR)"


def open_or_prepare(
    builder_class: type[SegmentationBuilder],
    data_dir: str | os.PathLike | None,
    source: str | os.PathLike | None,
    request: Request,
    **kwargs: Any,
) -> tuple[SegmentationBuilder, Survey | None]:
    """See `isnet_jax.datasets.prepare`; `kwargs` are the builder's, besides data_dir and source."""
    source = _resolve_source(builder_class, source)
    local_dir = store.local_data_dir(data_dir)
    open_builder = functools.partial(_open, builder_class, local_dir, source, kwargs)
    if request.overwrite:
        if data_dir and store.is_remote(data_dir):
            raise UserError(f"--overwrite cannot replace what is in {data_dir}: delete the data set there, and here.")
        return _prepare_again(builder_class, local_dir, source, request, kwargs)
    _bring_back(open_builder())
    builder, result = open_builder(), None
    remote = None
    if data_dir and store.is_remote(data_dir):
        remote = store.remote_path(data_dir, builder.data_path.relative_to(local_dir))
    is_stored = remote is not None and store.is_complete(remote)
    if is_stored and builder.data_path.exists():
        store.compare(remote, builder.data_path)
    elif remote is not None or not builder.data_path.exists():
        if builder_class.LAYOUT and not source and not is_stored:
            raise UserError(
                f"The data set {builder_class.name} is not prepared in {remote or builder.data_path}: give the folder "
                f"that holds the original files ({builder_class.LAYOUT}) as {SOURCE_FLAGS}, or the place where it is "
                "prepared as TFDS_DATA_DIR or data_dir."
            )
        if not builder.data_path.exists() and not is_stored:
            _require_source(builder)
        with _exclusive(builder.name, builder.data_path) as folder:
            if not open_builder().data_path.exists():  # another process may have prepared it while this one waited
                if is_stored:
                    store.fetch(remote, builder.data_path)
                else:
                    result = _prepare(builder, folder, request)
        builder = open_builder()
    if result is None:
        staleness.check(builder, open_builder, request.refuse_stale)
    prepared_from = builder.info.metadata["source"]
    if source and str(source) != prepared_from:
        raise UserError(
            f"{builder.data_path} has been prepared from {prepared_from}, but the source is now {source}: leave the "
            "source empty to use the prepared data, prepare it again with isnet_jax.prepare --overwrite, or choose "
            "another data_dir."
        )
    if remote is not None and not is_stored:
        store.send(builder.data_path, remote)
    return builder, result


def open_prepared(
    builder_class: type[SegmentationBuilder], data_dir: str | os.PathLike | None, **kwargs: Any
) -> SegmentationBuilder:
    """See `isnet_jax.datasets.open_prepared`; `kwargs` are the builder's."""
    builder = _open(builder_class, store.local_data_dir(data_dir), None, kwargs)
    if not builder.data_path.exists():
        raise UserError(f"The data set {builder_class.name} is not prepared in {builder.data_path}.")
    return builder


def check(
    builder_class: type[SegmentationBuilder], source: str | os.PathLike | None, request: Request, **kwargs: Any
) -> Survey:
    """See `isnet_jax.datasets.check`; `kwargs` are the builder's."""
    source = _resolve_source(builder_class, source)
    if builder_class.LAYOUT and not source:
        raise UserError(
            f"There is nothing to check: give the folder that holds the data set {builder_class.name} "
            f"({builder_class.LAYOUT}) as {SOURCE_FLAGS}."
        )
    builder = _open(builder_class, os.devnull, source, kwargs)  # nothing can be prepared there
    _require_source(builder)
    _choose_splits(builder, request)
    return survey(builder)


def _resolve_source(builder_class: type[SegmentationBuilder], source: str | os.PathLike | None) -> Path | None:
    """The absolute path of the source, or None."""
    if source and not builder_class.LAYOUT:
        raise UserError(
            f"The source is {source}, but the data set {builder_class.name} needs no source: leave it empty."
        )
    path = Path(source).expanduser().resolve() if source else None
    if path and not is_utf8(path):
        raise UserError(f"The source {path} has a name that is not UTF-8, as records need it: rename the folder.")
    return path


def _require_source(builder: SegmentationBuilder) -> None:
    if builder.source and not builder.source.is_dir():
        raise UserError(
            f"The source {builder.source} is not a folder: give the folder that holds the data set {builder.name} "
            f"({builder.LAYOUT}) as {SOURCE_FLAGS}."
        )


def _open(
    builder_class: type[SegmentationBuilder], data_dir: str, source: Path | None, kwargs: dict[str, Any]
) -> SegmentationBuilder:
    """A builder, whether prepared or not; raises UserError if what is in its folder is damaged or foreign."""
    try:
        builder = builder_class(data_dir=data_dir, source=source, **kwargs)
        if builder.data_path.exists():
            builder.require_same_fields()
            _check_metadata(builder)
            for path in [path for split in builder.info.splits.values() for path in split.filepaths] or ["no split"]:
                if not os.path.exists(path):
                    raise ValueError(f"{path} is missing")
    except UserError:
        raise
    except Exception as error:  # TFDS raises AssertionError, JSON errors and its own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"{os.path.join(data_dir, builder_class.name)} is not a complete data set {builder_class.name} of this "
            f"program ({reason}): delete it to prepare it again, or choose another data_dir."
        ) from None
    return builder


def _check_metadata(builder: SegmentationBuilder) -> None:
    """Raises an error unless the metadata stored beside the records are sound: their names become file names."""
    metadata, splits = builder.info.metadata, builder.info.splits
    if list(metadata["names"]) != list(builder.NAMES):  # indexing loads the stored metadata, `get` does not
        raise ValueError("it holds other classes")
    if "examples" not in metadata:
        raise ValueError("it was prepared by an older version")
    if not isinstance(metadata["source"], str) or np.shape(metadata["palette"]) != (len(builder.NAMES), 3):
        raise ValueError("its source is not a text, or its palette not a list of colours")
    if {split: len(examples) for split, examples in metadata["examples"].items()} != {
        split: info.num_examples for split, info in splits.items()
    }:
        raise ValueError("its list of examples does not match its records")
    if not isinstance(metadata.get("upright", False), bool):
        raise ValueError("whether its images are upright is neither true nor false")
    stamps, pixels = metadata.get("stamps", {}), metadata.get("pixels", {})
    for what, content in ("stamps", stamps), ("pixels", pixels):
        if not (isinstance(content, dict) and set(content) <= set(splits)):
            raise ValueError(f"its {what} are not those of its splits")
    if not all(isinstance(stamp, str) for stamp in stamps.values()):
        raise ValueError("its stamps are not texts")
    for counts in pixels.values():
        if np.shape(counts) != (len(builder.NAMES) + 1,) or not all(type(n) is int and n >= 0 for n in counts):
            raise ValueError("its counts of pixels are not those of its classes")
    for name, height, width in itertools.chain(*metadata["examples"].values()):
        if not (
            isinstance(name, str)
            and files.is_plain_filename(name)
            and type(height) is type(width) is int
            and min(height, width) > 0
        ):
            raise ValueError(f"it has an example {name!a} of {height!a} x {width!a}")
        limits.check_size(width, height)


def _choose_splits(builder: SegmentationBuilder, request: Request) -> None:
    """Sets the splits to prepare; raises UserError naming those that there are."""
    if not isinstance(builder, FolderBuilder):
        return
    wanted = request.splits or request.needed or ()
    unknown = [split for split in wanted if split not in builder.all_splits]
    if unknown:
        raise UserError(
            f"The data set {builder.name} has no split {unknown[0]!r}: choose among {', '.join(builder.all_splits)}."
        )
    builder.splits = request.splits
    if request.needed and not request.splits:
        builder.splits = tuple(
            split for split in builder.all_splits if split in request.needed or builder.has_split(split)
        )
        absent = [split for split in builder.all_splits if split not in builder.splits]
        if absent:
            warn(f"{builder.source} has no files of the split {' and '.join(absent)}, which this command does not need")


def _prepare(builder: SegmentationBuilder, folder: Path, request: Request) -> Survey:
    """Checks and writes a data set; its journal is in `folder`, which is removed at the end."""
    _choose_splits(builder, request)
    journal = Journal(folder)
    result = survey(builder, journal)
    required, free = sum(split.num_bytes for split in result.statistics.values()), shutil.disk_usage(folder).free
    if free < required:
        raise UserError(
            f"The data set {builder.name} needs {required / 1e9:.1f} GB in {builder.data_path}, but only "
            f"{free / 1e9:.1f} GB are free: make room, or choose another data_dir."
        )
    showed_progress = tfds.core.utils.tqdm_utils._active
    tfds.disable_progress_bar()  # ours is enough
    try:
        with tqdm.tqdm(
            total=sum(map(len, result.items.values())), desc=f"writing {builder.name}", unit=" images", disable=None
        ) as bar:
            builder.write(result, journal, bar.update)
    finally:
        tfds.display_progress_bar(showed_progress)
    shutil.rmtree(folder)
    return result


def _prepare_again(
    builder_class: type[SegmentationBuilder], data_dir: str, source: Path | None, request: Request, kwargs: dict
) -> tuple[SegmentationBuilder, Survey]:
    """Replaces a prepared data set, whatever it is. The old one comes back if the new one is not completed."""
    blank = builder_class(data_dir=os.devnull, source=source, **kwargs)  # which reads nothing
    if blank.LAYOUT and not source:
        raise UserError(f"--overwrite needs the original files: give their folder as {SOURCE_FLAGS}.")
    _require_source(blank)
    place = Path(data_dir) / blank.data_path.relative_to(os.devnull)
    old = place.parent / f"replaced.{place.name}"
    with _exclusive(blank.name, place) as folder:
        if place.exists():
            if old.exists():  # left by a process that died
                shutil.rmtree(old)
            place.rename(old)
        try:
            result = _prepare(_open(builder_class, data_dir, source, kwargs), folder, request)
        except BaseException:
            if old.exists() and not place.exists():
                old.rename(place)
            raise
        if old.exists():
            shutil.rmtree(old)
    return _open(builder_class, data_dir, source, kwargs), result


def _bring_back(builder: SegmentationBuilder) -> None:
    """Restores what a process had set aside that was killed while it prepared the data set again."""
    place = Path(builder.data_path)
    old = place.parent / f"replaced.{place.name}"
    if old.exists() and not place.exists():
        with _exclusive(builder.name, place):
            if old.exists() and not place.exists():
                old.rename(place)
                warn(f"{place} was being prepared again when that process died: the records of before are back")


@contextlib.contextmanager
def _exclusive(name: str, place: Path) -> Iterator[Path]:
    """Excludes other processes that prepare the data set at `place`, and yields the folder for the journal.

    The folder is kept if there is a journal in it. Raises UserError in place of OSError.
    """
    folder = Path(place).parent / f"checked.{place.name}"  # not a version, so TFDS ignores it
    try:
        with contextlib.ExitStack() as stack:
            if _lock(folder, stack):  # so the processes that left these folders have died
                for incomplete in folder.parent.iterdir():
                    if incomplete.name.startswith("incomplete.") and incomplete.name.endswith(f"_{place.name}"):
                        shutil.rmtree(incomplete)
            stack.callback(_remove_if_empty, folder)
            yield folder
    except OSError as error:
        raise UserError(
            f"The data set {name} cannot be written to {place} ({error}): fix that, or choose another data_dir."
        ) from None


def _remove_if_empty(folder: Path) -> None:
    """Removes the folder unless it holds a journal."""
    if folder.exists() and not list(folder.glob("*.npz")):
        shutil.rmtree(folder)


def _lock(folder: Path, stack: contextlib.ExitStack) -> bool:
    """Makes the folder and locks it until the stack closes; False if the file system has no locks."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "lock"
        file = stack.enter_context(path.open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that prepares {folder.parent}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # as on some network file systems
            return False
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return True
        # Otherwise another process has removed the folder, and made it again, while this one waited.
