"""The network weights in a .pth or .safetensors file, whatever wraps them."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from isnet_jax.checkpoints import pth, safetensors_file
from isnet_jax.errors import UserError
from isnet_jax.runtime.console import say

# Keys under which training scripts save weights, the preferred first, and those of moving averages.
WRAPPERS = "model", "state_dict", "model_state_dict", "model_state", "network", "net", "module"
AVERAGES = "model_ema", "ema", "state_dict_ema", "ema_state_dict", "ema_model", "model_ema_state_dict"
MAX_DEPTH = 4  # of wrappers and of prefixes


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """{parameter or buffer name: array} of the network in a file, in the order of the file.

    The weights are found inside known wrappers, plain ones before moving averages; where there is a choice, a line says
    which are taken. Prefixes that all names share are removed, and whatever is no tensor is left out. Raises UserError
    if the file cannot be read or holds no weights.
    """
    content = safetensors_file.load(path) if _is_safetensors(path) else pth.load(path)
    found = list(_candidates(content, (), set()))
    if not found:
        raise UserError(
            f"The checkpoint {path} holds no network weights: a dict of names to tensors is needed, "
            f"not {_describe(content)}. Save model.state_dict(), alone or as 'state_dict'."
        )
    place, weights = found[0]
    if len(found) > 1:
        others = ", ".join(".".join(other) or "its top level" for other, _ in found[1:])
        say(f"{path}: the weights at {'.'.join(place)} are taken; there are others at {others}")
    elif set(place) & set(AVERAGES):
        say(f"{path}: the weights are the moving averages at {'.'.join(place)}; there are no others")
    arrays = {
        name: value
        for name, value in weights.items()
        if isinstance(name, str) and isinstance(value, np.ndarray) and name != "n_averaged"  # of torch's AveragedModel
    }
    for _ in range(MAX_DEPTH):
        parts = [name.partition(".") for name in arrays]
        if len({prefix for prefix, _, _ in parts}) == 1 and all(rest for _, _, rest in parts):
            arrays = {rest: array for (_, _, rest), array in zip(parts, arrays.values())}
    return arrays


def _is_safetensors(path: str | os.PathLike) -> bool:
    try:
        return safetensors_file.is_safetensors(path)
    except OSError:
        return False  # the reader of .pth says what is wrong


def _candidates(content: Any, place: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], dict]]:
    """(keys that lead there, dict with arrays), the preferred first, each dict once; `place` leads to `content`."""
    if not isinstance(content, dict) or id(content) in seen or len(place) > MAX_DEPTH:
        return
    seen.add(id(content))
    is_wrapper = False
    for key in (*WRAPPERS, *AVERAGES):
        for candidate in _candidates(content.get(key), (*place, key), seen):
            is_wrapper = True
            yield candidate
    if not is_wrapper and any(isinstance(key, str) and isinstance(x, np.ndarray) for key, x in content.items()):
        yield place, content


def _describe(content: Any) -> str:
    """What a file holds instead of weights, in words; its text is escaped, since it may hold escape sequences."""

    def kind(value):
        return f"a {pth.quote(value.name) if isinstance(value, pth.Skipped) else type(value).__name__}"

    if not isinstance(content, dict):
        return kind(content)
    entries = [f"{kind(value)} at {pth.quote(key)}" for key, value in list(content.items())[:5]]
    for key in WRAPPERS:
        if isinstance(content.get(key), dict):
            return f"{_describe(content[key])} in {key!r}"
    return (", ".join(entries) + ", ..." * (len(content) > 5)) or "an empty one"
