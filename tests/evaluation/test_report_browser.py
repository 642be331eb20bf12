"""The report in a real browser: every width, both colour schemes, the enlarged view by mouse, keys and touch."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from report_samples import write_samples

from isnet_jax.evaluation import results
from isnet_jax.evaluation.report import images
from isnet_jax.evaluation.report.render import render

PHONE = {"viewport": {"width": 375, "height": 700}, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}
DESKTOP = {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"}
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("report"), ["<script>alert(1)</script>", "x" * 300])


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


@pytest.fixture
def open_page(home, browser, tmp_path):
    """A function that opens the report on some evaluations; at the end no page has complained or loaded anything."""
    problems, requests = [], []

    def open_page(names, **options):
        path = tmp_path / f"{len(requests)}.html"
        path.write_text(render(*(results.load(home / name) for name in names)))
        tab = browser.new_page(**options)
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(path.as_uri())
        return tab

    yield open_page
    for context in browser.contexts:
        context.close()
    assert all(url.startswith(("file:", "data:")) for url in requests) and not problems


def pixels(tab, locator=None):
    """What is on the screen, uint8 (H, W, 3)."""
    return np.array(Image.open(io.BytesIO((locator or tab).screenshot())).convert("RGB"))


@pytest.mark.parametrize("options", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "b", "b"], ["large"]], ids=["two", "four", "large"])
def test_browser_shows_the_whole_report(open_page, names, options):
    tab = open_page(names, **options)
    for summary in tab.query_selector_all("summary"):
        summary.evaluate("summary => summary.parentElement.open = true")
    assert tab.evaluate(FITS)
    assert tab.evaluate("[...document.querySelectorAll('.panels img')].every(x => x.complete && x.naturalWidth > 0)")
    assert tab.locator(".panels img").count() >= 48
    screen = pixels(tab)
    assert screen.shape[1] == options["viewport"]["width"] and screen.std() > 10
    assert screen[:5].mean() < 40 if options["color_scheme"] == "dark" else screen[:5].mean() > 240


def split(tab):
    return float(tab.locator("#viewer input").input_value())


def test_viewer_compares_ground_truth_and_prediction(open_page, monkeypatch):
    monkeypatch.setattr(images, "THUMBNAIL", 40)  # the pictures are larger
    tab = open_page(["a", "b"], **DESKTOP)
    panels = tab.locator(".image").first.locator(".enlarge")
    panels.nth(2).click()
    pair = tab.locator(".pair")
    assert pair.locator("img").evaluate_all("both => both.every(x => x.naturalWidth > 40)")
    assert split(tab) == 50 and tab.evaluate(FITS)
    half = pixels(tab, pair)
    tab.keyboard.press(" ")  # blinks
    ground_truth = pixels(tab, pair)
    tab.keyboard.press(" ")
    prediction = pixels(tab, pair)
    assert split(tab) == 0 and (ground_truth != prediction).any()
    middle = half.shape[1] // 2
    for part, whole in (slice(4, middle - 4), ground_truth), (slice(middle + 4, -4), prediction):
        np.testing.assert_array_equal(half[:, part], whole[:, part])
    box = pair.bounding_box()
    tab.mouse.click(box["x"] + box["width"] / 4, box["y"] + 20)
    assert abs(split(tab) - 25) <= 1
    tab.locator("[data-side=right]").select_option("errors, in red")
    tab.locator("#viewer input").fill("0")
    reds = pixels(tab, pair).astype(int)
    is_red = (reds[..., 0] - reds[..., 1:].max(-1)) > 60
    is_wrong = (ground_truth != prediction).any(-1)
    assert (is_red == is_wrong)[4:-4, 4:-4].mean() > 0.97  # outlines are scaled
    tab.locator("[data-do=zoom]").click()
    width = tab.evaluate("document.querySelector('.pair img').naturalWidth")
    assert pair.bounding_box()["width"] == width
    tab.locator("[data-do=close]").click()
    assert not tab.locator("#viewer").is_visible()


def test_viewer_obeys_keys_and_gives_the_focus_back(open_page):
    tab = open_page(["a"], **DESKTOP)
    tab.locator(".enlarge").first.focus()
    tab.keyboard.press("Enter")
    heading, count = tab.locator("#viewer h2"), tab.locator(".image").count()
    names = tab.locator(".image").evaluate_all("all => all.map(x => x.dataset.name)")
    assert heading.inner_text() == f"1 / {count} {names[0]}" and split(tab) == 0  # the input, whole
    for key, number in ("ArrowRight", 2), ("ArrowLeft", 1), ("ArrowLeft", count):
        tab.keyboard.press(key)
        assert heading.inner_text() == f"{number} / {count} {names[number - 1]}"
    tab.locator("#viewer input").focus()
    tab.keyboard.press("ArrowRight")  # moves the slider alone
    assert split(tab) == 1 and heading.inner_text().startswith(f"{count} /")
    outlines = []
    for _ in range(12):
        tab.keyboard.press("Tab")
        outlines.append(tab.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
        assert tab.evaluate("document.activeElement === document.body || !!document.activeElement.closest('#viewer')")
    assert outlines.count("solid") > 8
    tab.keyboard.press("Escape")
    assert not tab.locator("#viewer").is_visible()
    assert tab.evaluate("document.activeElement === document.querySelector('.enlarge')")


def test_viewer_on_a_phone(open_page):
    tab = open_page(["a", "b"], **PHONE)
    tab.locator(".classes a").first.tap()
    link = tab.locator("details[open] a[href^='#image-']").first
    link.tap()  # of the class's worst image
    assert tab.locator("#viewer h2").inner_text().endswith(link.text_content())
    assert tab.evaluate(FITS) and not tab.locator(".keys").is_visible()
    box = tab.locator(".pair").bounding_box()
    tab.touchscreen.tap(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    assert abs(split(tab) - 75) <= 1
    before = tab.locator(".stage").bounding_box()
    tab.locator("[data-do=next]").tap()
    tab.locator("[data-do=blink]").tap()
    assert split(tab) == 0 and tab.locator("#viewer h2").inner_text()
    controls = tab.locator("#viewer button").evaluate_all("all => all.map(x => x.getBoundingClientRect().height)")
    assert min(controls) >= 44 and tab.locator(".stage").bounding_box()["y"] == before["y"]
