"""The data sets, as TensorFlow Datasets builders over the original files. The scenes are drawn instead."""

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from isnet_jax.errors import UserError

if TYPE_CHECKING:  # these import TensorFlow
    from isnet_jax.datasets.common import SegmentationBuilder
    from isnet_jax.datasets.statistics import Survey

CLASSES = {  # module and class of each builder
    "ade20k": "ade20k.Ade20k",
    "cityscapes": "cityscapes.Cityscapes",
    "coco_stuff10k": "coco_stuff.CocoStuff10k",
    "coco_stuff164k": "coco_stuff.CocoStuff164k",
    "lip": "lip.Lip",
    "folder": "folder.Folder",
    "camvid": "camvid.Camvid",
    "scenes": "scenes.Scenes",
}


def load(
    name: str,
    data_dir: str | os.PathLike | None = None,
    source: str | os.PathLike | None = None,
    folder: Mapping[str, Any] | None = None,
    needed: Sequence[str] | None = None,
) -> "SegmentationBuilder":
    """The builder of a prepared data set, which is prepared first if needed.

    `name` is one of CLASSES. `data_dir` is the folder of prepared data sets: by default TFDS_DATA_DIR, or else
    ~/tensorflow_datasets. If it is a URL (gs://...), data sets are downloaded from there into that default folder, or
    uploaded once they are prepared. `source` is the folder of the original files, needed only to prepare, and never for
    scenes. `folder` is config.data.folder, for the data set of that name. `needed` are the splits that must be there:
    when the data set is prepared, others are left out if their files are missing; by default, all are needed.

    `builder.as_data_source(split, decoders=common.ENCODED)` gives random access to the records, which
    common.SegmentationBuilder describes, as it does builder.info.metadata.

    Raises UserError if the name is unknown, or if the data cannot be found, read or trusted. Problems with single files
    are then listed on standard error, one a line.
    """
    builder_class, kwargs = _builder_class(name, folder)
    from isnet_jax.datasets import preparation

    request = preparation.Request(needed=tuple(needed) if needed else None)
    return preparation.open_or_prepare(builder_class, data_dir, source, request, **kwargs)[0]


def prepare(
    name: str,
    data_dir: str | os.PathLike | None = None,
    source: str | os.PathLike | None = None,
    folder: Mapping[str, Any] | None = None,
    splits: Sequence[str] | None = None,
    overwrite: bool = False,
) -> "tuple[SegmentationBuilder, Survey | None]":
    """Like `load`, and also returns the survey if the data set had to be prepared, else None.

    `splits` are those to prepare, by default all. `overwrite` replaces a prepared data set. Raises UserError, too, if
    the original files have changed since the data set was prepared.
    """
    builder_class, kwargs = _builder_class(name, folder)
    from isnet_jax.datasets import preparation

    request = preparation.Request(tuple(splits) if splits else None, overwrite=overwrite, refuse_stale=True)
    return preparation.open_or_prepare(builder_class, data_dir, source, request, **kwargs)


def open_prepared(
    name: str, data_dir: str | os.PathLike | None = None, folder: Mapping[str, Any] | None = None
) -> "SegmentationBuilder":
    """Like `load`, but only opens what this machine already has prepared: writes no files, uses no network."""
    builder_class, kwargs = _builder_class(name, folder)
    from isnet_jax.datasets import preparation

    return preparation.open_prepared(builder_class, data_dir, **kwargs)


def check(
    name: str,
    source: str | os.PathLike | None = None,
    folder: Mapping[str, Any] | None = None,
    splits: Sequence[str] | None = None,
) -> "Survey":
    """Checks the original files without writing anything; raises UserError like `load`."""
    builder_class, kwargs = _builder_class(name, folder)
    from isnet_jax.datasets import preparation

    request = preparation.Request(tuple(splits) if splits else None)
    return preparation.check(builder_class, source, request, **kwargs)


def _builder_class(name: str, folder: Mapping[str, Any] | None) -> "tuple[type[SegmentationBuilder], dict[str, Any]]":
    """The builder's class and its additional arguments."""
    if name not in CLASSES:
        raise UserError(
            f"There is no data set {name!r}: config.data.name (isnet_jax.prepare: --dataset) must be one "
            f"of {', '.join(CLASSES)}."
        )
    if name == "folder" and folder is None:
        raise UserError("config.data.folder must describe the data set folder: give a --config=FILE that sets it.")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # or TensorFlow logs its version at import, just below
    module_name, _, class_name = CLASSES[name].partition(".")
    module = importlib.import_module(f"{__name__}.{module_name}")
    return getattr(module, class_name), {"folder": folder} if name == "folder" else {}
