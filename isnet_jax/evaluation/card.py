"""Model cards: Markdown with the Hugging Face Hub's front matter, of what a checkpoint and its evaluations record."""

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from isnet_jax import cli
from isnet_jax import config as configs
from isnet_jax.checkpoints import hub
from isnet_jax.checkpoints.conversion import Converted
from isnet_jax.checkpoints.downloads import WEIGHTS
from isnet_jax.checkpoints.manager import CONVERTED, UNTRAINED, newest_step, read_config, recorded_config
from isnet_jax.errors import UserError, printable
from isnet_jax.evaluation import predictor, protocols, published, results
from isnet_jax.evaluation.metrics import percent
from isnet_jax.input.photometry import MEAN, STD
from isnet_jax.input.resizing import resize_facts
from isnet_jax.models.isnet import count_parameters, describe
from isnet_jax.runtime import files, pages
from isnet_jax.runtime.console import say, warn

SEAL = "\n<!-- Written by isnet_jax, which replaces this file only while its text above has the SHA-256 {}. -->\n"
NOT_RECORDED = "not recorded"
RECIPES = {name: name for name in published.BENCHMARKS} | {"coco_stuff10k": "coco_stuff"}  # of data sets: config files
SUMMARY = (  # fields of a training that a card always states
    *("train.epochs", "train.global_batch_size", "train.optimizer", "train.schedule", "train.base_lr"),
    *("train.weight_decay", "train.ema_decay", "augment.crop_size", "augment.resize", "augment.scale_range", "seed"),
)
LIBRARIES = "isnet_jax", "jax", "flax", "numpy"
MAX_VALUE = 200  # characters of a field's value
TESTS = {"single": "one scale", "tta": "scales and flips"}


class Origin(NamedTuple):
    """Where the weights of a card come from."""

    checkpoint: str  # as the user names it
    path: Path  # where it is
    step: int | None = None  # of the run that saved it, see `recorded_step`
    ema: bool = False  # whether they are its moving averages
    untrained: Sequence[str] = ()  # modules that it does not hold, which got random weights


class Verbatim(str):
    """What is Python or YAML already, and not escaped."""


def check_license(license: str | None) -> None:
    """Raises UserError unless `license` is an identifier as the Hub has them, or None."""
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,63}", license):
        raise UserError(
            f"The license {license!r:.200} is no identifier of the Hugging Face Hub; give one such as mit, apache-2.0, "
            "cc-by-nc-4.0 or other."
        )


def recorded_step(path: Path, best: bool = False) -> int | None:
    """The step of the newest or best checkpoint of a run; None for files and converted directories.

    Raises UserError if the run kept no best checkpoint.
    """
    if not path.is_dir() or CONVERTED in read_config(path):
        return None
    return newest_step(path, best)


def render(
    config: ConfigDict,
    variables: Mapping[str, Any],
    origin: Origin,
    call: str,
    license: str | None = None,
    export: Mapping[str, Any] | None = None,
) -> str:
    """The card of weights {"params", "batch_stats"} that are loaded by the Python expression `call`.

    config: of the checkpoint, or the one that it was read with; export: what the JSON beside an exported file says.
    """
    recipe, changes = _recipe(config)
    text = ENVIRONMENT.get_template("card.md").render(
        config=config,
        origin=origin,
        untrained=origin.untrained or _listed(config.get(UNTRAINED)),
        source=shown(origin.checkpoint),
        is_run=origin.step is not None,
        network=describe(config.model.to_dict()),
        parameters=count_parameters(variables["params"]),
        dataset=_dataset(config),
        images=_count(config.get("train_examples")),
        classes=predictor.class_table(config).names,
        pretrained=starting_weights(config),
        recipe=recipe,
        changes=changes,
        unofficial=configs.unofficial_options(config),
        summary={field: _value(configs.value_of(config, field)) for field in SUMMARY},
        scores=_scores(origin, config),
        resize=export["resize"] if export else resize_facts(config.test.resize, config.test.keep_ratio),
        mean=MEAN,
        std=STD,
        call=Verbatim(call),
        license=license,
        export=export,
        versions=versions_of(LIBRARIES),
        not_recorded=NOT_RECORDED,
    )
    return text + SEAL.format(hashlib.sha256(text.encode()).hexdigest())


