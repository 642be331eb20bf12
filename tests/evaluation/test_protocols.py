"""Conventions for scoring: against results computed by hand, and against the Cityscapes evaluator."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from isnet_jax.evaluation import metrics, protocols

# Class 2 occurs nowhere, class 3 is only predicted.
CONFUSION = np.array([[6, 2, 0, 1], [1, 8, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize(
    "protocol, miou, mean_accuracy, iou",
    [
        ("official", (6 / 10 + 8 / 11) / 3, (6 / 9 + 8 / 9) / 2, (6 / 10, 8 / 11, np.nan, 0)),
        ("mmseg", (6 / 10 + 8 / 11) / 3, (6 / 9 + 8 / 9) / 2, (6 / 10, 8 / 11, np.nan, 0)),
        ("cityscapes", (6 / 10 + 8 / 11) / 3, (6 / 9 + 8 / 9) / 2, (6 / 10, 8 / 11, np.nan, 0)),
        ("ground_truth", (6 / 10 + 8 / 11) / 2, (6 / 9 + 8 / 9) / 2, (6 / 10, 8 / 11, np.nan, np.nan)),
        ("absent_zero", (6 / 10 + 8 / 11) / 4, (6 / 9 + 8 / 9) / 4, (6 / 10, 8 / 11, 0, 0)),
        ("absent_one", (6 / 10 + 8 / 11 + 1) / 4, (6 / 9 + 8 / 9 + 2) / 4, (6 / 10, 8 / 11, 1, 0)),
    ],
)
def test_scores_equal_results_by_hand(protocol, miou, mean_accuracy, iou):
    result = protocols.scores(CONFUSION, protocol)
    assert result["miou"] == pytest.approx(miou) and result["mean_accuracy"] == pytest.approx(mean_accuracy)
    np.testing.assert_allclose(result["iou"], iou)
    assert result["pixel_accuracy"] == 14 / 18  # under every protocol
    assert result["frequency_weighted_iou"] == pytest.approx((6 / 10 + 8 / 11) / 2)


@pytest.mark.parametrize(
    "protocol, dice, precision, recall",
    [
        ("official", (12 / 16, 16 / 19, np.nan, 0), (6 / 7, 8 / 10, np.nan, 0), (6 / 9, 8 / 9, np.nan, np.nan)),
        (
            "ground_truth",
            (12 / 16, 16 / 19, *2 * [np.nan]),
            (6 / 7, 8 / 10, *2 * [np.nan]),
            (6 / 9, 8 / 9, *2 * [np.nan]),
        ),
        ("absent_zero", (12 / 16, 16 / 19, 0, 0), (6 / 7, 8 / 10, 0, 0), (6 / 9, 8 / 9, 0, 0)),
        ("absent_one", (12 / 16, 16 / 19, 1, 0), (6 / 7, 8 / 10, 1, 0), (6 / 9, 8 / 9, 1, 1)),
    ],
)
def test_dice_precision_and_recall_equal_results_by_hand(protocol, dice, precision, recall):
    result = protocols.scores(CONFUSION, protocol)
    for name, expected in {"dice": dice, "precision": precision, "recall": recall}.items():
        np.testing.assert_allclose(result[name], expected)
        assert result[f"mean_{name}"] == pytest.approx(np.nanmean(expected))
    for name, other in {"f1": "dice", "accuracy": "recall"}.items():
        np.testing.assert_array_equal(result[name], result[other])
        assert result[f"mean_{name}"] == result[f"mean_{other}"]
    harmonic = 2 / (1 / result["precision"][:2] + 1 / result["recall"][:2])
    np.testing.assert_allclose(result["f1"][:2], harmonic)


def test_precision_of_a_class_that_is_never_predicted_is_undefined():
    for protocol in protocols.PROTOCOLS:
        result = protocols.scores([[4, 0], [2, 0]], protocol)
        assert np.isnan(result["precision"][1]) and result["dice"][1] == result["recall"][1] == result["iou"][1] == 0
        assert result["mean_precision"] == 4 / 6


def test_metrics_scores_defaults_to_the_official_protocol():
    for key, value in metrics.scores(CONFUSION).items():
        np.testing.assert_array_equal(value, protocols.scores(CONFUSION, "official")[key])


def test_all_scores_of_an_empty_matrix_are_undefined():
    empty = protocols.all_scores(np.zeros((3, 3), int))
    assert all(np.isnan(empty[name]["miou"]) for name in ("official", "ground_truth"))
    assert (empty["absent_zero"]["miou"], empty["absent_one"]["miou"]) == (0, 1)
    assert all(
        np.isnan(result["pixel_accuracy"]) and np.isnan(result["frequency_weighted_iou"]) for result in empty.values()
    )


def test_difference_gives_reasons_exactly_where_protocols_differ():
    assert protocols.difference(CONFUSION, "official", "ground_truth") == (
        "1 class is predicted but never in the ground truth: official counts it as 0, ground_truth leaves it out"
    )
    assert protocols.difference(CONFUSION, "official", "absent_zero") == (
        "1 class is neither predicted nor in the ground truth: official leaves it out, absent_zero counts it as 0; "
        "1 class is predicted but never in the ground truth, in mean accuracy: official leaves it out, absent_zero "
        "counts it as 0"
    )
    assert protocols.difference(CONFUSION, "official", "mmseg") == ""
    complete = CONFUSION[:2, :2]
    for a in protocols.PROTOCOLS:
        for b in protocols.PROTOCOLS:
            reason, (x, y) = protocols.difference(CONFUSION, a, b), (protocols.scores(CONFUSION, p) for p in (a, b))
            assert bool(reason) == (not all(x[key] == y[key] for key in ("miou", "mean_accuracy")))
            assert protocols.difference(complete, a, b) == ""
    lines = protocols.format_table(CONFUSION).splitlines()
    assert len({len(line) for line in lines[:7]}) == 1 and lines[1].split()[:3] == ["official", "44.24", "3"]
    assert [line.split()[:2] for line in lines[7:]] == [["1", "class"]] * 3


def test_boundary_scores_equal_results_by_hand():
    result = protocols.boundary_scores([[3, 0, 0], [5, 0, 2], [4, 0, 0]])  # hits, predicted, ground truth
    np.testing.assert_array_equal(result["iou"], [3 / 6, np.nan, 0])
    assert result["miou"] == 0.25


def random_labels(rng, shape, values):
    """Blobs of the given values: uint8 `shape`."""
    noise = ndimage.gaussian_filter(rng.standard_normal((len(values), *shape)), (0, 6, 6))
    return np.array(values, np.uint8)[noise.argmax(0)]


def test_cityscapes_protocol_equals_its_evaluator_to_the_last_digit(tmp_path, monkeypatch):
    """cityscapesscripts reads PNGs of labelIds in which bus is only predicted, train is nowhere, 0..6 are ignored."""
    evaluator = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    from cityscapesscripts.helpers.labels import category2labels, id2label, name2label

    evaluated = [label for label in id2label.values() if not label.ignoreInEval]
    ids = np.array([label.id for label in sorted(evaluated, key=lambda label: label.trainId)])  # of train id 0..18
    train_ids = np.full(256, 255)
    train_ids[ids] = np.arange(19)
    assert train_ids[name2label["bus"].id] == 15 and train_ids[name2label["train"].id] == 16
    rng = np.random.default_rng(0)
    ground_truth_paths, prediction_paths, confusion = [], [], np.zeros((19, 19), np.int64)
    for i in range(4):
        predicted = random_labels(rng, (96, 160), np.delete(ids, 16))
        other = random_labels(rng, (96, 160), np.delete(ids, 16))
        ground_truth = np.where(rng.random((96, 160)) < 0.5, predicted, other)
        ground_truth[ground_truth == ids[15]] = ids[13]
        ignored = random_labels(rng, (96, 160), range(12))
        ground_truth = np.where(ignored < 7, ignored, ground_truth)
        for paths, name, labels in (
            (ground_truth_paths, "gtFine_labelIds", ground_truth),
            (prediction_paths, "pred", predicted),
        ):
            paths.append(str(tmp_path / f"city_{i:06d}_000019_{name}.png"))
            Image.fromarray(labels.astype(np.uint8)).save(paths[-1])
        kept = train_ids[ground_truth] != 255
        np.add.at(confusion, (train_ids[ground_truth[kept]], train_ids[predicted[kept]]), 1)
    for name, value in {"evalInstLevelScore": False, "JSONOutput": False, "quiet": True}.items():
        monkeypatch.setattr(evaluator.args, name, value)
    expected = evaluator.evaluateImgLists(prediction_paths, ground_truth_paths, evaluator.args)

    result = protocols.scores(confusion, "cityscapes")
    assert result["iou"][15] == 0 and np.isnan(result["iou"][16]) and np.isfinite(np.delete(result["iou"], 16)).all()
    np.testing.assert_array_equal(result["iou"], [expected["classScores"][id2label[i].name] for i in ids])
    assert result["miou"] == pytest.approx(expected["averageScoreClasses"], rel=1e-15)  # summed in another order
    categories = protocols.CITYSCAPES_CATEGORIES
    for name, members in categories.items():
        assert {label.trainId for label in category2labels[name] if not label.ignoreInEval} == set(members)
    result = protocols.scores(protocols.merge(confusion, categories.values()), "cityscapes")
    np.testing.assert_array_equal(result["iou"], [expected["categoryScores"][name] for name in categories])
    assert result["miou"] == pytest.approx(expected["averageScoreCategories"], rel=1e-15)
