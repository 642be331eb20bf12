"""ISNet (Jin et al., ICCV 2021) in JAX: `create_model(config.model)` and `convert.from_torch(state_dict, model)`."""
from isnet_jax import convert
from isnet_jax.errors import UserError
from isnet_jax.models import create_model

__all__ = ["UserError", "convert", "create_model"]
