"""What all commands share: flags, quiet libraries, errors as one paragraph."""

import difflib
import os
import re
import runpy
import sys
import textwrap
import traceback
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from isnet_jax import config as configs
from isnet_jax import console, interrupts
from isnet_jax.errors import UserError, printable


def run(body, usage, define_flags=lambda: None, needs_config=True, goes_on="from the last checkpoint", most_words=0):
    """Runs `body(config, flags, *words)` on what the command line says, and exits.

    `--config=FILE[:BACKBONE]` and `--config.FIELD=VALUE` give the config, None without them where `needs_config` is
    false; `define_flags()` adds other flags; at most `most_words` words may come without a flag; `goes_on` says where
    the command begins again after Ctrl-C, which raises KeyboardInterrupt in `body` alone. Exit codes: 0, 1 after a
    UserError, 2 for a wrong command line, 75 if the same command goes on (after SIGTERM, or when another process died),
    130 after Ctrl-C, 141 if nobody reads the output any more.
    """
    interrupts.install(goes_on)
    console.quiet()
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # names of files may be no text
    try:
        if {"--help", "-h", "--helpfull"} & set(sys.argv[1:]):
            print(usage.strip())
            sys.exit(0)
        config_flag = config_flags.DEFINE_config_file("config")
        define_flags()
        if needs_config or any(re.match(r"--?(no)?config\b", word) for word in sys.argv[1:]):
            _check_config(sys.argv)
        words = _parse(sys.argv, most_words)
        config = config_flag.value
        if config is not None:
            configs.check(config)
        with interrupts.raising():
            body(config, flags.FLAGS, *words)
    except UserError as error:
        print(_paragraph(error), file=sys.stderr)
        distributed = sys.modules.get("isnet_jax.distributed")  # which needs JAX: not every command has it
        if distributed:
            distributed.leave(error.code)
        sys.exit(error.code)
    except flags.Error as error:
        print(f"{_paragraph(error)}\n\n{usage.strip()}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        interrupts.leave()
    except BrokenPipeError:  # as in `--help | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        sys.exit(141)  # as a shell has it


def config_name(argv):
    """Name of the config on a command line: `ade20k` or, with a backbone, `ade20k-resnet101`."""
    path, _, backbone = _config_argument(argv).partition(":")
    return Path(path).stem + (f"-{backbone}" if backbone else "")


def _paragraph(error):
    text = printable(f"error: {error}".replace("\n", " "))
    return textwrap.fill(text, 110, break_long_words=False, break_on_hyphens=False)


def _config_argument(argv):
    found = [
        word.partition("=")[2] if "=" in word else "".join(argv[i + 1 : i + 2])
        for i, word in enumerate(argv)
        if re.fullmatch(r"--?config(=.*)?", word)
    ]
    if len(found) != 1:
        raise flags.Error(f"--config=FILE is {'given twice' if found else 'missing'}")
    return found[0]


def _check_config(argv):
    """Raises UserError or flags.Error for every mistake in the config file or in the fields that are set."""
    config = _load(_config_argument(argv))
    for word in argv[1:]:
        if m := re.match(r"--?(?:no)?config\.([^=]*)", word):
            _check_field(config, m[1])


def _parse(argv, most_words):
    """Parses the command line, returns its words without a flag; raises flags.Error for every other mistake in it."""
    flags.FLAGS.set_gnu_getopt(True)  # flags may follow words
    try:
        words = flags.FLAGS(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        raise flags.Error(f"there is no flag --{error.flagname}") from None
    if len(words) > most_words:
        raise flags.Error(
            f"the command line has a word {'too many' if most_words else 'without a flag'}: {words[most_words]}"
        )
    return words


def _load(argument):
    """The config in FILE[:BACKBONE], loaded apart from the flags to tell its own mistakes from the overrides'."""
    path, colon, backbone = argument.partition(":")
    if not Path(path).is_file():
        raise UserError(
            f"The config file {path!r} does not exist in {Path.cwd()}; give one as in --config=configs/ade20k.py."
        )
    try:
        config = runpy.run_path(path)["get_config"](*([backbone] if colon else []))
        if not isinstance(config, ConfigDict) or set(configs.default()) - set(config):
            raise TypeError("get_config() must return what isnet_jax.config.default() returned")
        return config
    except UserError:
        raise
    except Exception as error:  # a config is Python: anything may happen in it
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        raise UserError(
            f"The config file {path} cannot be used{f' (line {line})' if line else ''}: "
            f"{type(error).__name__}: {' '.join(str(error).split())}."
        ) from None


def _check_field(config, field):
    """Raises UserError, naming the fields there are, unless `field` (dotted) exists in `config`."""
    here, where = config, "config"
    for name in field.split("."):
        if not isinstance(here, ConfigDict) or name not in here:
            valid = list(here) if isinstance(here, ConfigDict) else []
            near = difflib.get_close_matches(name, valid, 1)
            raise UserError(
                f"{where} has no field {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else ".")
                + (f" Its fields are {', '.join(valid)}." if valid else "")
            )
        here, where = here[name], f"{where}.{name}"
