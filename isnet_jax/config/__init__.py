"""Configs: fields with their defaults, checks, and what earlier versions recorded."""

from isnet_jax.config.checks import check, split_metric
from isnet_jax.config.fields import default, value_of
from isnet_jax.config.recorded import RENAMED, changes, differences, from_record, upgrade
from isnet_jax.config.settings import inference_settings, lines, unofficial_options

__all__ = [
    "RENAMED",
    "changes",
    "check",
    "default",
    "differences",
    "from_record",
    "inference_settings",
    "lines",
    "split_metric",
    "unofficial_options",
    "upgrade",
    "value_of",
]
