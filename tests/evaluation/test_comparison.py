"""Comparisons of evaluations: intervals against a plain loop and a known population, agreement by hand, the command."""

import json
import re
import time

import numpy as np
import pytest
from PIL import Image
from small_evaluation import NAMES, save, write_evaluation
from small_run import run, run_inside, unwrapped

from isnet_jax.errors import UserError
from isnet_jax.evaluation import bootstrap, boundary, comparison, metrics, protocols, results


@pytest.fixture
def pair(tmp_path):
    """Two evaluations of six images in different orders; B is better at the cars of all images but the first."""
    rng = np.random.default_rng(0)
    names = [f"frame{i}" for i in range(6)]
    ground_truths = [rng.integers(0, 3, (8 + i, 12)) for i in range(6)]
    a = [np.where(rng.random(labels.shape) < 0.5, labels, rng.integers(0, 3, labels.shape)) for labels in ground_truths]
    b = [np.where(labels == 2, labels, x) for labels, x in zip(ground_truths, a)]
    b[0] = a[0]
    for labels in ground_truths:
        labels[:2] = 255
    write_evaluation(tmp_path / "a", names, ground_truths, a)
    order = [3, 1, 0, 5, 4, 2]
    write_evaluation(tmp_path / "b", *([x[i] for i in order] for x in (names, ground_truths, b)))
    return tmp_path / "a", tmp_path / "b", a, b


def test_interval_equals_a_plain_loop():
    rng = np.random.default_rng(1)
    ground_truth = rng.integers(0, 50, (23, 5)) * (rng.random((23, 5)) < 0.4)
    hits = rng.binomial(ground_truth, 0.7)
    false_positives = rng.integers(0, 9, (23, 5)) * (rng.random((23, 5)) < 0.2)
    counts = np.stack([hits, hits + false_positives, ground_truth], axis=1)
    counts[:, :, 4] = 0  # a class that occurs nowhere
    draws, slow, slow_means = np.random.default_rng(5), [], []
    for _ in range(250):
        total = np.zeros((3, 5))
        for image in draws.integers(23, size=23):
            total += counts[image]
        iou = [h / (p + t - h) if p + t else np.nan for h, p, t in total.T]
        slow.append(iou)
        slow_means.append(np.mean([x for x in iou if not np.isnan(x)]))
    fast = metrics.iou(bootstrap.resample(counts, repeats=250, seed=5))
    np.testing.assert_allclose(fast, slow)
    low, high = bootstrap.interval(fast)
    for c in range(4):
        kept = [row[c] for row in slow if not np.isnan(row[c])]
        np.testing.assert_allclose((low[c], high[c]), np.percentile(kept, (2.5, 97.5)))
    assert np.isnan(low[4]) and np.isnan(high[4])
    np.testing.assert_allclose(bootstrap.interval(metrics.mean(fast)), np.percentile(slow_means, (2.5, 97.5)))


def test_interval_covers_the_expected_score_at_its_nominal_rate():
    """200 data sets of 60 images whose expected mIoU is known."""
    rng = np.random.default_rng(0)
    population = np.stack([rng.binomial(400, p, (20000, 2)) for p in (0.3, 0.45, 0.5)], axis=1)
    population[:, 0] = population[:, 0] * rng.uniform(0.3, 1, (20000, 1))  # images differ
    expected = metrics.mean(metrics.iou(population.sum(0)))
    covered = 0
    for i in range(200):
        sample = population[rng.integers(20000, size=60)]
        low, high = bootstrap.interval(metrics.mean(metrics.iou(bootstrap.resample(sample, repeats=200, seed=i))))
        covered += low <= expected <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_resample_takes_seconds_for_two_thousand_images_of_150_classes():
    counts = np.random.default_rng(0).integers(0, 9000, (2000, 3, 150))
    start = time.perf_counter()
    bootstrap.interval(metrics.iou(bootstrap.resample(counts)))
    assert time.perf_counter() - start < 20  # about 1 s on two idle cores


def test_compare_draws_the_same_images_for_both(pair):
    a, b = (results.load(directory) for directory in pair[:2])
    assert list(a.images) != list(b.images)
    b = results.align(a, b)
    assert list(a.images) == list(b.images)
    summary, _ = comparison.compare(*pair[:2])
    difference = metrics.iou(bootstrap.resample(b.counts)) - metrics.iou(bootstrap.resample(a.counts))
    interval = 100 * np.percentile(difference[:, 2], (2.5, 97.5))
    np.testing.assert_allclose(summary["classes"]["car"]["interval"], interval)
    widths = [np.ptp(interval) for interval in (summary["a"]["interval"], summary["b"]["interval"])]
    assert np.ptp(summary["miou"]["interval"]) < 0.8 * np.hypot(*widths)  # variation common to both cancels
    same, _ = comparison.compare(pair[0], pair[0])
    assert same["miou"]["difference"] == 0 and (same["miou"]["interval"] == 0).all()


