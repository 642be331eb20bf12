"""Readers of configs: recorded ones, and fields set on the command line."""

import json
import sys
import types
from random import Random
from typing import Any

import mutations

from readers.base import Reader, Refused

CONFIG_FILE = b"""from isnet_jax import config

def get_config(backbone='resnet18'):
    c = config.default(backbone)
    c.model.num_classes = 5
    return c
"""
FIELD_VALUES = [
    "(1, 2)",
    "((1, 2), (3, [4]))",
    "(" * 90,
    "-" * 900 + "1",
    "(1e999, 'a')",
    "(0.5, 2.0",
    "None",
    "9" * 5000,
    "{1: 2}",
    "('a', 'b')",
    "(32, 32.5)",
    "(True, True)",
    "(1,)",
    "(3, 2, 1)",
    "__import__('os').system('ls')",
]


class RecordedConfigs(Reader):
    """config.json of a workdir."""

    mutate = staticmethod(mutations.mutate_json)

    def make_seeds(self) -> list[bytes]:
        from isnet_jax import config

        c = config.default("resnet18")
        c.model.num_classes, c.data.name = 5, "folder"
        c.data.folder = dict(name="own", classes=("a", "b"), palette=((1, 2, 3),) * 2, splits={"val": ("x", "y")})
        c.augment.flip_pairs, c.test.tta.mode = ((1, 2),), "slide"
        c.test.tta.crop_size = c.test.tta.stride = (32, 32)
        return [json.dumps(c.to_dict()).encode()]

    def read(self, content: bytes) -> None:
        from isnet_jax.checkpoints import manager
        from isnet_jax.evaluation import predictor
        from isnet_jax.models.isnet import create_model

        self.write("config.json", content)
        recorded = manager.recorded_config(self.folder)
        assert create_model(recorded.model).num_classes == recorded.model.num_classes
        assert len(predictor.class_table(recorded)[0]) == recorded.model.num_classes


class CommandLines(Reader):
    """Fields set on the command line, a list of --config.FIELD=VALUE."""

    trusted_scripts = ("config.py",)

    def make_seeds(self) -> list[tuple[str, Any]]:
        """(FIELD, value) of every field."""
        from isnet_jax import config

        self.write("config.py", CONFIG_FILE)
        fields, sections = {}, [("config", config.default().to_dict())]
        while sections:
            prefix, section = sections.pop()
            for name, value in section.items():
                if isinstance(value, dict) and value:
                    sections.append((f"{prefix}.{name}", value))
                else:
                    fields[f"{prefix}.{name}"] = value
        return sorted(fields.items(), key=str)

    def valid_inputs(self) -> list[list[str]]:
        return [["--config.seed=3"]]

    def mutant(self, rng: Random) -> list[str]:
        args = []
        for _ in range(rng.choice([1, 1, 2, 3])):
            name, value = rng.choice(self.seeds)
            value = rng.choice([str(value), *map(str, mutations.VALUES), *FIELD_VALUES])
            arg = f"--{name}={value}".replace("\ud800", "\udc80")  # a surrogate that a command line can hold
            if rng.random() < 0.3:
                arg = mutations.mutate_bytes(
                    arg.encode(errors="surrogateescape"),
                    rng,
                    [b"config.", b"..", b"=", b"--no"],
                    [*b"().,='-\0\n[]{}0"],
                ).decode(errors="surrogateescape")
            args.append(arg)
        return args

    def read(self, args: list[str]) -> None:
        from absl import flags
        from ml_collections import config_flags

        from isnet_jax import cli, config, errors

        flag_values, cli_flags, sys_argv = flags.FlagValues(), cli.flags, sys.argv
        argv = sys.argv = ["main", f"--config={self.folder / 'config.py'}", *args]
        try:
            cli.flags = types.SimpleNamespace(**{**vars(flags), "FLAGS": flag_values})
            config_flag = config_flags.DEFINE_config_file("config", flag_values=flag_values)
            cli._check_config_arguments(argv)
            cli._parse_flags(argv, 0)
            config.check(config_flag.value)
        except flags.Error as error:
            raise Refused(" ".join(errors.paragraph(error).split())[:1000]) from None
        finally:
            cli.flags, sys.argv = cli_flags, sys_argv