def write_converted(converted: Converted, source: str, target: str, ema: bool, best: bool, license: str | None) -> None:
    """Writes the card of what `convert_checkpoint` made of `source`, see `write`.

    The config that a run recorded goes before that of the command line, unless modules are new, which the run did not
    train.
    """
    step = None if converted.untrained else recorded_step(converted.source, best)
    origin = Origin(source, converted.source, step, ema, converted.untrained)
    config = converted.config if step is None else recorded_config(converted.source)
    name = json.dumps(Path(target).resolve().name)
    if Path(target).is_dir():
        call = f"isnet_jax.load({name})"
    else:
        recipe, changes = _recipe(config)
        call = f"isnet_jax.load({name}, config={json.dumps(recipe if recipe and not changes else 'CONFIG.py')})"
    write(target, render(config, converted.variables, origin, call, license))


def is_untouched(text: str) -> bool:
    """Whether `text` is a card that `render` made, without any change."""
    body = text[: text.rfind("\n", 0, -1)]
    return text == body + SEAL.format(hashlib.sha256(body.encode(errors="replace")).hexdigest())


def write(target: str | Path, text: str) -> None:
    """Writes a card as README.md into the directory `target`, or beside a file as TARGET.md, and says so.

    A file there that `render` did not make, or that was changed since, is kept. Raises UserError if the card cannot be
    written.
    """
    target = Path(target)
    path = target / hub.CARD_FILE if target.is_dir() else target.with_name(f"{target.name}.md")
    if (path.exists() or path.is_symlink()) and not _is_replaceable(path):
        return say(f"{path} is not a card as isnet_jax wrote it, and is kept; delete it to get a new one.")
    try:
        files.atomic_write_text(path, text)
    except OSError as error:
        raise UserError(f"The model card {path} cannot be written ({error.strerror}).") from None
    say(f"model card: {path}" + ("" if "\nlicense: " in text else "; fill in the line of its license"))


def starting_weights(config: ConfigDict) -> str | None:
    """config.train.pretrained without the folders of this machine; None for random weights."""
    return shown(config.train.pretrained) if config.train.pretrained else None


def shareable(config: ConfigDict) -> dict[str, Any]:
    """The config, and what is recorded of the weights, as JSON has it, without this machine's folders and accounts."""
    known = {*configs.default(), "train_examples", UNTRAINED}
    facts = {name: value for name, value in config.to_dict().items() if name in known}
    facts["data"] |= {"source": None, "data_dir": None}
    splits = facts["data"]["folder"]["splits"]
    facts["data"]["folder"]["splits"] = {split: _relative(places) for split, places in splits.items()}
    facts["train"]["pretrained"] = starting_weights(config)
    facts["run"] = configs.default().run.to_dict()
    return facts


def _relative(places: Any) -> Any:
    """The folders or patterns of a split; of an absolute one the last part."""
    if isinstance(places, str):
        return Path(places).name if Path(places).is_absolute() else places
    return [_relative(place) for place in places] if isinstance(places, tuple | list) else places


def versions_of(libraries: Iterable[str]) -> dict[str, str]:
    """The versions of those libraries that are installed, by name."""
    versions = {}
    for name in libraries:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _is_replaceable(path: Path) -> bool:
    with contextlib.suppress(OSError, ValueError), files.open_file(path) as file:
        return is_untouched(file.read(hub.MAX_CARD_BYTES).decode())
    return False


def shown(checkpoint: str) -> str:
    """A name of weights, or the last part of a path."""
    is_name = checkpoint in WEIGHTS or checkpoint.startswith(hub.PREFIX)
    return checkpoint if is_name else os.path.basename(os.path.abspath(checkpoint))


def _dataset(config: ConfigDict) -> str:
    return (
        config.data.folder.name or "images and labels in folders" if config.data.name == "folder" else config.data.name
    )


def _count(value: Any) -> int | None:
    """A recorded number; None for anything else, since the file may say anything."""
    return value if type(value) is int and 0 < value < results.LIMIT else None


def _listed(value: Any) -> tuple[str, ...]:
    """Recorded names; none for anything else."""
    return tuple(map(str, value)) if isinstance(value, tuple) else ()


