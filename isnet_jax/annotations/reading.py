"""Reading annotation files, which may be untrusted, and finding the images that they name."""

import json
import os
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import Any

from isnet_jax.errors import UserError
from isnet_jax.runtime import files


def json_files(source: Path) -> list[Path]:
    """All JSON files below a folder, sorted; hidden ones are left out."""
    return files_below(source, ".json")


def files_below(folder: Path, *suffixes: str) -> list[Path]:
    """The files below a folder with one of these suffixes in upper or lower case, sorted; without hidden ones."""
    return sorted(
        Path(parent, name)
        for parent, directories, names in os.walk(folder)
        if not directories.sort() and not any(part.startswith(".") for part in Path(parent).relative_to(folder).parts)
        for name in names
        if name.lower().endswith(suffixes) and not name.startswith(".")
    )


def read_json(path: Path, max_bytes: int) -> Any:
    """The content of a JSON file; raises UserError for one that is too large, damaged or unreadable."""
    try:
        with files.open_file(path) as file:
            check_size(path, file.fileno(), max_bytes)
            return json.loads(file.read())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be an annotation file.") from None
    except ValueError as error:
        raise UserError(f"{path} is not a JSON file ({' '.join(str(error).split())[:200]}).") from None


def check_size(path: Path, descriptor: int, max_bytes: int) -> None:
    """Raises UserError if an open file is larger than the bound."""
    size = os.fstat(descriptor).st_size
    if size > max_bytes:
        raise UserError(
            f"{path} has {size / 1e6:.0f} MB, more than the {max_bytes / 1e6:.0f} MB that an annotation file may "
            "have: split it."
        )


def find_image(name: str, folders: Iterable[Path], source: Path) -> Path | None:
    """The first file `name` in these folders, never outside the source; None if there is none.

    The name may hold folders, with either slash; those of another machine count for nothing.
    """
    windows = PureWindowsPath(name)
    for text in dict.fromkeys((name, windows.as_posix(), windows.name)):
        for folder in folders:
            path = os.path.normpath(os.path.join(folder, text))
            if os.path.isfile(path) and Path(path).is_relative_to(source):
                return Path(path)
    return None
