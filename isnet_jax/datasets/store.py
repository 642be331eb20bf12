"""A remote data_dir (gs://...): a store from which whole prepared data sets are downloaded.

array_record opens local files only, so data sets are prepared and read in a local data_dir.
"""

import contextlib
import os
import random
import shutil
import string
from collections.abc import Iterator

import tqdm
from etils import epath

from isnet_jax.errors import UserError
from isnet_jax.runtime.console import no_native_noise
from isnet_jax.runtime.files import is_plain_filename

INFO = "dataset_info.json"  # copied last: a copy that has it is complete
BLOCK = 2**23  # bytes copied at a time


def is_remote(data_dir: str | os.PathLike | None) -> bool:
    """Whether a data_dir is a URL."""
    return bool(data_dir) and "://" in str(data_dir)


def default_data_dir() -> str:
    """The folder of prepared data sets on this machine, unless a config names another."""
    return os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets"))


def local_data_dir(data_dir: str | os.PathLike | None) -> str:
    """The folder on this machine that holds the data sets of `data_dir`, local or remote."""
    return default_data_dir() if is_remote(data_dir) or not data_dir else os.path.expanduser(data_dir)


def remote_path(data_dir: str | os.PathLike, name: str | os.PathLike) -> epath.Path:
    """The path of a data set in a remote data_dir; raises UserError."""
    with _translating_errors(data_dir):
        return epath.Path(data_dir) / name


def is_complete(remote: epath.Path) -> bool:
    """Whether a complete data set is stored there; raises UserError if the store cannot be reached."""
    with _translating_errors(remote):
        return (remote / INFO).exists()


def compare(remote: epath.Path, local: epath.Path) -> None:
    """Raises UserError unless both paths hold the same data set."""
    with _translating_errors(remote):
        same = (remote / INFO).read_bytes() == (local / INFO).read_bytes()
    if not same:
        raise UserError(
            f"{local}, which should be the local copy of {remote}, holds another data set than that: delete the one "
            "that you do not need, or set TFDS_DATA_DIR to another folder."
        )


def fetch(remote: epath.Path, local: epath.Path) -> None:
    """Downloads a data set, under a temporary name until it is complete; raises UserError."""
    suffix = "".join(random.choices(string.ascii_uppercase, k=6))
    partial = local.parent / f"incomplete.{suffix}_{local.name}"  # named as TFDS names them
    try:
        with _translating_errors(remote):
            _require_space(remote, partial)
            _copy(remote, partial, f"fetching {remote}")
        partial.rename(local)
    finally:
        if partial.exists():
            partial.rmtree()


def send(local: epath.Path, remote: epath.Path) -> None:
    """Uploads a prepared data set; raises UserError."""
    with _translating_errors(remote):
        _copy(local, remote, f"sending to {remote}")


def _require_space(remote: epath.Path, target: epath.Path) -> None:
    target.mkdir(parents=True)
    required, free = sum(path.stat().length for path in remote.iterdir()), shutil.disk_usage(target).free
    if required > free:
        raise UserError(
            f"The data set in {remote} takes {required / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free in "
            f"{target.parent}: make room, or set TFDS_DATA_DIR to another folder."
        )


def _copy(source: epath.Path, target: epath.Path, title: str) -> None:
    paths = sorted(source.iterdir(), key=lambda path: (path.name == INFO, path.name))
    unsafe = [path.name for path in paths if not is_plain_filename(path.name)]
    if unsafe:  # these names would become local paths
        raise UserError(f"{source} holds a file {unsafe[0]!a}, a name that leads out of its folder: nothing is copied.")
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
def _translating_errors(address: str | os.PathLike) -> Iterator[None]:
    """Raises UserError in place of any error of a remote file system."""
    try:
        with no_native_noise():
            yield
    except UserError:
        raise
    except Exception as error:  # TensorFlow, fsspec and gcsfs each raise their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{address} cannot be reached ({reason[:300]}): check the address, the network, and the permissions of "
            "this machine (gs://: gcloud auth application-default login), or give a local data_dir."
        ) from None
