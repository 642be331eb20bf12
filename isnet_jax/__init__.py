"""ISNet (Jin et al., ICCV 2021) in JAX: `create_model(config.model)`, `convert.from_torch(state_dict, model)`."""

import importlib
import sys

from isnet_jax.errors import UserError

if sys.argv[:1] == ["-m"] and any("isnet_jax." in word for word in sys.orig_argv):
    from isnet_jax import interrupts

    interrupts.install()  # `python -m isnet_jax.COMMAND` begins: the imports take seconds

__all__ = ["UserError", "convert", "create_model"]


def __getattr__(name):  # on first use: importing the package alone stays instant
    if name == "create_model":
        return importlib.import_module("isnet_jax.models").create_model
    if name == "convert":
        return importlib.import_module("isnet_jax.convert")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
