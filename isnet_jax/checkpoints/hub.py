"""Checkpoints on the Hugging Face Hub: two files to download, and a model card beside them to upload."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from isnet_jax.checkpoints.manager import CONFIG_FILE
from isnet_jax.errors import UserError, first_line
from isnet_jax.runtime import files

PREFIX = "hf://"  # of OWNER/NAME[@REVISION], as the Hub's own tools write it
WEIGHTS_FILE = "model.safetensors"  # of a directory that isnet_jax.push_to_hub made, beside config.json
CARD_FILE = "README.md"
OFFLINE = "ISNET_JAX_OFFLINE"  # the environment variable that forbids downloads; the Hub's is HF_HUB_OFFLINE
MAX_BYTES = {CONFIG_FILE: files.MAX_JSON_BYTES, WEIGHTS_FILE: 2**31}  # the largest network has about 0.4 GB
MAX_CARD_BYTES = 2**20
LOG_IN = "run `hf auth login`, or set HF_TOKEN"


def is_offline() -> bool:
    """Whether the environment variable OFFLINE forbids downloads."""
    return os.environ.get(OFFLINE, "0") not in ("", "0")


def parse(name: str, flag: str) -> tuple[str, str | None]:
    """Repository and revision of hf://OWNER/NAME[@REVISION]; raises UserError, which says that `flag` gives it."""
    repo_id, at, revision = name.removeprefix(PREFIX).partition("@")
    if not _is_repo_id(repo_id) or at and not revision:
        raise UserError(
            f"{flag}={name} is no repository of the Hub; write {PREFIX}OWNER/NAME, or {PREFIX}OWNER/NAME@REVISION."
        )
    return repo_id, revision or None


def download(repo_id: str, revision: str | None = None, token: str | None = None) -> Path:
    """The directory of a repository's config.json and model.safetensors, in the Hub's cache, named by their commit.

    revision: a branch, tag or commit, by default main. token: of an account, by default the one that is logged in.
    Nothing else is downloaded. Offline, the cache alone is used. Raises UserError if one of the files cannot be
    downloaded, or is larger than MAX_BYTES.
    """
    library = _library()
    with _translating_errors(repo_id, revision):
        for name, limit in MAX_BYTES.items():
            size = _fetch(library, repo_id, name, revision, token, dry_run=True).file_size
            if size is None or size > limit:
                raise UserError(
                    f"{name} of {PREFIX}{repo_id} has {size or 'unknown'} bytes, but may have at most {limit}; "
                    "isnet_jax.push_to_hub did not write it."
                )
            path = Path(_fetch(library, repo_id, name, revision, token))
            revision = path.parent.name  # the commit: both files are of the same one
    return path.parent


def read_card(repo_id: str, token: str | None = None) -> str | None:
    """The model card of a repository, None without one; raises UserError if it cannot be read."""
    library = _library()
    with _translating_errors(repo_id, None):
        try:
            size = _fetch(library, repo_id, CARD_FILE, None, token, dry_run=True).file_size
            if size is None or size > MAX_CARD_BYTES:
                return ""  # of others
            return Path(_fetch(library, repo_id, CARD_FILE, None, token)).read_bytes().decode(errors="replace")
        except library.errors.RemoteEntryNotFoundError:
            return None


def create(repo_id: str, private: bool | None = None, token: str | None = None) -> None:
    """Creates a repository unless it exists, by default a private one; raises UserError.

    It is also an error if one exists that is not as `private` says.
    """
    if not _is_repo_id(repo_id):
        raise UserError(f"{repo_id!r:.200} is no repository of the Hub; write OWNER/NAME.")
    library = _library()
    with _translating_errors(repo_id, None):
        api = library.HfApi(token=token, library_name="isnet_jax")
        url = api.create_repo(repo_id, private=private is not False, exist_ok=True)
        if private is not None and bool(api.model_info(repo_id).private) != private:
            raise UserError(
                f"{url} exists, and is {'public' if private else 'private'}: change that in its settings, or leave out "
                "`private`. Nothing was uploaded."
            )


def upload(folder: str | Path, repo_id: str, token: str | None = None) -> str:
    """Uploads the files of a folder to a repository in one commit, whose address it returns; raises UserError."""
    library = _library()
    with _translating_errors(repo_id, None):
        api = library.HfApi(token=token, library_name="isnet_jax")
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload ISNet with isnet_jax")
        return str(commit.commit_url)


def _is_repo_id(text: str) -> bool:
    return isinstance(text, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text, re.ASCII) is not None


def _fetch(
    library: ModuleType, repo_id: str, name: str, revision: str | None, token: str | None, dry_run: bool = False
) -> Any:
    """The path of a file in the cache, downloaded if need be; with `dry_run`, what is known of it."""
    return library.hf_hub_download(
        repo_id,
        name,
        revision=revision,
        token=token,
        dry_run=dry_run,
        local_files_only=is_offline(),
        library_name="isnet_jax",
    )


def _library() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise UserError(
            "The Hugging Face Hub needs huggingface_hub, which is not installed: pip install 'isnet_jax[hub]'."
        ) from None
    return huggingface_hub


@contextlib.contextmanager
def _translating_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Raises UserError in place of any error of the library or of its HTTP client, which raise many kinds."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(_explain(error, repo_id, revision)) from None


def _explain(error: Exception, repo_id: str, revision: str | None) -> str:
    """What an error means for a user, and what to do, in one paragraph."""
    errors, what = _library().errors, f"{PREFIX}{repo_id}{f'@{revision}' if revision else ''}"
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, errors.HfHubHTTPError):
        error = error.__cause__  # the Hub answered, but there is nothing in the cache instead
    reason = first_line(error)[:300]
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return f"{what} is gated: ask for access on its page, then {LOG_IN}."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{what} does not exist, or is private: check its name; for a private one, {LOG_IN}."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{what} does not exist: the repository has no such branch, tag or commit."
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        if is_offline() or _library().constants.HF_HUB_OFFLINE:
            return f"{what} is not in the Hub's cache, and {OFFLINE} or HF_HUB_OFFLINE forbids downloads: unset it."
        return f"{what} is not in the cache, and the Hub cannot be reached: check the connection, and run again."
    if isinstance(error, errors.EntryNotFoundError):
        return (
            f"{what} holds no {' and '.join(MAX_BYTES)}, so isnet_jax.push_to_hub did not write it; a file of another "
            "kind can be downloaded, and given as such."
        )
    if status in (401, 403):
        return f"The Hub refuses access to {what} ({reason}): {LOG_IN}, with a token that may do this."
    return f"The Hub failed at {what} ({type(error).__name__}: {reason}). Check the connection and the disk; run again."
