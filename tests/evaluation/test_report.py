"""The report: its content, hostile and missing input. test_report_browser.py looks at it in a real browser."""

import base64
import hashlib
import html.parser
import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import jinja2
import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from report_samples import write_samples

from isnet_jax import report
from isnet_jax.errors import UserError
from isnet_jax.evaluation import protocols, results
from isnet_jax.evaluation.published import official_setting
from isnet_jax.evaluation.report import classes, gallery, images, panels
from isnet_jax.evaluation.report.render import ENVIRONMENT, render, write_report
from isnet_jax.evaluation.report.sections import images_section
from isnet_jax.runtime import files

HOSTILE = "<script>alert('x')</script>&\"quoted\""
VOID = {"meta", "link", "img", "input", "br", "line", "circle", "rect", "path", "image"}
TEMPLATES = ROOT / "isnet_jax/evaluation/report/templates"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("report"), [HOSTILE, "x" * 300])


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and collects attributes and text, without the white space that formats the source."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.text, self.tags = [], [], "", []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        if not (data.isspace() and "\n" in data):
            self.text += re.sub("[ \n]+", " ", data)


def check_page(text):
    """The Page of a text that is well formed, self-contained and runs the viewer's script alone."""
    page = Page(text)
    script = ENVIRONMENT.get_template("viewer.js").render()
    assert text.isascii() and len(text) < 2e6
    assert page.tags.count("script") == 1 and f"<script>{script}</script>" in text
    (policy,) = (value for tag, name, value in page.attributes if name == "content" and value.startswith("default-src"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline';\n  script-src 'sha256-{digest}';" in policy
    for tag, name, value in page.attributes:
        if name in ("href", "src"):
            assert value.startswith(("#", "data:")), (tag, name, value)
        assert not name.startswith("on") and name not in ("srcset", "action")
    rest = text.replace(script, "")
    assert "@import" not in rest and "url(" not in rest
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for tag, name, value in page.attributes if tag == "a"} <= set(ids)
    texts = [value for tag, name, value in page.attributes if tag == "img" and name == "alt"]
    assert len(texts) == page.tags.count("img") and all(texts)
    return page


def edit(directory, target, **changes):
    """A copy of an evaluation with changed fields in results.json; None removes a field."""
    shutil.copytree(directory, target)
    path = target / "results.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))
    return target


def test_report_prints_the_row_of_an_official_test(home, tmp_path, capsys):
    tests = [official_setting("ade20k", "resnet50", name) | {"name": name} for name in ("single", "tta")]
    for name, setting in zip("st", tests):
        edit(home / "a", tmp_path / name, dataset="ade20k", split="val", setting=setting)
    write_report(str(tmp_path / "s"), [str(tmp_path / "t")])
    miou = f"{100 * protocols.scores(results.load(home / 'a').confusion)['miou']:.2f}"
    assert f"| ADE20K val, ResNet-50 | 44.22 / 45.03 | {miou} / {miou} |" in capsys.readouterr().out
    edit(tmp_path / "s", tmp_path / "other", step=1)
    write_report(str(tmp_path / "t"), [str(tmp_path / "other")])
    assert f"| ADE20K val, ResNet-50 | 44.22 / 45.03 | - / {miou} |" in capsys.readouterr().out
    write_report(str(home / "a"), output=str(tmp_path / "a.html"))  # of another data set
    assert "README" not in capsys.readouterr().out


def test_report_shows_scores_charts_and_setting(home):
    a, b = results.load(home / "a"), results.load(home / "b")
    scores, other = protocols.scores(a.confusion), protocols.scores(b.confusion)
    page = check_page(render(a, b))
    for text in (
        f"{100 * scores['miou']:.2f}%",
        f"{100 * scores['mean_accuracy']:.2f}%",
        f"mean Dice{100 * scores['mean_dice']:.2f}%",
        f"mean precision{100 * scores['mean_precision']:.2f}%",
        "Dice is also called F1",
        "from the published 44.22",
        f"from {100 * other['miou']:.2f} (B)",
        "official, mmseg, cityscapes",
        "Losses",
        "stage 2",
        "mIoU, ema",
        "32.53",
        "7.2 % more pixels",
        "8 NVIDIA H100",
        "0:07:11",
        'config.model.backbone = "resnet50"',
        "scales 0.75, 1, 1.25 and horizontal flip, windows of 64 \N{MULTIPLICATION SIGN} 96",
        "https://example.org/zoo.md",
    ):
        assert text in page.text, text
    for k, name in enumerate(a.names):
        cells = [f"{100 * scores[key][k]:.2f}" for key in ("iou", "dice", "precision", "recall")]
        difference = f"{100 * abs(scores['iou'][k] - other['iou'][k]):.2f}"
        assert re.search(rf"{name}{cells[0]}.{difference}{''.join(cells[1:])}", page.text)
    t, p = np.unravel_index(np.argmax(a.confusion * (1 - np.eye(8))), (8, 8))
    assert f"The most frequent confusion is {a.names[t]} predicted as {a.names[p]}" in page.text
    assert page.tags.count("img") == 5 * page.tags.count("article") and page.tags.count("article") > 12
    image_scores = gallery.image_scores(a.counts)
    worst = a.images[image_scores.argmin()]
    assert f"{worst} mIoU {100 * image_scores.min():.2f} %" in page.text
    assert page.text.index("Worst") < page.text.index(f"{worst} mIoU") < page.text.index("Best")


def test_report_compares_more_than_two_evaluations(home, tmp_path):
    loaded = [results.load(home / name) for name in "abb"]
    shutil.copytree(home / "b", tmp_path / "without", ignore=lambda *_: ["predictions"])
    page = check_page(render(*loaded, results.load(tmp_path / "without")))
    miou = [f"{100 * protocols.scores(x.confusion)['miou']:.2f}" for x in loaded]
    assert f"from {miou[1]} (B)" in page.text and f"from {miou[1]} (D)" in page.text
    assert "A \N{MINUS SIGN} BA \N{MINUS SIGN} CA \N{MINUS SIGN} D" in page.text
    assert "D has no predictions/ to show." in page.text
    assert page.tags.count("img") == 6 * page.tags.count("article")  # input, ground truth, A, B, C, errors
    worst = gallery.image_scores(loaded[0].counts).argmin()
    scores = [f"{100 * gallery.image_scores(x.counts)[worst]:.2f} %" for x in loaded[:2]]
    assert f"mIoU {scores[0]}, B {scores[1]}, C {scores[1]}, D {scores[1]}" in page.text


def test_sheet_of_a_class_counts_its_confusions_and_worst_images(home):
    a = results.load(home / "a")
    predictions = [a.prediction(i) for i in range(len(a.images))]
    source = gallery._open_split(a.record)
    truths = [gallery._example(source, i, str(name), 8)[1] for i, name in enumerate(a.images)]
    sheets = classes.classes_section(a, {}, set()).sheets
    assert len(sheets) == 8
    for sheet in sheets:
        k = sheet.row.label.number
        wrong = np.array([((x == k) != (y == k)).sum() for x, y in zip(truths, predictions)])
        assert [image.number for image in sheet.worst] == np.argsort(-wrong, kind="stable")[:3].tolist()
        assert [image.share for image in sheet.worst] == [wrong[image.number] / wrong.sum() for image in sheet.worst]
        of_class = np.concatenate([y[x == k] for x, y in zip(truths, predictions)])
        predicted = np.concatenate([x[y == k] for x, y in zip(truths, predictions)])
        for partners, found in (sheet.predicted_as, of_class), (sheet.predicted_for, predicted):
            assert partners and [p.share for p in partners] == sorted([p.share for p in partners], reverse=True)
            assert all(p.label.number != k and p.share == (found == p.label.number).mean() for p in partners)
    assert set(classes.worst_of_classes(a)) == {image.number for sheet in sheets for image in sheet.worst}


def pixels(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_large_pictures_are_whole_in_the_page(home, monkeypatch):
    monkeypatch.setattr(images, "THUMBNAIL", 40)
    a = results.load(home / "a")
    scores = gallery.image_scores(a.counts)
    shown = gallery.gallery(a, {}, {"": scores}, []).images
    for image in shown:
        photo, ground_truth, prediction, errors = image.panels
        assert all(max(pixels(panel.thumbnail).size) == 40 for panel in image.panels)
        assert all(pixels(panel.whole).size == (panel.width, panel.height) for panel in image.panels)
        np.testing.assert_array_equal(np.asarray(pixels(prediction.whole)), a.prediction(image.number))
        is_wrong = np.asarray(pixels(errors.whole)) == images.WRONG
        np.testing.assert_array_equal(
            is_wrong, np.asarray(pixels(ground_truth.whole)) != np.asarray(pixels(prediction.whole))
        )


def test_budget_limits_whole_pictures_and_images_of_classes(home, monkeypatch):
    """Thumbnails of the extremes are always there; the page says what is missing."""
    monkeypatch.setattr(images, "THUMBNAIL", 40)
    a = results.load(home / "a")
    free = check_page(render(a))
    monkeypatch.setattr(gallery, "BUDGET", 60_000)
    section = images_section(a, {})
    shown = section.gallery.images
    whole = [image for image in shown if not image.is_reduced]
    assert 0 < len(whole) < 12 == len(shown) and shown[0] in whole and sum(image.size for image in whole) <= 60_000
    assert section.gallery.num_missing == free.tags.count("article") - 12 > 0
    page = check_page(render(a))
    assert "take up to 0.06 MB" in page.text
    assert f"{len(whole)} of 12 images open at full size" in page.text
    assert f"have no pictures: {section.gallery.num_missing}." in page.text and "take up to" not in free.text


def test_huge_pictures_are_thumbnails(home, monkeypatch):
    monkeypatch.setattr(images, "THUMBNAIL", 40)
    monkeypatch.setattr(panels, "MAX_WHOLE", 1000)
    text = render(results.load(home / "a"))
    assert "data-whole=" not in text and re.search(r"\b0 of \d+ images open at full size", check_page(text).text)


def test_too_many_evaluations_are_refused(home):
    with pytest.raises(UserError, match="--other is given 8 times"):
        write_report(str(home / "a"), [str(home / "b")] * 8)


def test_image_scores_are_means_and_extremes_do_not_overlap():
    counts = np.array([[[3, 0, 0], [4, 2, 0], [4, 2, 0]], [[5, 0, 0], [5, 0, 0], [5, 0, 0]], np.zeros((3, 3))])
    np.testing.assert_allclose(gallery.image_scores(counts), [(3 / 5 + 0) / 2, 1, np.nan])
    assert gallery.extremes(np.array([0.5, np.nan, 0.1, 0.9]), 6) == ([2, 0], [3])
    assert gallery.extremes(np.array([0.5, 0.2, 0.1, 0.9, 0.3]), 2) == ([2, 1], [3, 0])


def test_report_on_many_classes_escapes_hostile_names(home):
    text = render(results.load(home / "large"))
    page = check_page(text)
    assert "<script>alert" not in text and HOSTILE in page.text
    assert "most confused classes" in page.text
    assert "image" in page.tags  # the whole matrix


def test_report_explains_missing_data_and_predictions(home, tmp_path):
    changes = {
        "run": None,
        "published": None,
        "checkpoint": str(tmp_path / "isnet.pth"),
        "step": None,
        "config": {"data": {"name": "camvid", "data_dir": str(tmp_path / "nowhere")}},
    }
    bare = edit(home / "a", tmp_path / "bare", **changes)
    page = check_page(render(results.load(bare)))
    assert "Inputs and ground truth cannot be shown. The data set camvid is not prepared" in page.text
    assert (
        page.tags.count("img") == page.tags.count("article")
        and "Losses" not in page.text
        and "published" not in page.text
    )
    shutil.rmtree(bare / "predictions")
    page = check_page(render(results.load(bare)))
    assert page.tags.count("img") == 0 and "cannot be read" in page.text
    foreign = edit(home / "a", tmp_path / "foreign", split="train")  # its examples have other names
    page = check_page(render(results.load(foreign)))
    assert "example 12 there is 'train_012', so the data differ from those evaluated" in page.text


def test_report_accepts_nulls_in_optional_fields(home, tmp_path):
    fields = {"config": {"model": None}, "run": {"versions": None}, "published": {"miou": None}}
    bare = edit(home / "a", tmp_path / "bare", **fields, checkpoint="no\0path")
    page = check_page(render(results.load(bare)))
    assert "published" not in page.text and "resnet50" not in page.text


def test_report_without_labelled_pixels(home, tmp_path):
    """Scores are "n/a", and sections without data say so."""
    empty = edit(home / "a", tmp_path / "empty", confusion=np.zeros((8, 8), int).tolist())
    with np.load(empty / "images.npz") as archive:
        arrays = dict(archive)
    zeros = {name: np.zeros_like(arrays[name]) for name in ("counts", "boundary")}
    files.write_arrays(empty / "images.npz", **arrays | zeros)
    page = check_page(render(results.load(empty)))
    assert "mIoUn/a" in page.text and "8 of 8 classes occur in neither ground truth nor prediction" in page.text
    assert not re.search(r"\bnan\b", page.text) and "n/a%" not in page.text
    assert "The evaluation has no labelled pixel." in page.text and "No image has a labelled pixel." in page.text


def test_templates_escape_all_text():
    """No template turns autoescaping off, or marks anything as safe."""
    assert ENVIRONMENT.autoescape is True and ENVIRONMENT.undefined is jinja2.StrictUndefined
    for path in TEMPLATES.iterdir():
        assert not re.search(r"\|\s*safe\b|autoescape|Markup", path.read_text()), path


@pytest.mark.parametrize("name", ["style.css", "viewer.js"])
def test_style_sheet_and_script_are_included_unchanged(name):
    """They pass through Jinja2, so they must hold none of its syntax, and no character that would be replaced."""
    text = (TEMPLATES / name).read_text()
    assert text.isascii() and ENVIRONMENT.get_template(name).render() == text.rstrip("\n")


def test_wheel_contains_the_templates():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    (pattern,) = settings["package-data"]["isnet_jax.evaluation.report"]
    assert set(TEMPLATES.parent.glob(pattern)) == set(TEMPLATES.iterdir()) and (TEMPLATES / "report.html").is_file()


def test_comparison_with_other_classes_is_refused(home):
    with pytest.raises(UserError, match="have different classes"):
        render(results.load(home / "a"), results.load(home / "large"))


def test_command_writes_one_file(home):
    done = subprocess.run(
        [sys.executable, "-m", "isnet_jax.report", home / "a", f"--other={home / 'b'}"], capture_output=True, text=True
    )
    assert not done.returncode and not done.stderr and str(home / "a/report.html") in done.stdout
    assert "pixel accuracy" in check_page((home / "a/report.html").read_text()).text
    assert sorted(path.name for path in (home / "a").iterdir()) == [
        "images.npz",
        "predictions",
        "report.html",
        "results.json",
    ]


def test_command_reports_an_output_that_cannot_be_written(home, tmp_path):
    values = SimpleNamespace(other=[], output=str(tmp_path / "nowhere/a.html"))
    with pytest.raises(UserError, match="nowhere/a.html cannot be written .No such file or directory"):
        report._main(None, values, str(home / "a"))
