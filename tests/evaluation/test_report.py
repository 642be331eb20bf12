"""The report: its content, hostile and missing input, and how a real browser shows it at every width."""

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
from report_samples import write_evaluation, write_metrics

from isnet_jax import report
from isnet_jax.errors import UserError
from isnet_jax.evaluation import protocols, results
from isnet_jax.evaluation.published import official_setting
from isnet_jax.evaluation.report import gallery
from isnet_jax.evaluation.report.render import ENVIRONMENT, render, write_report
from isnet_jax.runtime import files

HOSTILE = "<script>alert('x')</script>&\"quoted\""
VOID = {"meta", "link", "img", "br", "line", "circle", "rect", "path", "image"}
TEMPLATES = ROOT / "isnet_jax/evaluation/report/templates"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Evaluations `a` and `b` of 8 classes, `large` of 150, their training run `w`, and their data in `data`."""
    home = tmp_path_factory.mktemp("report")
    write_metrics(home / "w")
    write_evaluation(home / "a", home / "data", home / "w")
    write_evaluation(home / "b", home / "data", home / "w", seed=1)
    names = [HOSTILE, "x" * 300, *(f"class number {i}" for i in range(148))]
    write_evaluation(home / "large", home / "data", home / "w", names)
    return home


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
    """The Page of a text that is well formed, self-contained and free of scripts."""
    page = Page(text)
    assert text.isascii() and "script" not in page.tags and len(text) < 2e6
    for tag, name, value in page.attributes:
        if name in ("href", "src"):
            assert value.startswith(("#", "data:")), (tag, name, value)
        assert not name.startswith("on") and name not in ("srcset", "action")
    assert "@import" not in text and "url(" not in text
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for tag, name, value in page.attributes if tag == "a"} <= set(ids)
    images = [value for tag, name, value in page.attributes if tag == "img" and name == "alt"]
    assert len(images) == page.tags.count("img") and all(images)
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
    write_report(str(tmp_path / "s"), str(tmp_path / "t"))
    miou = f"{100 * protocols.scores(results.load(home / 'a').confusion)['miou']:.2f}"
    assert f"| ADE20K val, ResNet-50 | 44.22 / 45.03 | {miou} / {miou} |" in capsys.readouterr().out
    edit(tmp_path / "s", tmp_path / "other", step=1)
    write_report(str(tmp_path / "t"), str(tmp_path / "other"))
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
        "against the published 44.22",
        f"against {100 * other['miou']:.2f}",
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
    assert page.tags.count("img") == 4 * 12
    image_scores = gallery.image_scores(a.counts)
    worst = a.images[image_scores.argmin()]
    assert f"{worst} mIoU {100 * image_scores.min():.2f} %" in page.text
    assert page.text.index("Worst") < page.text.index(f"{worst} mIoU") < page.text.index("Best")


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
    assert page.tags.count("img") == 12 and "Losses" not in page.text and "published" not in page.text
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


def test_style_sheet_is_included_unchanged():
    """It passes through Jinja2, so it must hold none of its syntax, and no character that would be replaced."""
    style = (TEMPLATES / "style.css").read_text()
    assert style.isascii() and ENVIRONMENT.get_template("style.css").render() == style.rstrip("\n")


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
    values = SimpleNamespace(other=None, output=str(tmp_path / "nowhere/a.html"))
    with pytest.raises(UserError, match="nowhere/a.html cannot be written .No such file or directory"):
        report._main(None, values, str(home / "a"))


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium, or Playwright's own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(
                executable_path=path,
                args=[
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-background-networking",
                    "--disable-component-update",
                    "--disable-sync",
                ],
            )
        except playwright.Error as error:
            pytest.skip(f"no browser: apt-get install chromium, or playwright install chromium ({str(error)[:80]})")
        yield browser
        browser.close()


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (375, "dark")])
@pytest.mark.parametrize("name, other", [("a", "b"), ("large", None)])
def test_browser_shows_the_whole_report(home, tmp_path, browser, name, other, width, scheme):
    path = tmp_path / "report.html"
    path.write_text(render(results.load(home / name), other and results.load(home / other)))
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    problems, requests = [], []
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(path.as_uri())
    for summary in tab.query_selector_all("summary"):
        summary.click()
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert tab.evaluate("document.images.length") == 48
    assert all(url.startswith(("file:", "data:")) for url in requests) and not problems
    screenshot = np.array(Image.open(io.BytesIO(tab.screenshot())))
    tab.close()
    background = screenshot[:5].reshape(-1, screenshot.shape[-1])[:, :3].mean()
    assert screenshot.shape[1] == width and screenshot.std() > 10
    assert background < 40 if scheme == "dark" else background > 240
