"""The report: what it tells, what it survives, and that a real browser shows it whole at every width."""

import html.parser
import io
import json
import shutil
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from isnet_jax import datasets, report
from isnet_jax.errors import UserError
from isnet_jax.evaluation import protocols, results
from isnet_jax.evaluation.report import gallery, sections

HOSTILE = "<script>alert('x')</script>&\"quoted\""
COUNT = 14  # images of the synthetic evaluation
VOID = {"meta", "link", "img", "br", "line", "circle", "rect", "path", "image"}


def write_evaluation(directory, data_dir, workdir, names=None, seed=0):
    """An evaluation of scenes as isnet_jax.evaluate writes it: truths that are shifted, and wrong in a patch."""
    from isnet_jax.input import pipeline

    builder = datasets.load("scenes", data_dir)
    source = pipeline.open_split(builder, "val")
    rng = np.random.default_rng(seed)
    names = names or list(builder.info.metadata["names"])
    size = len(names)
    palette = np.r_[np.array(builder.info.metadata["palette"]), rng.integers(256, size=(250, 3))][:size].tolist()
    spread = rng.permutation(size)[:8] if size > 8 else np.arange(8)
    (directory / "predictions").mkdir(parents=True)
    confusion, images = np.zeros((size, size), np.int64), []
    for index in range(COUNT):
        record = source[index]
        name = record["name"].decode()
        truth = spread[gallery._example(source, index, name, 8)[1]].astype(np.uint8)
        prediction = np.roll(truth, rng.integers(-index, index + 1), 1)
        patch = prediction[20 : 20 + 5 * index, 10 : 10 + 8 * index]
        patch[...] = np.where(patch % 3, patch, (patch + rng.integers(1, 4)) % size)
        picture = Image.fromarray(prediction).convert("L")
        picture.putpalette(bytes(768))
        picture.save(directory / f"predictions/{name}.png")
        counts = np.bincount(truth.ravel().astype(int) * size + prediction.ravel(), minlength=size**2)
        counts = counts.reshape(size, size)
        confusion += counts
        images.append((name, np.stack([np.diag(counts), counts.sum(0), counts.sum(1)])))
    shown, counts = np.array([name for name, _ in images]), np.int32([counts for _, counts in images])
    write_images(
        directory,
        {
            "name": shown,
            "file": shown,
            "index": np.arange(COUNT),
            "counts": counts,
            "boundary": (counts * [[[0.3], [0.5], [0.5]]]).astype(np.int32),
        },
    )
    write_results(directory, confusion, names, palette, data_dir, workdir)


def write_images(directory, arrays):
    with zipfile.ZipFile(directory / "images.npz", "w") as archive:  # np.savez takes no array of the name "file"
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def write_results(directory, confusion, names, palette, data_dir, workdir):
    results = {
        "dataset": "scenes",
        "split": "val",
        "images": COUNT,
        "checkpoint": str(workdir),
        "step": 16000,
        "setting": {
            "name": "tta",
            "mode": "slide",
            "crop_size": [64, 96],
            "stride": [42, 64],
            "flip": True,
            "scales": [0.75, 1.0, 1.25],
            "average": "softmax",
            "resize": [2048, 512],
            "keep_ratio": True,
        },
        "config": {
            "model": {"backbone": "resnet50", "num_classes": len(names)},
            "train": {"base_lr": 0.01},
            "data": {"name": "scenes", "data_dir": str(data_dir), "folder": {"name": "", "splits": {}}},
        },
        "names": names,
        "palette": palette,
        "confusion": confusion.tolist(),
        "published": {"miou": 44.22, "source": "https://example.org/zoo.md"},
        "run": {
            "devices": "NVIDIA H100",
            "num_devices": 8,
            "processes": 1,
            "dtype": "bfloat16",
            "seconds": 431.2,
            "versions": {"jax": "0.10.2", "python": "3.12.1"},
            "images_per_second": 32.53,
            "programs": 4,
            "padding_overhead": 0.072,
            "date": "2026-11-02T10:11:12",
        },
    }
    (directory / "results.json").write_text(json.dumps(results, indent=1))


