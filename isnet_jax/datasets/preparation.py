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
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from etils import epath

from isnet_jax.datasets import store
from isnet_jax.datasets.common import SegmentationBuilder
from isnet_jax.datasets.journal import Journal
from isnet_jax.datasets.pairing import is_utf8
from isnet_jax.datasets.statistics import Survey
from isnet_jax.datasets.survey import survey
from isnet_jax.errors import UserError
from isnet_jax.runtime import files, limits

SOURCE_FLAGS = "--config.data.source=DIR (isnet_jax.prepare --dataset: --source=DIR)"


def open_or_prepare(
    builder_class: type[SegmentationBuilder],
    data_dir: str | os.PathLike | None,
    source: str | os.PathLike | None,
    **kwargs: Any,
) -> tuple[SegmentationBuilder, Survey | None]:
    """See `isnet_jax.datasets.prepare`; `kwargs` are the builder's, besides data_dir and source."""
    source = _resolve_source(builder_class, source)
    local_dir = store.local_data_dir(data_dir)
    open_builder = functools.partial(_open, builder_class, local_dir, source, kwargs)
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
        with _exclusive(builder) as folder:
            if not open_builder().data_path.exists():  # another process may have prepared it while this one waited
                if is_stored:
                    store.fetch(remote, builder.data_path)
                else:
                    result = _prepare(builder, folder)
        builder = open_builder()
    prepared_from = builder.info.metadata["source"]
    if source and str(source) != prepared_from:
        raise UserError(
            f"{builder.data_path} has been prepared from {prepared_from}, but the source is now {source}: leave the "
            f"source empty to use the prepared data, delete {builder.data_path} to prepare it again, or choose "
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


def check(builder_class: type[SegmentationBuilder], source: str | os.PathLike | None, **kwargs: Any) -> Survey:
    """See `isnet_jax.datasets.check`; `kwargs` are the builder's."""
    source = _resolve_source(builder_class, source)
    if builder_class.LAYOUT and not source:
        raise UserError(
            f"There is nothing to check: give the folder that holds the data set {builder_class.name} "
            f"({builder_class.LAYOUT}) as {SOURCE_FLAGS}."
        )
    builder = _open(builder_class, os.devnull, source, kwargs)  # nothing can be prepared there
    _require_source(builder)
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
    for name, height, width in itertools.chain(*metadata["examples"].values()):
        if not (
            isinstance(name, str)
            and files.is_plain_filename(name)
            and type(height) is type(width) is int
            and min(height, width) > 0
        ):
            raise ValueError(f"it has an example {name!a} of {height!a} x {width!a}")
        limits.check_size(width, height)


def _prepare(builder: SegmentationBuilder, folder: epath.Path) -> Survey:
    """Checks and writes a data set; its journal is in `folder`, which is removed at the end."""
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
    folder.rmtree()
    return result


@contextlib.contextmanager
def _exclusive(builder: SegmentationBuilder) -> Iterator[epath.Path]:
    """Excludes other processes that prepare the same data set, and yields the folder for the journal.

    The folder is kept if there is a journal in it. Raises UserError in place of OSError.
    """
    folder = builder.data_path.parent / f"checked.{builder.data_path.name}"  # not a version, so TFDS ignores it
    try:
        with contextlib.ExitStack() as stack:
            if _lock(folder, stack):  # so the processes that left these folders have died
                for incomplete in folder.parent.glob(f"incomplete.*_{builder.data_path.name}"):
                    incomplete.rmtree()
            stack.callback(_remove_if_empty, folder)
            yield folder
    except OSError as error:
        raise UserError(
            f"The data set {builder.name} cannot be written to {builder.data_path} ({error}): fix that, or choose "
            "another data_dir."
        ) from None


def _remove_if_empty(folder: epath.Path) -> None:
    """Removes the folder unless it holds a journal."""
    if folder.exists() and not list(folder.glob("*.npz")):
        folder.rmtree()


def _lock(folder: epath.Path, stack: contextlib.ExitStack) -> bool:
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
