"""The data sets, as TensorFlow Datasets builders over folders (or, for scenes, over nothing at all)."""

import importlib
import os

from isnet_jax.errors import UserError

CLASSES = {'camvid': 'Camvid', 'scenes': 'Scenes'}  # the module here, and the builder's class in it


def load(name, data_dir=None, source=None):
    """Opens a data set, preparing it first where that has not been done yet.

    Args:
      name: one of CLASSES.
      data_dir: folder of prepared data sets; None means TFDS_DATA_DIR, or else ~/tensorflow_datasets.
      source: the folder of the original files; needed only to prepare, and never by scenes.

    Returns:
      A prepared tfds builder. `builder.as_data_source(split, decoders=common.ENCODED)` gives random access
      to records as they are stored; common.SegmentationBuilder describes them, and builder.info.metadata.

    Raises:
      UserError: the name is unknown, or the data cannot be found, read or trusted.
    """
    if name not in CLASSES:
        raise UserError(f'There is no data set {name!r}: set config.data.name to one of {", ".join(CLASSES)}.')
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # TensorFlow greets at import, which happens only here
    module = importlib.import_module(f'{__name__}.{name}')
    from isnet_jax.datasets import common
    return common.open_or_prepare(getattr(module, CLASSES[name]), data_dir, source)
