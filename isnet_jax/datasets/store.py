"""A remote data_dir (gs://...): a store of prepared data sets, to be copied whole.

array_record opens local files only, so data sets are prepared and read in the local data_dir.
"""

import contextlib
import os
import random
import shutil
import string

import tqdm
from etils import epath

from isnet_jax.errors import UserError
from isnet_jax.runtime.console import no_native_noise
from isnet_jax.runtime.files import is_plain_filename

INFO = "dataset_info.json"  # comes last: where it is, the copy is whole
BLOCK = 2**23


def is_remote(data_dir):
    """Returns whether a data_dir is a URL."""
    return bool(data_dir) and "://" in str(data_dir)


def local_data_dir():
    """Returns the folder of prepared data sets on this machine."""
    return os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets"))


def local_place(data_dir):
    """Returns the folder where the data sets of a data_dir are on this machine."""
    return local_data_dir() if is_remote(data_dir) or not data_dir else os.path.expanduser(data_dir)


def place_of(data_dir, name):
    """Returns the place, epath.Path, of a data set of that name in a remote data_dir; raises UserError."""
    with _reaching(data_dir):
        return epath.Path(data_dir) / name


def holds(place):
    """Returns whether a whole data set is stored at `place`, epath.Path; raises UserError if that cannot be told."""
    with _reaching(place):
        return (place / INFO).exists()


def compare(place, local):
    """Raises UserError unless the data sets at these places, epath.Path, are the same."""
    with _reaching(place):
        same = (place / INFO).read_bytes() == (local / INFO).read_bytes()
    if not same:
        raise UserError(
            f"{local} holds another data set than {place}, whose local copy should be there: delete the "
            "one that is not wanted, or set TFDS_DATA_DIR to another folder."
        )


def fetch(place, local):
    """Copies a data set from the store, under a temporary name until it is whole; raises UserError."""
    noise = "".join(random.choices(string.ascii_uppercase, k=6))
    partial = local.parent / f"incomplete.{noise}_{local.name}"  # as TFDS calls them
    try:
        with _reaching(place):
            _require_room(place, partial)
            _copy(place, partial, f"fetching {place}")
        partial.rename(local)
    finally:
        if partial.exists():
            partial.rmtree()


def send(local, place):
    """Copies a prepared data set to the store; raises UserError."""
    with _reaching(place):
        _copy(local, place, f"sending to {place}")


def _require_room(place, target):
    target.mkdir(parents=True)
    needed, free = sum(path.stat().length for path in place.iterdir()), shutil.disk_usage(target).free
    if needed > free:
        raise UserError(
            f"The data set in {place} takes {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free in "
            f"{target.parent}: make room, or set TFDS_DATA_DIR to another folder."
        )


def _copy(source, target, title):
    paths = sorted(source.iterdir(), key=lambda path: (path.name == INFO, path.name))
    odd = [path.name for path in paths if not is_plain_filename(path.name)]
    if odd:  # they become files here
        raise UserError(f"{source} holds a file {odd[0]!a}, a name that leads out of its folder: nothing is copied.")
    target.mkdir(parents=True, exist_ok=True)
    with tqdm.tqdm(
        total=sum(path.stat().length for path in paths), desc=title, unit="B", unit_scale=True, disable=None
    ) as bar:
        for path in paths:
            with path.open("rb") as original, (target / path.name).open("wb") as copy:
                while block := original.read(BLOCK):
                    copy.write(block)
                    bar.update(len(block))


@contextlib.contextmanager
def _reaching(place):
    """Turns whatever a remote file system raises into a UserError."""
    try:
        with no_native_noise():
            yield
    except UserError:
        raise
    except Exception as error:  # of TensorFlow, fsspec, gcsfs, each with its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{place} cannot be reached ({reason[:300]}): check the address and the network, and that this "
            "machine may use it (gs://: gcloud auth application-default login), or give a local "
            "data_dir."
        ) from None
