"""The report on an evaluation as one self-contained HTML page.

Templates escape all text (autoescape) and fail on a name that does not exist (StrictUndefined).
"""

import math
from collections.abc import Sequence
from pathlib import Path

import jinja2

from isnet_jax.errors import UserError
from isnet_jax.evaluation import protocols, published, results
from isnet_jax.evaluation.metrics import percent
from isnet_jax.evaluation.report.formatting import change_from
from isnet_jax.evaluation.report.sections import header, sections
from isnet_jax.evaluation.results import Results
from isnet_jax.runtime.console import say
from isnet_jax.runtime.files import atomic_write_text

ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("isnet_jax.evaluation.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {"percent": percent, "change_from": change_from}


def write_report(directory: str, other: str | None = None, output: str | None = None) -> None:
    """Writes the page on the evaluation in a directory, and prints where, and its row in README's table of recipes.

    directory: one where `results.find` finds an evaluation; other: the same, of an evaluation to compare with; output:
    the file, by default report.html beside the evaluation's results.json. Raises UserError if an evaluation cannot be
    found, read or compared, or the file cannot be written.
    """
    evaluations = [results.load(results.find(path)) for path in (directory, other) if path]
    page = render(*evaluations)
    path = Path(output or evaluations[0].directory / "report.html")
    try:
        atomic_write_text(path, page)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another --output.") from None
    say(f"{path}: {len(page) / 1e6:.1f} MB, open it in a browser")
    row = recipe_row(evaluations)
    if row:
        say(f"for the table of recipes in README.md: {row}")


def recipe_row(evaluations: Sequence[Results]) -> str | None:
    """The row of README's table of recipes, from official tests of the first network that had one; None without."""
    measured: dict[tuple, dict[str, float]] = {}  # of each network
    for evaluation in evaluations:
        facts, model = evaluation.record, evaluation.record["config"].get("model") or {}
        known = published.find(facts["dataset"], model, facts["split"], facts["setting"])
        if known:
            network = facts["dataset"], model["backbone"], *map(facts.get, ("checkpoint", "step", "ema"))
            miou = 100 * protocols.scores(evaluation.confusion)["miou"]
            if math.isfinite(miou):
                measured.setdefault(network, {}).setdefault(known.setting, miou)
    if not measured:
        return None
    (dataset, backbone, *_), scores = next(iter(measured.items()))
    return published.table_row(dataset, backbone, scores)


def render(evaluation: Results, other: Results | None = None) -> str:
    """The page, in ASCII, so that no encoding can garble it.

    other: an evaluation to compare with. Raises UserError unless it is of the same images and classes.
    """
    if other:
        other = results.align(evaluation, other)
    page = ENVIRONMENT.get_template("report.html").render(
        header=header(evaluation),
        sections=sections(evaluation, other),
        directory=evaluation.directory.resolve(),
    )
    return page.encode("ascii", "xmlcharrefreplace").decode()