def test_agreement_equals_results_by_hand(pair):
    """It covers all pixels, including those that the ground truth ignores."""
    a, b, predictions_a, predictions_b = pair
    summary, sheet = comparison.compare(a, b)
    x, y = (np.concatenate([p.ravel() for p in predictions]) for predictions in (predictions_a, predictions_b))
    agree = summary["agreement"]
    assert agree["equal"] == pytest.approx(100 * (x == y).mean())
    for c, name in enumerate(NAMES[:3]):
        either, both = ((x == c) | (y == c)).sum(), ((x == c) & (y == c)).sum()
        assert summary["classes"][name]["agreement"] == pytest.approx(100 * both / either)
    assert np.isnan(summary["classes"]["bus"]["agreement"])
    disagreements = {(row["a"], row["b"]): row["share"] for row in agree["disagreements"]}
    assert set(disagreements) == {("road", "car"), ("sky", "car")}  # they differ only where B alone predicts car
    assert disagreements["sky", "car"] == pytest.approx(100 * ((x == 1) & (y == 2)).mean())
    shares = {f"frame{i}": 100 * (p != q).mean() for i, (p, q) in enumerate(zip(predictions_a, predictions_b))}
    listed = agree["most_different_images"]
    assert [row["name"] for row in listed] == sorted((n for n in shares if shares[n]), key=lambda n: -shares[n])
    assert "frame0" not in [row["name"] for row in listed]
    assert [row["differing"] for row in listed] == pytest.approx(sorted(shares.values(), reverse=True)[:5])
    assert np.array(sheet).shape[2] == 3


def test_compare_prints_what_it_returns(pair, capsys):
    summary, _ = comparison.compare(*pair[:2])
    lines = capsys.readouterr().out.splitlines()
    table = {cells[0]: cells for cells in map(str.split, filter(None, lines)) if cells[0] in NAMES}
    a, b = (summary["classes"]["car"][side] for side in "ab")
    assert [float(cell) for cell in table["car"][1:4]] == pytest.approx([a, b, b - a], abs=0.006)
    assert (
        table["car"][5].endswith("]*") and table["bus"][1:] == ["n/a"] * 5
    )  # the interval excludes 0; the class is nowhere
    assert sum("published 79.32 %" in line for line in lines) == 2
    assert any(line.startswith("predictions: ") for line in lines)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"split": "train"}, "The split is val in .*a, but train in"),
        ({"dataset": "lip"}, "The dataset is cityscapes in .*a, but lip in"),
        ({"names": ["road", "sky", "car", "van"]}, "class 3 is bus and van"),
    ],
)
def test_compare_refuses_other_data(pair, change, message):
    path = pair[1] / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        comparison.compare(*pair[:2])


def arrays(directory):
    with np.load(directory / "images.npz") as file:
        return dict(file)


def test_compare_refuses_other_images_and_other_labels(pair):
    a, b, *_ = pair
    found = arrays(b)
    save(b, found | {"file": np.array(["frame9", *found["file"][1:]])})
    with pytest.raises(UserError, match="1 are only in the first .frame3"):
        comparison.compare(a, b)
    save(b, found | {"file": found["file"][[1, 0, 2, 3, 4, 5]]})
    with pytest.raises(UserError, match="labels of 2 images"):
        comparison.compare(a, b)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda a: (a / "results.json").unlink(), "no results.json"),
        (lambda a: (a / "results.json").write_text("{"), "cannot be read"),
        (lambda a: (a / "results.json").write_text('{"step": 6, "weights": {}}'), "training run"),
        (lambda a: (a / "images.npz").unlink(), "images.npz cannot be read"),
        (lambda a: (a / "images.npz").write_bytes(b"PK\3\4 cut off"), "images.npz cannot be read"),
        (lambda a: save(a, {"name": ["x"], "file": ["x"]}), "images.npz cannot be read"),
        (lambda a: save(a, arrays(a) | {"file": ["x"]}), "do not match"),
        (lambda a: save(a, arrays(a) | {"counts": arrays(a)["counts"] + 1}), "different pixels"),
        (lambda a: (a / "predictions" / "frame2.png").unlink(), "frame2.png cannot be read"),
        (lambda a: (a / "predictions" / "frame2.png").write_bytes(b"\x89PNG\r\n"), "frame2.png cannot be read"),
        (lambda a: Image.new("RGB", (12, 10)).save(a / "predictions" / "frame2.png"), "mode is RGB"),
        (lambda a: Image.new("L", (12, 10), 9).save(a / "predictions" / "frame2.png"), "holds class 9"),
        (lambda a: Image.new("L", (9, 9), 1).save(a / "predictions" / "frame2.png"), "different sizes"),
    ],
)
def test_compare_refuses_damaged_evaluations(pair, damage, message):
    damage(pair[0])
    with pytest.raises(UserError, match=message):
        comparison.compare(*pair[:2])


