"""The data sets, as TensorFlow Datasets builders over folders (or, for scenes, over nothing at all)."""

import importlib
import os

from isnet_jax.errors import UserError

CLASSES = {  # a module here, and the builder's class in it
    "ade20k": "ade20k.Ade20k",
    "cityscapes": "cityscapes.Cityscapes",
    "coco_stuff10k": "coco_stuff.CocoStuff10k",
    "coco_stuff164k": "coco_stuff.CocoStuff164k",
    "lip": "lip.Lip",
    "folder": "folder.Folder",
    "camvid": "camvid.Camvid",
    "scenes": "scenes.Scenes",
}


def load(name, data_dir=None, source=None, folder=None):
    """Opens a data set, preparing it first where that has not been done yet.

    Args:
      name: one of CLASSES.
      data_dir: folder of prepared data sets; None means TFDS_DATA_DIR, or else ~/tensorflow_datasets. Of a URL
        (gs://...) data sets are copied to that folder first, and to it once they are prepared.
      source: the folder of the original files; needed only to prepare, and never by scenes.
      folder: config.data.folder, for the data set of that name.

    Returns:
      A prepared tfds builder. `builder.as_data_source(split, decoders=common.ENCODED)` gives random access
      to records as they are stored; common.SegmentationBuilder describes them, and builder.info.metadata.

    Raises:
      UserError: the name is unknown, or the data cannot be found, read or trusted. What is wrong with single files
        has then been told on standard error, a line each.
    """
    return prepare(name, data_dir, source, folder)[0]


def prepare(name, data_dir=None, source=None, folder=None):
    """As `load`; returns the builder, and the survey.Survey of a data set that had to be prepared, else None."""
    builder_class, kwargs = _builder_class(name, folder)
    from isnet_jax.datasets import preparation

    return preparation.open_or_prepare(builder_class, data_dir, source, **kwargs)


def open_prepared(name, data_dir=None, folder=None):
    """As `load`, but only of what is prepared on this machine: writes nothing, and asks no network."""
    builder_class, kwargs = _builder_class(name, folder)
    from isnet_jax.datasets import preparation

    return preparation.open_prepared(builder_class, data_dir, **kwargs)


def check(name, source=None, folder=None):
    """Checks original files and writes nothing.

    Returns:
      A survey.Survey.

    Raises:
      UserError: as of `load`.
    """
    builder_class, kwargs = _builder_class(name, folder)
    from isnet_jax.datasets import preparation

    return preparation.check(builder_class, source, **kwargs)


def _builder_class(name, folder):
    """Returns a subclass of SegmentationBuilder, and arguments for it."""
    if name not in CLASSES:
        raise UserError(
            f"There is no data set {name!r}: config.data.name (isnet_jax.prepare: --dataset) must be one "
            f"of {', '.join(CLASSES)}."
        )
    if name == "folder" and folder is None:
        raise UserError("The data set folder is described by config.data.folder: give a --config=FILE that sets it.")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow greets at import, which happens only here
    module, _, builder_class = CLASSES[name].partition(".")
    module = importlib.import_module(f"{__name__}.{module}")
    return getattr(module, builder_class), {"folder": folder} if name == "folder" else {}