def _value(value: Any) -> str:
    return str(value if value is not None else "none")[:MAX_VALUE]


def _recipe(config: ConfigDict) -> tuple[str | None, list[tuple[str, str, str]]]:
    """The name of the official recipe of this data set and backbone, and (field, value, official value) that differ."""
    if (config.data.name, config.model.backbone) not in published.RESULTS:
        return None, []
    recipe = RECIPES[config.data.name]
    official = cli.load_config(f"{cli.recipes()[recipe]}:{config.model.backbone}")
    changes = configs.changes(config.to_dict(), official.to_dict())
    known = configs.default()  # files may record more
    return f"{recipe}:{config.model.backbone}", [
        (field, _value(ours), _value(theirs)) for field, theirs, ours in changes if field.split(".")[0] in known
    ]


def _scores(origin: Origin, config: ConfigDict) -> list[dict[str, Any]]:
    """A row for each evaluation of these weights that lies in their directory, or of the run's own at its end."""
    if not origin.path.is_dir() or origin.untrained:
        return []
    rows = []
    for directory in results.below(origin.path):
        try:
            evaluation = results.load(directory)
        except UserError as error:
            warn(f"The model card leaves out an evaluation: {error}")
            continue
        record = evaluation.record
        of = Path(str(record.get("checkpoint"))).name, record.get("step") or 0, record.get("ema", False)
        if of == (origin.path.resolve().name, origin.step or 0, origin.ema):
            rows.append(_row(evaluation))
        else:
            say(f"{directory} is an evaluation of other weights, and is left out of the model card")
    return rows or _rows_of_the_run(origin, config)


def _row(evaluation: results.Results) -> dict[str, Any]:
    record, setting = evaluation.record, evaluation.record["setting"]
    scores = protocols.scores(evaluation.confusion)
    is_current = results.has_current_boundary(record)
    boundary = protocols.boundary_scores(evaluation.boundary.sum(0))["miou"] if is_current else math.nan
    known = published.find(record["dataset"], record["config"].get("model") or {}, record["split"], setting)
    parts = [
        "sliding windows" if setting.get("mode") == "slide" else "whole images",
        f"scales {', '.join(map(str, setting.get('scales') or [NOT_RECORDED]))}",
        "horizontal flips" if setting.get("flip") else "no flips",
    ]
    return {
        "split": record["split"],
        "images": len(evaluation.images),
        "name": TESTS.get(str(setting.get("name")), NOT_RECORDED),
        "test": ", ".join(parts),
        "miou": scores["miou"],
        "mean_accuracy": scores["mean_accuracy"],
        "pixel_accuracy": scores["pixel_accuracy"],
        "boundary": boundary,
        "published": known.miou / 100 if known else math.nan,
    }


def _rows_of_the_run(origin: Origin, config: ConfigDict) -> list[dict[str, Any]]:
    """What the results.json of a run says of its last step, at one scale; nothing if the weights are others."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = files.read_json(origin.path / "results.json")
        scores = record["ema" if origin.ema else "weights"]
        if origin.step is not None and record["step"] == origin.step:
            names = "miou", "mean_accuracy", "pixel_accuracy"
            row = {name: math.nan if scores[name] is None else float(scores[name]) / 100 for name in names}
            test = {"name": TESTS["single"], "test": "at the end of the training, one scale, no flips"}
            where = {"split": config.data.eval_split, "images": None}
            return [where | test | row | {"boundary": math.nan, "published": math.nan}]
    return []


def _markdown(value: Any) -> str:
    """The text of a value, with everything escaped that Markdown or HTML would interpret."""
    text = printable(re.sub(r"\s", " ", str(value)))
    return value if isinstance(value, Verbatim) else re.sub(r"([\\`*\[\]<>|~$])", r"\\\1", text)


def _yaml(value: str) -> Verbatim:
    """A string of YAML."""
    return Verbatim(json.dumps(printable(value), ensure_ascii=False))


ENVIRONMENT = pages.environment("isnet_jax.evaluation", _markdown)
ENVIRONMENT.filters |= {"percent": percent, "yaml": _yaml}
ENVIRONMENT.tests["finite"] = math.isfinite