def test_compare_warns_of_intervals_from_few_images(pair, tmp_path, capsys):
    """From fewer than 20 images, or of classes in fewer than 5; silent with enough of both."""
    caution = "caution: 6 labelled images; bootstrap intervals from fewer than 20 tend to be too narrow"
    assert comparison.describe(pair[0])["cautions"][0] == caution and caution in capsys.readouterr().out
    assert comparison.compare(*pair[:2])[0]["cautions"][0] == caution and caution in capsys.readouterr().out
    rng = np.random.default_rng(1)
    names = [f"frame{i}" for i in range(20)]
    ground_truths = [rng.integers(0, 2, (8, 9)) for _ in names]
    for labels in ground_truths[:4]:
        labels[0, 0] = 2
    current = {"boundary_iou": {"convention": boundary.CONVENTION}}
    rare = write_evaluation(tmp_path / "rare", names, ground_truths, ground_truths, **current)
    assert comparison.describe(rare)["cautions"] == [
        "caution: 1 class in fewer than 5 images (car in 4), whose intervals tend to be too narrow"
    ]
    ground_truths[4][0, 0] = 2
    enough = write_evaluation(tmp_path / "enough", names, ground_truths, ground_truths, **current)
    capsys.readouterr()
    assert comparison.describe(enough)["cautions"] == [] and "caution" not in capsys.readouterr().out


def test_compare_names_evaluations_whose_boundaries_were_counted_otherwise(pair):
    a, b = pair[:2]
    path = b / "results.json"
    current = json.loads(path.read_text()) | {"boundary_iou": {"convention": boundary.CONVENTION}}
    path.write_text(json.dumps(current))
    (caution,) = comparison.compare(a, b)[0]["cautions"][1:]
    assert caution.startswith(f"caution: {a}: Boundary IoU was counted by an earlier version")
    assert str(b) not in caution


def test_evaluation_without_labelled_pixels_is_described_and_compared(tmp_path, capsys):
    ignored, predictions = (
        [np.full((8, 9), 255)] * 3,
        [np.zeros((8, 9), int), np.ones((8, 9), int), np.ones((8, 9), int)],
    )
    a = write_evaluation(tmp_path / "a", ["x", "y", "z"], ignored, predictions)
    for directories in [str(a)], [str(a), str(a)]:
        comparison.compare_directories(directories, str(tmp_path / "out.json"))
        out = capsys.readouterr().out
        assert "mIoU n/a (official protocol; 95 % interval n/a); published 79.32 %, here n/a" in out
        assert metrics.NOTHING_LABELLED in out and not re.search(r"\bnan\b", out)
        summary = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
        assert summary["cautions"] == [metrics.NOTHING_LABELLED]


def test_command_compares_two_evaluations(pair, tmp_path):
    output = tmp_path / "difference.json"
    code, out, err = run(*pair[:2], f"--output={output}", module="compare", cwd=tmp_path)
    assert (code, err) == (0, "")
    summary = json.loads(output.read_text())
    assert summary["classes"]["bus"]["a"] is None  # undefined
    assert summary["miou"]["difference"] == pytest.approx(summary["b"]["miou"] - summary["a"]["miou"])
    assert f"{summary['a']['miou']:.2f}" in out
    with Image.open(tmp_path / "difference.png") as sheet:
        assert sheet.size[0] > 3 * 12


def test_command_describes_one_evaluation(pair, tmp_path):
    code, out, err = run_inside(pair[0], f"--output={tmp_path / 'one.json'}", module="compare", cwd=tmp_path)
    assert (code, err) == (0, "")
    summary = json.loads((tmp_path / "one.json").read_text())
    sky = summary["classes"]["sky"]
    assert sky["f1"] == sky["dice"] == pytest.approx(200 / (1 / (sky["precision"] / 100) + 1 / (sky["recall"] / 100)))
    assert f"{sky['dice']:.2f}" in out and "Dice is also called F1" in out and "n/a" in out
    assert summary["published"]["miou"] == 79.32 and set(summary["protocols"]) == set(protocols.PROTOCOLS)
    assert f"published 79.32 %, here {summary['miou'] - 79.32:+.2f}" in out
    assert "1 class is neither predicted nor in the ground truth" in out and "categories" not in summary


@pytest.mark.parametrize(
    "args, code, message",
    [
        (["nowhere"], 1, "error: nowhere is not a directory"),
        (["a", "b", "c"], 2, "one positional argument too many: c"),
        ([], 2, "DIR is missing"),
        (["nowhere", "--output=x.txt"], 1, "must be a file named *.json"),
    ],
)
def test_command_reports_mistakes_without_a_traceback(tmp_path, args, code, message):
    returned, _, err = run_inside(*args, module="compare", cwd=tmp_path)
    assert returned == code and message in unwrapped(err) and "Traceback" not in err
