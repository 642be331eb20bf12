"""The report on an evaluation as one self-contained HTML page.

Templates escape all text (autoescape) and fail on a name that does not exist (StrictUndefined).
"""

import base64
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

from isnet_jax.errors import UserError
from isnet_jax.evaluation import protocols, published, results
from isnet_jax.evaluation.metrics import percent
from isnet_jax.evaluation.report.formatting import change_from, labelled
from isnet_jax.evaluation.report.sections import header, sections
from isnet_jax.evaluation.results import Results
from isnet_jax.runtime import pages
from isnet_jax.runtime.console import say
from isnet_jax.runtime.files import atomic_write_text

MAX_OTHERS = 7  # evaluations to compare with; more columns fit no page
ENVIRONMENT = pages.environment("isnet_jax.evaluation.report")
ENVIRONMENT.filters |= {"percent": percent, "change_from": change_from, "zip": zip}


def write_report(directory: str, others: Sequence[str] = (), output: str | None = None) -> None:
    """Writes the page on the evaluation in a directory, and prints where, and its row in README's table of recipes.

    directory: one where `results.find` finds an evaluation; others: the same, of evaluations to compare with; output:
    the file, by default report.html beside the evaluation's results.json. Raises UserError if an evaluation cannot be
    found, read or compared, there are more than MAX_OTHERS, or the file cannot be written.
    """
    if len(others) > MAX_OTHERS:
        raise UserError(
            f"--other is given {len(others)} times, but a page compares with {MAX_OTHERS} evaluations or fewer; leave "
            "some out."
        )
    evaluations = [results.load(results.find(path)) for path in (directory, *others)]
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


def render(evaluation: Results, *others: Results) -> str:
    """The page, in ASCII.

    others: evaluations to compare with. Raises UserError unless they are of the same images and classes. The page's
    content security policy allows the text of viewer.js alone to run, and no address to be loaded.
    """
    labels = labelled([results.align(evaluation, other) for other in others])
    script = ENVIRONMENT.get_template("viewer.js").render()
    page = ENVIRONMENT.get_template("report.html").render(
        header=header(evaluation),
        sections=sections(evaluation, labels),
        directory=evaluation.directory.resolve(),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return pages.as_ascii(page)
