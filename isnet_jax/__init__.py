"""ISNet (Jin et al., ICCV 2021) in JAX: `load(checkpoint).predict(image)`; `create_model(config.model)`."""

import importlib
from typing import TYPE_CHECKING, Any

from isnet_jax.errors import UserError

if TYPE_CHECKING:
    from isnet_jax import convert
    from isnet_jax.evaluation.segmenter import load
    from isnet_jax.evaluation.sharing import from_hub, push_to_hub
    from isnet_jax.models.isnet import create_model

__all__ = ["UserError", "convert", "create_model", "from_hub", "load", "push_to_hub"]


def __getattr__(name: str) -> Any:  # on first use: importing the package alone stays instant
    if name == "create_model":
        return importlib.import_module("isnet_jax.models.isnet").create_model
    if name == "load":
        return importlib.import_module("isnet_jax.evaluation.segmenter").load
    if name in ("from_hub", "push_to_hub"):
        return getattr(importlib.import_module("isnet_jax.evaluation.sharing"), name)
    if name == "convert":
        return importlib.import_module("isnet_jax.convert")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
