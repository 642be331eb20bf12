"""What commands read out of a config."""

from typing import Any

from ml_collections import ConfigDict

from isnet_jax.config.fields import default, value_of
from isnet_jax.config.recorded import ADDED


def inference_settings(config: ConfigDict, tta: bool = False, slide: bool = False) -> dict[str, Any]:
    """Keyword arguments of `inference.score_maps`: one scale of the whole image, or with `tta` as config.test.tta says.

    With `slide`, windows of config.test.tta.crop_size, by default that of training, moved by config.test.tta.stride, by
    default two thirds of a window.
    """
    t = config.test.tta
    settings: dict[str, Any] = {"average": "logits"}  # the argmax of a single map needs no softmax
    if tta:
        settings = {
            "mode": t.mode,
            "crop_size": tuple(t.crop_size),
            "stride": tuple(t.stride),
            "scales": tuple(t.scales),
            "flip": True,
            "flip_pairs": tuple(config.augment.flip_pairs),
            "average": t.average,
        }
    if slide:
        crop_size = tuple(t.crop_size or config.augment.crop_size)
        stride = tuple(min(n, c) for n, c in zip(t.stride or [c * 2 // 3 for c in crop_size], crop_size))
        settings |= {"mode": "slide", "crop_size": crop_size, "stride": stride}
    return settings


def unofficial_options(config: ConfigDict) -> list[str]:
    """Lines "FIELD=VALUE" for the options of loss and optimizer that are on; the official recipes leave all off."""
    off = default()
    fields = [f"loss.{name}" for name in off.loss] + [field for field in ADDED if field.startswith("train.")]
    return [f"{field}={value_of(config, field)}" for field in fields if value_of(config, field) != value_of(off, field)]


def lines(config: ConfigDict) -> list[str]:
    """Every field and its value in Python, as in "train.base_lr = 0.01"."""
    return _lines(config, default(), "")


def _lines(config: ConfigDict, like: ConfigDict, prefix: str) -> list[str]:
    result = []
    for name, value in config.items():
        if isinstance(value, ConfigDict) and like.get(name):  # a section; the splits of a folder are a value
            result += _lines(value, like[name], f"{prefix}{name}.")
        else:
            result.append(f"{prefix}{name} = {value.to_dict() if isinstance(value, ConfigDict) else value!r}")
    return result
