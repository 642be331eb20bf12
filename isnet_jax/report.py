"""Writes an evaluation as one HTML page that needs nothing else: scores, classes, confusions, images, curves.

usage: python -m isnet_jax.report DIR [--other=DIR2] [--output=FILE.html]

  DIR       what isnet_jax.evaluate wrote
  --other   another evaluation of the same images, to compare with
  --output  the page (default DIR/report.html)
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from isnet_jax import charts, command, gallery, protocols, results
from isnet_jax.checkpoints import write_whole
from isnet_jax.console import duration, say
from isnet_jax.errors import UserError
from isnet_jax.page import delta, document, escape, facts, note, percent, swatch, table

CONFUSIONS = 15  # told in a list
DRAWABLE = 1e30  # larger numbers, and those that are none, are left out of charts
SCORES = {
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "frequency_weighted_iou": "freq.-weighted IoU",
}
LOSSES = {"loss/total": "total", "loss/stage2": "stage 2", "loss/stage1": "stage 1", "loss/auxiliary": "auxiliary"}


def page(evaluation, other=None):
    """The report on a results.Results as the text of an HTML file.

    other: one to compare with; raises UserError unless it is of the same images and classes.
    """
    if other:
        other = results.align(evaluation, other)
    record = evaluation.record
    title = f"{record['dataset']} {record['split']}"
    sections = [
        ("scores", "Scores", _scores(evaluation, other)),
        ("classes", "Classes", _classes(evaluation, other)),
        ("confusions", "Confusions", _confusions(evaluation)),
        ("images", "Images", _images(evaluation)),
        ("training", "Training", _training(record)),
        ("run", "Run", _run(record)),
    ]
    return document(
        f"{title}: {percent(protocols.scores(evaluation.confusion)['miou'])} % mIoU",
        _header(evaluation, title),
        [section for section in sections if section[2]],
        f"Evaluation in {escape(evaluation.directory.resolve())}",
    )


def _count(number):
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _setting(record):
    """How the network was asked, in a few words."""
    setting = record["setting"]
    scales = setting.get("scales") or [1.0]
    text = "single scale" if list(scales) == [1.0] else f"scales {', '.join(f'{scale:g}' for scale in scales)}"
    text += " and mirror" if setting.get("flip") else ""
    if setting.get("mode") == "slide" and setting.get("crop_size"):
        text += ", windows of " + " \N{MULTIPLICATION SIGN} ".join(map(str, setting["crop_size"]))
    return text


def _header(evaluation, title):
    record = evaluation.record
    backbone, step = record["config"].get("model", {}).get("backbone"), record.get("step")
    words = [
        f"ISNet with {backbone}" if backbone else "",
        f"{len(evaluation.names)} classes",
        f"{_count(len(evaluation.images))} images",
        _setting(record),
        f"step {_count(step)}" if step else "",
    ]
    words = " \N{MIDDLE DOT} ".join(filter(None, words))
    return f'<h1>{escape(title)}</h1><p class="soft">{escape(words)}</p>'


def _scores(evaluation, other):
    scores, theirs = (
        protocols.scores(e.confusion) | {"boundary": protocols.boundary_scores(e.boundary.sum(0))["miou"]}
        if e
        else None
        for e in (evaluation, other)
    )
    published = (evaluation.record.get("published") or {}).get("miou")
    entries = []
    for name, term in {**SCORES, "boundary": "boundary IoU"}.items():
        lines = f'<dt>{term}</dt><dd>{percent(scores[name])}<span class="unit">%</span></dd>'
        if other:
            lines += (
                f'<dd class="delta">{delta(scores[name], theirs[name])} <span class="soft">against '
                f"{percent(theirs[name])}</span></dd>"
            )
        if name == "miou" and published:
            lines += (
                f'<dd class="delta">{delta(scores[name], published / 100)} <span class="soft">against the '
                f"published {percent(published / 100)}</span></dd>"
            )
        entries.append(f'<div class="main">{lines}</div>' if name == "miou" else f"<div>{lines}</div>")
    text = f'<dl class="scores">{"".join(entries)}</dl><p class="lead">{_glance(evaluation, scores)}</p>'
    if other:
        there = other.record
        text += note(
            f"Changes are against {other.directory}: {_setting(there)}, {there.get('checkpoint')}, step "
            f"{there.get('step')}."
        )
    return text + _protocols(evaluation, other)


def _glance(evaluation, scores):
    """Best and worst class and the commonest confusion, in two sentences."""
    names, iou, text = [escape(name) for name in evaluation.names], scores["iou"], ""
    if np.isfinite(iou).any():
        best, worst = np.nanargmax(iou), np.nanargmin(iou)
        text = f"{names[best]} is found best ({percent(iou[best])} %), {names[worst]} worst ({percent(iou[worst])} %). "
    for truth, prediction, pixels in charts.confusions(evaluation.confusion, 1):
        text += (
            f"The commonest mistake is {names[truth]} read as {names[prediction]}: "
            f"{percent(pixels / evaluation.confusion.sum())} % of all pixels."
        )
    return text


def _protocols(evaluation, other):
    """mIoU and mean accuracy under every convention, those that agree in one row, and why the others differ."""
    heads, rows, reasons = [("protocol", "")], {}, []
    for name in ("miou", "mean_accuracy"):
        kind = "n wide" if other and heads[1:] else "n"  # a phone has no room for all
        heads += [(SCORES[name], kind)] + ([("change", kind)] if other else [])
    for protocol in protocols.PROTOCOLS:
        cells = []
        for name in ("miou", "mean_accuracy"):
            ours, theirs = (protocols.scores(e.confusion, protocol)[name] if e else None for e in (evaluation, other))
            cells += [percent(ours)] + ([delta(ours, theirs)] if other else [])
        rows.setdefault(tuple(cells), []).append(protocol)
        reasons.append(protocols.difference(evaluation.confusion, "official", protocol))
    rows = [[escape(", ".join(names)), *cells] for cells, names in rows.items()]
    reasons = "".join(f"<li>{escape(reason)}.</li>" for reason in reasons if reason)
    return (
        '<h3>By protocol</h3><p class="soft lead">Conventions differ in what counts for classes without ground '
        f"truth. Everything else on this page follows the official one.</p>{table(heads, rows)}"
        f'<ul class="soft reasons">{reasons or "<li>Every class has ground truth, so all agree.</li>"}</ul>'
    )


def _classes(evaluation, other):
    scores = protocols.scores(evaluation.confusion)
    columns = {
        "IoU": scores["iou"],
        "accuracy": scores["accuracy"],
        "boundary": protocols.boundary_scores(evaluation.boundary.sum(0))["iou"],
    }
    absent = np.isnan(scores["iou"]).sum()
    text = "By IoU, in percent; share is of all labelled pixels."
    text += " The upright mark is the other evaluation." if other else ""
    text += f" {absent} of {len(evaluation.names)} classes do not occur." if absent else ""
    share = evaluation.confusion.sum(1) / max(evaluation.confusion.sum(), 1)
    return f'<p class="soft lead">{text}</p>' + charts.class_bars(
        evaluation.names,
        evaluation.record["palette"],
        columns,
        share,
        protocols.scores(other.confusion)["iou"] if other else None,
    )


def _confusions(evaluation):
    names, confusion = evaluation.names, evaluation.confusion
    if not confusion.sum():
        return note("No pixel was counted.")
    ramps = (
        '<p class="soft">right<span class="ramp" style="--c:var(--hit)"></span> wrong'
        '<span class="ramp" style="--c:var(--miss)"></span></p>'
    )
    scale = f"Shades of what is wrong follow the root of the share, so that small confusions show.</p>{ramps}"
    if len(names) <= charts.WRITTEN_OUT:
        return (
            '<p class="soft lead">A row is a class of the truth; its cells say in percent what its pixels were '
            f'read as. {scale}<div class="beside">{charts.matrix(confusion, names, range(len(names)))}'
            f"{_commonest(evaluation)}</div>"
        )
    picked = charts.most_confused(confusion, charts.MOST_CONFUSED)
    text = (
        f'<p class="soft lead">All {len(names)} classes by their numbers, which the table above has: a row is a '
        f"class of the truth, a column what its pixels were read as. {scale}{charts.matrix_picture(confusion)}"
    )
    if picked:
        text += (
            f'<h3>The {len(picked)} classes confused most</h3><p class="soft lead">In percent of all pixels of '
            "the row's class; what is missing was read as other classes.</p>"
            f"{charts.matrix(confusion, names, picked)}"
        )
    return text + _commonest(evaluation)


def _commonest(evaluation):
    names, palette, truth = evaluation.names, evaluation.record["palette"], evaluation.confusion.sum(1)
    found = charts.confusions(evaluation.confusion, CONFUSIONS)
    if not found:
        return ""
    heads = [("truth", "named"), ("read as", "named"), ("% of truth", "n"), ("% of pixels", "n")]
    rows = [
        [
            swatch(palette[t]) + escape(names[t]),
            swatch(palette[p]) + escape(names[p]),
            percent(pixels / truth[t]),
            percent(pixels / truth.sum()),
        ]
        for t, p, pixels in found
    ]
    return f'<div class="list"><h3>The most frequent confusions</h3>{table(heads, rows)}</div>'


def _images(evaluation):
    scores = gallery.image_scores(evaluation.counts)
    known = scores[np.isfinite(scores)]
    if not known.size:
        return note("No image has a labelled pixel.")
    return (
        '<p class="soft lead">The mIoU of an image is over the classes in its truth or prediction. Half of the '
        f"images are above {percent(np.median(known))} %, a tenth below {percent(np.percentile(known, 10))} %.</p>"
        + charts.histogram("Images by their mIoU", known, "mIoU, %", "images")
        + gallery.gallery(evaluation, scores)
    )


def _training(record):
    """Curves of the run that the checkpoint belongs to; "" if it is no run's."""
    from isnet_jax.log import read_metrics

    try:
        rows = read_metrics(Path(str(record.get("checkpoint"))) / "metrics.jsonl")
    except OSError:  # a .pth file, or a converted one
        return ""

    def series(labels, factor=1):
        found = {
            label: [
                (row["step"], factor * row[key])
                for row in rows
                if isinstance(row.get(key), (int, float)) and abs(row[key]) < DRAWABLE
            ]
            for key, label in labels.items()
        }
        return {label: points for label, points in found.items() if points}

    kinds = list(dict.fromkeys(key.removesuffix("/miou") for row in rows for key in row if key.endswith("/miou")))[:3]
    labels = {
        f"{kind}/{name}": SCORES[name] + (f", {kind}" if len(kinds) > 1 else "")
        for kind in kinds
        for name in ("miou", "pixel_accuracy")
    }
    losses, scores = series(LOSSES), series(labels, 100)
    text = charts.curves("Losses", losses, "step", "loss") if losses else ""
    text += charts.curves("Evaluations", scores, "step", "%") if scores else ""
    return f'<div class="charts">{text}</div>' if text else ""


