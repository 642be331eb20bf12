"""Checks the files of a data set and prepares it for training.

usage: python -m isnet_jax.prepare --dataset=NAME [--source=DIR] [--data_dir=DIR] [OPTIONS]
       python -m isnet_jax.prepare --config=FILE [--source=DIR] [--data_dir=DIR] [OPTIONS]
       python -m isnet_jax.prepare --from=coco|labelme|cvat --source=DIR --output=DIR

  --dataset   ade20k, cityscapes, coco_stuff10k, coco_stuff164k, lip, camvid or scenes
  --source    the folder of the original files
  --data_dir  where prepared data sets live: a folder, or gs://BUCKET/FOLDER to keep a copy there
              (default TFDS_DATA_DIR, or else ~/tensorflow_datasets)
  --config    takes what is not given of these three, and the classes of the data set `folder`, from config.data
  --splits    only these, such as val (default: all)
  --check     only checks, and writes nothing
  --overwrite prepares again what is prepared
  --from      draws polygons and masks, as COCO, labelme or CVAT store them, into label images. Where objects overlap,
              smaller ones (COCO), later ones (labelme) or higher ones (CVAT's z_order) lie on top
  --output    where these labels, links to the images and a config.py are written; not in the source

All problems are reported before anything is prepared; many of one kind are one line, and a file that lists them. After
an interrupt the same command resumes.
"""

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from isnet_jax import cli
from isnet_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

CONFIGS = {  # arguments of isnet_jax.main, where the config is not named like the data set
    "scenes": ["quickstart.py"],
    "coco_stuff10k": ["coco_stuff.py"],
    "coco_stuff164k": ["coco_stuff.py", "--config.data.name=coco_stuff164k", "--config.data.eval_split=val"],
}


def _define_flags() -> None:
    flags.DEFINE_string("dataset", None, "name of the data set")
    flags.DEFINE_string("source", None, "folder of the original files")
    flags.DEFINE_string("data_dir", None, "where prepared data sets live")
    flags.DEFINE_list("splits", None, "only these splits")
    flags.DEFINE_boolean("check", False, "check only")
    flags.DEFINE_boolean("overwrite", False, "prepare again")
    flags.DEFINE_enum("from", None, ["coco", "labelme", "cvat"], "format of annotations")
    flags.DEFINE_string("output", None, "where labels drawn from annotations are written")


def _main(config: "ConfigDict | None", flag_values: Any) -> None:
    if flag_values["from"].value or flag_values.output:
        _convert(flag_values)
        return
    from isnet_jax import datasets
    from isnet_jax.runtime.console import say

    name, source, data_dir, folder = _data_set(config, flag_values)
    if flag_values.check:
        say(datasets.check(name, source, folder, flag_values.splits).tables())
        say(f"\n{name}: no problems, nothing written")
        return
    builder, survey = datasets.prepare(name, data_dir, source, folder, flag_values.splits, flag_values.overwrite)
    if survey:
        say(survey.tables() + "\n")
    counts = ", ".join(f"{split} {info.num_examples}" for split, info in builder.info.splits.items())
    say(f"{name} {'is prepared' if survey else 'was prepared before'}: {counts} examples in {builder.data_path}")
    say(f"train with: {_training_command(config, name, data_dir)}")


def _convert(flag_values: Any) -> None:
    """Draws annotations into label images."""
    for name in ("from", "source", "output"):
        if not flag_values[name].value:
            raise flags.Error(f"--{name} is missing: annotations take --from, --source and --output")
    for name in ("config", "dataset", "data_dir", "check", "splits", "overwrite"):
        if flag_values[name].value:
            raise flags.Error(f"--{name} cannot be combined with --from: it is for the data that --from writes")
    from isnet_jax.annotations import conversion

    conversion.convert(flag_values["from"].value, flag_values.source, flag_values.output)


def _data_set(config: "ConfigDict | None", flag_values: Any) -> tuple[str, str | None, str | None, Any]:
    """Name, source, data_dir and config.data.folder, from the config or from the flags."""
    if config is not None:
        if flag_values.dataset not in (None, config.data.name):
            raise UserError(f"--dataset is {flag_values.dataset}, but config.data.name {config.data.name}: give one.")
        source = flag_values.source or config.data.source
        return config.data.name, source, flag_values.data_dir or config.data.data_dir, config.data.folder
    if flag_values.dataset is None:
        raise flags.Error("--dataset=NAME or --config=FILE is missing")
    if flag_values.dataset == "folder":
        raise UserError(
            "A config describes your own folder: give --config=FILE, as in configs/own_folder.py, instead of "
            "--dataset=folder."
        )
    return flag_values.dataset, flag_values.source, flag_values.data_dir, None


def _training_command(config: "ConfigDict | None", name: str, data_dir: str | None) -> str:
    """The command of isnet_jax.main that trains on the data set."""
    if config is None:
        file, *arguments = CONFIGS.get(name, [f"{name}.py"])
        arguments = [f"--config=configs/{file}", *arguments]
    else:
        own = r"--?config\.data\.(source|data_dir)="
        arguments = [argument for argument in _config_arguments(sys.argv) if not re.match(own, argument)]
    arguments += [f"--config.data.data_dir={data_dir}"] if data_dir else []
    return shlex.join(["python", "-m", "isnet_jax.main", *arguments])


def _config_arguments(argv: Sequence[str]) -> Iterator[str]:
    """The arguments of --config and --config.FIELD, each with the value that may follow it."""
    for argument, following in zip(argv, [*argv[1:], "-"]):
        if re.match(r"--?(no)?config\b", argument):
            has_value = "=" in argument or following.startswith("-")
            yield argument if has_value else f"{argument}={following}"


if __name__ == "__main__":
    cli.run(_main, __doc__, _define_flags, needs_config=False, resume_hint="where it stopped")
