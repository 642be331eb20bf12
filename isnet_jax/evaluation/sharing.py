"""Checkpoints on the Hugging Face Hub: `isnet_jax.push_to_hub` and `isnet_jax.from_hub`."""

import json
import os
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

from isnet_jax import cli
from isnet_jax import config as configs
from isnet_jax.checkpoints import hub, safetensors_file
from isnet_jax.checkpoints.downloads import locate
from isnet_jax.checkpoints.manager import CONFIG_FILE
from isnet_jax.checkpoints.torch_names import to_torch
from isnet_jax.errors import UserError
from isnet_jax.evaluation import card, exported, predictor
from isnet_jax.evaluation.segmenter import Segmenter
from isnet_jax.runtime.console import say


def push_to_hub(
    checkpoint: str | os.PathLike,
    repo_id: str,
    *,
    config: ConfigDict | str | None = None,
    ema: bool = False,
    best: bool = False,
    license: str | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Uploads a checkpoint to OWNER/NAME on the Hugging Face Hub, and returns the address of the commit.

    checkpoint, config, ema and best as in `isnet_jax.load`. license: the Hub's identifier of the weights' licence, such
    as mit. private: whether the repository is; by default a new one is, and one that exists stays as it is. token: of
    an account that may write there, by default the one that is logged in. The repository then holds model.safetensors
    (official names), config.json (without the folders of this machine) and the model card README.md; a card that was
    changed by hand stays. Raises UserError for anything the user can correct.
    """
    card.check_license(license)
    if exported.is_export(checkpoint):
        raise UserError(f"{os.fspath(checkpoint)} is an exported network: push the checkpoint that it was made from.")
    config = cli.load_config(config) if isinstance(config, str) else config
    if config is not None:
        configs.check(config)
    name, path = os.fspath(checkpoint), locate(checkpoint, "checkpoint")
    step = card.recorded_step(path, best)
    config, model, variables = predictor.load(path, config, ema, best, step)
    origin = card.Origin(name, path, step, ema)
    text = card.render(config, variables, origin, f"isnet_jax.from_hub({json.dumps(repo_id)})", license)
    hub.create(repo_id, private, token)
    existing = hub.read_card(repo_id, token)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if existing is None or card.is_untouched(existing):
                Path(folder, hub.CARD_FILE).write_text(text, encoding="utf-8")
            else:
                say(f"{hub.CARD_FILE} of {repo_id} was changed by hand, and is kept; delete it there to get a new one.")
            facts = json.dumps(card.shareable(config), indent=2, sort_keys=True)
            Path(folder, CONFIG_FILE).write_text(facts + "\n")
            safetensors_file.write(Path(folder, hub.WEIGHTS_FILE), to_torch(variables, model))
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error}); set TMPDIR to a directory with room.") from None
        url = hub.upload(folder, repo_id, token)
    say(f"{name} -> {url}")
    return url


def from_hub(repo_id: str, revision: str | None = None, *, token: str | None = None) -> Segmenter:
    """The network of OWNER/NAME on the Hugging Face Hub, which `push_to_hub` wrote, ready to predict.

    revision: a branch, tag or commit, by default main; token: of an account, by default the one that is logged in. The
    files are kept in the Hub's cache. `isnet_jax.load("hf://OWNER/NAME@REVISION")` is the same. Raises UserError if the
    repository cannot be read, or holds something else.
    """
    repo_id, revision = hub.parse(f"{hub.PREFIX}{repo_id}{f'@{revision}' if revision else ''}", "repo_id")
    return Segmenter(*predictor.load(hub.download(repo_id, revision, token)))