def write_metrics(workdir, steps=16000, every=20):
    workdir.mkdir()
    rng = np.random.default_rng(0)
    with open(workdir / "metrics.jsonl", "w") as file:
        for step in range(every, steps + 1, every):
            stage = (3 * np.exp(-step / 4000) + 0.3) * rng.lognormal(0, 0.1)
            total = float("nan") if step == 200 else 1.8 * stage
            file.write(
                json.dumps(
                    {
                        "step": step,
                        "loss/auxiliary": 0.4 * stage,
                        "loss/stage1": 0.5 * stage,
                        "loss/stage2": stage,
                        "loss/total": total,
                        "lr": 0.01,
                    }
                )
                + "\n"
            )
            if step % (steps // 8) == 0:
                score = 0.45 * (1 - np.exp(-step / 5000))
                file.write(
                    json.dumps(
                        {
                            "step": step,
                            "weights/miou": score,
                            "weights/pixel_accuracy": score + 0.4,
                            "ema/miou": score + 0.02,
                            "ema/pixel_accuracy": score + 0.42,
                        }
                    )
                    + "\n"
                )
        file.write('{"step": 16020, "loss')  # cut off


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Evaluations `a`, `b` of 8 classes, `large` of 150, and the run `w` they are of; data in `data`."""
    home = tmp_path_factory.mktemp("report")
    write_metrics(home / "w")
    write_evaluation(home / "a", home / "data", home / "w")
    write_evaluation(home / "b", home / "data", home / "w", seed=1)
    names = [HOSTILE, "x" * 300, *(f"class number {i}" for i in range(148))]
    write_evaluation(home / "large", home / "data", home / "w", names)
    return home


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and collects attributes and text."""

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
        self.text += data


def check_page(text):
    """Well formed, alone, without scripts; returns the Page."""
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
    """A copy of an evaluation with other fields in results.json; None removes one."""
    shutil.copytree(directory, target)
    path = target / "results.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))
    return target


def test_tells_the_evaluation(home):
    a, b = results.load(home / "a"), results.load(home / "b")
    scores, other = protocols.scores(a.confusion), protocols.scores(b.confusion)
    page = check_page(sections.page(a, b))
    for text in (
        f"{100 * scores['miou']:.2f}%",
        f"{100 * scores['mean_accuracy']:.2f}%",
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
        "scales 0.75, 1, 1.25 and mirror, windows of 64 \N{MULTIPLICATION SIGN} 96",
        "https://example.org/zoo.md",
    ):
        assert text in page.text, text
    for k, name in enumerate(a.names):
        assert f"{name}{100 * scores['iou'][k]:.2f}" in page.text
    truth, read = np.unravel_index(np.argmax(a.confusion * (1 - np.eye(8))), (8, 8))
    assert f"The commonest mistake is {a.names[truth]} read as {a.names[read]}" in page.text
    assert page.tags.count("img") == 4 * 12
    images = gallery.image_scores(a.counts)
    worst = a.images[images.argmin()]
    assert f"{worst} mIoU {100 * images.min():.2f} %" in page.text
    assert page.text.index("Worst") < page.text.index(f"{worst} mIoU") < page.text.index("Best")


def test_image_scores_and_extremes():
    counts = np.array([[[3, 0, 0], [4, 2, 0], [4, 2, 0]], [[5, 0, 0], [5, 0, 0], [5, 0, 0]], np.zeros((3, 3))])
    np.testing.assert_allclose(gallery.image_scores(counts), [(3 / 5 + 0) / 2, 1, np.nan])
    assert gallery.extremes(np.array([0.5, np.nan, 0.1, 0.9]), 6) == ([2, 0], [3])
    assert gallery.extremes(np.array([0.5, 0.2, 0.1, 0.9, 0.3]), 2) == ([2, 1], [3, 0])


def test_many_classes_with_hostile_names(home):
    text = sections.page(results.load(home / "large"))
    page = check_page(text)
    assert "<script>alert" not in text and HOSTILE in page.text
    assert "classes confused most" in page.text
    assert "image" in page.tags  # the whole matrix


def test_missing_pieces(home, tmp_path):
    changes = {
        "run": None,
        "published": None,
        "checkpoint": str(tmp_path / "isnet.pth"),
        "step": None,
        "config": {"data": {"name": "camvid", "data_dir": str(tmp_path / "nowhere")}},
    }
    bare = edit(home / "a", tmp_path / "bare", **changes)
    page = check_page(sections.page(results.load(bare)))
    assert "Inputs and truths cannot be shown. The data set camvid is not prepared" in page.text
    assert page.tags.count("img") == 12 and "Losses" not in page.text and "published" not in page.text
    shutil.rmtree(bare / "predictions")
    page = check_page(sections.page(results.load(bare)))
    assert page.tags.count("img") == 0 and "cannot be read" in page.text
    foreign = edit(home / "a", tmp_path / "foreign", split="train")  # examples of other names
    assert "it is another one: its example 12 is 'train_012'" in check_page(sections.page(results.load(foreign))).text


def test_refuses_other_classes(home):
    with pytest.raises(UserError, match="other classes"):
        sections.page(results.load(home / "a"), results.load(home / "large"))


def test_command(home):
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


def test_output_that_cannot_be_written(home, tmp_path):
    values = SimpleNamespace(other=None, output=str(tmp_path / "nowhere/a.html"))
    with pytest.raises(UserError, match="nowhere/a.html cannot be written .No such file or directory"):
        report._main(None, values, str(home / "a"))


@pytest.fixture(scope="module")
def browser():
    """Chromium: the system's, or Playwright's own."""
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
def test_in_a_browser(home, tmp_path, browser, name, other, width, scheme):
    path = tmp_path / "report.html"
    path.write_text(sections.page(results.load(home / name), other and results.load(home / other)))
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    trouble, requests = [], []
    tab.on("console", lambda message: trouble.append(message.text))
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(path.as_uri())
    for summary in tab.query_selector_all("summary"):
        summary.click()
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert tab.evaluate("document.images.length") == 48
    assert all(url.startswith(("file:", "data:")) for url in requests) and not trouble
    shot = np.array(Image.open(io.BytesIO(tab.screenshot())))
    tab.close()
    ground = shot[:5].reshape(-1, shot.shape[-1])[:, :3].mean()
    assert shot.shape[1] == width and shot.std() > 10 and (ground < 40 if scheme == "dark" else ground > 240)