def _run(record):
    run, published = record.get("run") or {}, record.get("published") or {}
    seconds, rate, padding = (run.get(key) for key in ("seconds", "images_per_second", "padding_overhead"))
    devices = run.get("devices") and f"{run.get('num_devices', '')} {run['devices']}"
    pairs = [
        ("checkpoint", record.get("checkpoint")),
        ("devices", devices),
        ("processes", run.get("processes")),
        ("activations", run.get("dtype")),
        ("programs compiled", run.get("programs")),
        ("time", seconds and duration(seconds)),
        ("images a second", rate and f"{rate:.2f}"),
        ("padding", padding is not None and f"{100 * padding:.1f} % more pixels"),
        ("date", run.get("date")),
        *run.get("versions", {}).items(),
        ("published score", published.get("source")),
    ]
    text = facts([(term, value) for term, value in pairs if value])
    for heading, prefix, tree in (("Test setting", "", record["setting"]), ("Config", "config.", record["config"])):
        lines = escape("\n".join(_lines(tree, prefix)))
        text += f"<details><summary>{heading}</summary><pre>{lines}</pre></details>"
    return text


def _lines(tree, prefix):
    """`field = value` for every leaf of nested dicts."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _lines(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name} = {json.dumps(value, ensure_ascii=False)}"


def _define_flags():
    flags.DEFINE_string("other", None, "DIR2")
    flags.DEFINE_string("output", None, "FILE.html")


def _main(config, values, directory=None):
    if config is not None:
        raise flags.Error("--config does not go with a report: an evaluation knows its own")
    if directory is None:
        raise flags.Error("DIR is missing")
    text = page(results.load(directory), results.load(values.other) if values.other else None)
    path = Path(values.output or Path(directory) / "report.html")
    try:
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another --output.") from None
    say(f"{path}: {len(text) / 1e6:.1f} MB, to be opened in a browser")


if __name__ == "__main__":
    command.run(_main, __doc__, _define_flags, needs_config=False, most_words=1, goes_on="from the start")
