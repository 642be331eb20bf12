"""What all commands share: flags, quiet libraries, exit codes, and errors as one paragraph.

Only light modules are imported here: a signal while JAX or TensorFlow is being imported must find its handler
installed.
"""

import contextlib
import difflib
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from absl import flags

from isnet_jax.errors import UserError, paragraph
from isnet_jax.runtime import interrupts

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Where the recipes are: in an installed package, or beside it in a checkout.
RECIPES = Path(__file__).parent / "recipes", Path(__file__).parents[1] / "configs"
# Libraries of the extra `train`: commands that read data sets or train import them, prediction does not.
TRAIN_LIBRARIES = (
    "tensorflow tensorflow_datasets importlib_resources array_record optax pycocotools defusedxml tensorboardX".split()
)
USAGE_EXIT_CODE, BROKEN_PIPE_EXIT_CODE = 2, 141
# What a command line gives for a field of a type.
KINDS = {bool: "True or False", int: "a whole number", float: "a number", tuple: "in parentheses, as in (1, 2)"}


def run(
    main: Callable,
    usage: str | None,
    define_flags: Callable[[], None] = lambda: None,
    *,
    needs_config: bool = True,
    resume_hint: str = "from the last checkpoint",
    max_positional: int = 0,
) -> None:
    """Calls `main(config, flag_values, *args)` with what the command line says, or exits with an error.

    `--config=FILE[:BACKBONE]` and `--config.FIELD=VALUE` give the config; without them it is None, if `needs_config` is
    false. `--print_config` prints it instead of calling `main`. `define_flags()` defines further flags; up to
    `max_positional` arguments may come without a flag; `resume_hint` says where the same command resumes after an
    interrupt, which raises KeyboardInterrupt only inside `main`. Exit codes: 0, 1 after a UserError, 2 for a wrong
    command line, 75 if the same command resumes the work (after SIGTERM, or when another process died), 130 after
    Ctrl-C, 141 if the reader of the output is gone.
    """
    interrupts.install(resume_hint)
    try:
        config, args = _parse_command_line(usage or "", define_flags, needs_config, max_positional)
        with interrupts.interruptible(), _naming_missing_libraries():
            main(config, flags.FLAGS, *args)
    except UserError as error:
        print(paragraph(error), file=sys.stderr)
        distributed = sys.modules.get("isnet_jax.runtime.distributed")  # imports JAX, which not every command does
        if distributed:
            distributed.exit_without_barrier(error.code)
        sys.exit(error.code)
    except flags.Error as error:
        print(f"{paragraph(error)}\n\n{(usage or '').strip()}", file=sys.stderr)
        sys.exit(USAGE_EXIT_CODE)
    except (KeyboardInterrupt, interrupts.StopRequested):
        interrupts.exit_now()
    except BrokenPipeError:  # as in `--help | head -1`
        _exit_on_broken_pipe()


@contextlib.contextmanager
def _naming_missing_libraries() -> Iterator[None]:
    """Raises UserError in place of the error of an import, if the extra `train` installs the library."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in TRAIN_LIBRARIES:
            raise
        raise UserError(
            f"This command needs {error.name}, which is not installed: pip install 'isnet_jax[train]'."
        ) from None


def define_process_flags() -> None:
    """Defines the flags that name the processes of a run, for `distributed.process_group`."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0")
    flags.DEFINE_integer("num_processes", None, "number of processes", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "index of this process", lower_bound=0)


def config_name(argv: Sequence[str]) -> str:
    """Name of the config on a command line: `ade20k` or, with a backbone, `ade20k-resnet101`."""
    path, _, backbone = _config_argument(argv).partition(":")
    return Path(path).stem + (f"-{backbone}" if backbone else "")


def config_file(path: str) -> str:
    """The file of a config: `path` itself if there is one, or that of the recipe of this name, such as ade20k.

    Raises UserError if there is neither.
    """
    if Path(path).is_file():
        return path
    known = recipes()
    if path in known:
        return str(known[path])
    close = difflib.get_close_matches(Path(path).stem, known, 1)
    raise UserError(
        f"The config file {path!r} does not exist in {Path.cwd()}"
        + (f"; did you mean --config={close[0]}?" if close else ".")
        + f" Give a file, or the name of a recipe: {', '.join(known)}."
    )


def recipes() -> dict[str, Path]:
    """The files of the recipes that come with the package, by name."""
    folder = next(folder for folder in RECIPES if folder.is_dir() or folder is RECIPES[-1])
    return {recipe.stem: recipe for recipe in sorted(folder.glob("*.py"))}


def load_config(argument: str) -> "ConfigDict":
    """The config of FILE[:BACKBONE], a Python file with `get_config`, or of RECIPE[:BACKBONE].

    Raises UserError if there is no such file or recipe, or with the line at which it fails.
    """
    from ml_collections import ConfigDict

    from isnet_jax.config import default

    path, colon, backbone = argument.partition(":")
    path = config_file(path)
    try:
        config = runpy.run_path(path)["get_config"](*([backbone] if colon else []))
        if not isinstance(config, ConfigDict) or set(default()) - set(config):
            raise TypeError("get_config() must return what isnet_jax.config.default() returned")
        return config
    except UserError:
        raise
    except Exception as error:  # a config file is Python: anything may happen in it
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        raise UserError(
            f"The config file {path} cannot be used{f' (line {line})' if line else ''}: "
            f"{type(error).__name__}: {' '.join(str(error).split())}."
        ) from None


def _parse_command_line(
    usage: str, define_flags: Callable[[], None], needs_config: bool, max_positional: int
) -> tuple["ConfigDict | None", list[str]]:
    """The checked config and the positional arguments; for --help and --print_config, prints and exits."""
    from ml_collections import config_flags

    from isnet_jax import config as configs
    from isnet_jax.runtime import console

    console.quiet()
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]  # names of files
    if {"--help", "-h", "--helpfull"} & set(sys.argv[1:]):
        print(usage.strip())
        sys.exit(0)
    sys.argv[1:] = map(_with_home, sys.argv[1:])
    config_flag = config_flags.DEFINE_config_file("config")
    only_print = any(re.fullmatch("--?print_config", arg) for arg in sys.argv[1:])
    if needs_config or only_print or any(re.match(r"--?(no)?config\b", arg) for arg in sys.argv[1:]):
        _check_config_arguments(sys.argv)
    if only_print:  # whatever else the command needs
        with _translating_flag_errors(sys.argv):
            flags.FLAGS(_with_config_file(sys.argv), known_only=True)
        configs.check(config_flag.value)
        print("\n".join(configs.lines(config_flag.value)))
        sys.exit(0)
    define_flags()
    args = _parse_flags(_with_config_file(sys.argv), max_positional)
    config = config_flag.value
    if config is not None:
        configs.check(config)
    return config, args


def _with_home(argument: str) -> str:
    """The argument with the home directory in place of a ~ after "=", where many shells leave it."""
    flag, equals, value = argument.partition("=")
    return f"{flag}={os.path.expanduser(value)}" if equals and flag.startswith("-") else argument


def _exit_on_broken_pipe() -> NoReturn:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
    sys.exit(BROKEN_PIPE_EXIT_CODE)


def _config_argument(argv: Sequence[str]) -> str:
    values = _values(argv, "config")
    if len(values) != 1:
        raise flags.Error(f"--config=FILE is {'given twice' if values else 'missing'}")
    return values[0]


def _values(argv: Sequence[str], flag: str) -> list[str]:
    """What a command line gives as --FLAG=VALUE or --FLAG VALUE."""
    return [
        arg.partition("=")[2] if "=" in arg else "".join(argv[i + 1 : i + 2])
        for i, arg in enumerate(argv)
        if re.fullmatch(rf"--?{re.escape(flag)}(=.*)?", arg, re.DOTALL)
    ]


def _with_config_file(argv: Sequence[str]) -> list[str]:
    """The command line as the config flags need it: with the file of a recipe in place of its name."""
    result = list(argv)
    for i, argument in enumerate(argv):
        if match := re.fullmatch("(--?config=)([^:]*)(.*)", argument, re.DOTALL):
            result[i] = f"{match[1]}{config_file(match[2])}{match[3]}"
        elif re.fullmatch("--?config", argument) and argv[i + 1 :]:
            path, colon, backbone = argv[i + 1].partition(":")
            result[i + 1] = f"{config_file(path)}{colon}{backbone}"
    return result


def _check_config_arguments(argv: Sequence[str]) -> None:
    """Raises UserError or flags.Error for a mistake in the config file or in the name of a field that is set.

    The file is loaded apart from the flags, to tell its own mistakes from those of overrides.
    """
    config = load_config(_config_argument(argv))
    for arg in argv[1:]:
        if m := re.match(r"--?(?:no)?config\.([^=]*)", arg):
            _check_field(config, m[1])


def _parse_flags(argv: Sequence[str], max_positional: int) -> list[str]:
    """Parses the command line, returns its positional arguments; raises flags.Error for mistakes in it."""
    flags.FLAGS.set_gnu_getopt(True)  # flags may follow positional arguments
    with _translating_flag_errors(argv):
        args = flags.FLAGS(argv)[1:]
    if len(args) > max_positional:
        kind = "one positional argument too many" if max_positional else "an argument without a flag"
        raise flags.Error(f"the command line has {kind}: {args[max_positional]}")
    return args


@contextlib.contextmanager
def _translating_flag_errors(argv: Sequence[str]) -> Iterator[None]:
    """Raises UserError for a value of another type than its field's, and flags.Error for an unknown or missing flag."""
    try:
        yield
    except flags.UnrecognizedFlagError as error:
        raise flags.Error(f"there is no flag --{error.flagname}") from None
    except flags.IllegalFlagValueError as error:
        from isnet_jax.config import value_of

        if m := re.match(r"flag --(config\.[^=]*)=", str(error)):
            kind = type(value_of(load_config(_config_argument(argv)), m[1].removeprefix("config.")))
            value = next(value for value in _values(argv, m[1]) if f"={value}: " in str(error))
            raise UserError(f"{m[1]} is {value!r:.200}; it must be {KINDS.get(kind, 'of another type')}.") from None
        if m := re.match(r"flag --(\w+)=None: ", str(error)):
            raise flags.Error(f"--{m[1]} is missing") from None
        raise


def _check_field(config: "ConfigDict", field: str) -> None:
    """Raises UserError, naming the valid fields, unless `field` (dotted) exists in `config`."""
    from ml_collections import ConfigDict

    from isnet_jax.config import RENAMED

    section, path = config, "config"
    for name in field.split("."):
        if not isinstance(section, ConfigDict) or name not in section:
            valid = list(section) if isinstance(section, ConfigDict) else []
            close = difflib.get_close_matches(name, valid, 1)
            hint = f"; it is called config.{RENAMED[field]} now." if field in RENAMED else "."
            raise UserError(
                f"{path} has no field {name!r:.200}"
                + (f"; did you mean {close[0]!r}?" if close and field not in RENAMED else hint)
                + (f" Its fields are {', '.join(valid)}." if valid else "")
            )
        section, path = section[name], f"{path}.{name}"
