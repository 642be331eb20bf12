"""Named conventions for scoring a confusion matrix: every choice that affects mIoU, by name.

All of them count pixels over the whole set, ignore those labelled 255, and define IoU = tp / (pred + gt - tp),
Dice = 2 tp / (pred + gt), precision = tp / pred, recall (class accuracy) = tp / gt, pixel accuracy and
frequency-weighted IoU alike. They differ only in classes without ground truth: which score such a class gets, or
whether the means leave it out. Where every class has ground truth, all agree.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from isnet_jax.evaluation import metrics
from isnet_jax.evaluation.metrics import percent
from isnet_jax.runtime.console import aligned


class Protocol(NamedTuple):
    """A convention; a score of NaN is left out of the means."""

    absent: float  # of a class in neither prediction nor ground truth, and the recall of one without ground truth
    predicted_only: float  # of a class that is predicted but never in the ground truth
    source: str  # the code that defines the convention


NAN = float("nan")
PROTOCOLS = {
    "official": Protocol(
        NAN,
        0.0,
        "SegmentationBLWX/sssegmentation ssseg/modules/datasets/base.py, which calls "
        "chainer/chainercv chainercv/evaluations/eval_semantic_segmentation.py (nanmean); "
        "ssseg/test.py turns labels of K and above into -1, which is ignored there",
    ),
    # IoUMetric adds float32 histograms and rounds percentages to two digits.
    "mmseg": Protocol(NAN, 0.0, "open-mmlab/mmsegmentation mmseg/evaluation/metrics/iou_metric.py (nan_to_num=None)"),
    # It counts predictions of labels that it does not evaluate as misses; train ids contain none of them. It defines no
    # accuracy. Its categories are `merge` of CITYSCAPES_CATEGORIES.
    "cityscapes": Protocol(
        NAN, 0.0, "mcordts/cityscapesScripts cityscapesscripts/evaluation/evalPixelLevelSemanticLabeling.py"
    ),
    "ground_truth": Protocol(
        NAN,
        NAN,
        "facebookresearch/detectron2 detectron2/evaluation/sem_seg_evaluation.py; "
        "nightrome/cocostuffapi PythonAPI/pycocotools/cocostuffeval.py, the evaluator of COCO-Stuff",
    ),
    "absent_zero": Protocol(
        0.0,
        0.0,
        "CSAILVision/sceneparsing demoEvaluation.m, the evaluator of ADE20K; "
        "liutinglt/CE2P utils/miou.py, common for LIP",
    ),
    "absent_one": Protocol(
        1.0,
        0.0,
        "qubvel-org/segmentation_models.pytorch segmentation_models_pytorch/metrics/"
        "functional.py (iou_score and recall with reduction='macro', zero_division=1)",
    ),
}

CITYSCAPES_CATEGORIES = {  # train ids; cityscapesscripts/helpers/labels.py
    "flat": (0, 1),
    "construction": (2, 3, 4),
    "object": (5, 6, 7),
    "nature": (8, 9),
    "sky": (10,),
    "human": (11, 12),
    "vehicle": (13, 14, 15, 16, 17, 18),
}


def scores(confusion: ArrayLike, protocol: str = "official") -> dict[str, Any]:
    """`metrics.scores` of a confusion matrix (K, K) under one of PROTOCOLS."""
    absent, predicted_only, _ = PROTOCOLS[protocol]
    return metrics.scores(confusion, absent, predicted_only)


def all_scores(confusion: ArrayLike) -> dict[str, dict[str, Any]]:
    """{protocol: `scores`}."""
    return {protocol: scores(confusion, protocol) for protocol in PROTOCOLS}


def boundary_scores(counts: ArrayLike) -> dict[str, Any]:
    """{"miou", "iou" (K,)} of boundary bands, from counts (3, K): hit, predicted and ground-truth pixels in the bands.

    Boundary IoU (Cheng et al., CVPR 2021, bowenc0221/boundary-iou-api) is the IoU of a class's predicted and true
    pixels, each near its own outline. The mean is over the classes that have any.
    """
    iou = metrics.iou(counts)
    return {"miou": float(metrics.mean(iou)), "iou": iou}


def merge(confusion: ArrayLike, groups: Iterable[Sequence[int]]) -> np.ndarray:
    """Confusion matrix (G, G), int64, of G groups of classes, from that of the classes (K, K).

    Confusions within a group become hits, as when cityscapesscripts scores its categories.
    """
    confusion = np.asarray(confusion, np.int64)
    is_member = np.array([np.isin(np.arange(len(confusion)), group) for group in groups], np.int64)  # (G, K)
    return is_member @ confusion @ is_member.T


def difference(confusion: ArrayLike, a: str, b: str) -> str:
    """Why two of PROTOCOLS score a confusion matrix differently, in one line; "" if they do not."""
    _, predicted, ground_truth = metrics.class_counts(confusion)
    absent = ((ground_truth == 0) & (predicted == 0)).sum()
    predicted_only = ((ground_truth == 0) & (predicted > 0)).sum()
    of_a, of_b = PROTOCOLS[a], PROTOCOLS[b]
    unseen = "{} predicted but never in the ground truth"
    cases = (
        (absent, "{} neither predicted nor in the ground truth", of_a.absent, of_b.absent),
        (predicted_only, unseen, of_a.predicted_only, of_b.predicted_only),
        (predicted_only, f"{unseen}, in mean accuracy", of_a.absent, of_b.absent),
    )
    return "; ".join(
        f"{text.format('1 class is' if n == 1 else f'{n} classes are')}: {a} {_treatment(x, n)}, {b} {_treatment(y, n)}"
        for n, text, x, y in cases
        if n and not np.array_equal(x, y, equal_nan=True)
    )


def _treatment(score: float, n: int) -> str:
    them = "it" if n == 1 else "them"
    return f"leaves {them} out" if np.isnan(score) else f"counts {them} as {score:.0f}"


def format_table(confusion: ArrayLike, protocol_names: Sequence[str] = tuple(PROTOCOLS)) -> str:
    """Scores of a confusion matrix (K, K) under PROTOCOLS, an aligned text table in percent, and why some differ."""
    rows = [("protocol", "mIoU %", "classes", "mean acc %", "pixel acc %", "fw IoU %")]
    for protocol in protocol_names:
        result = scores(confusion, protocol)
        rows.append(
            (
                protocol,
                percent(result["miou"]),
                str(np.isfinite(result["iou"]).sum()),
                percent(result["mean_accuracy"]),
                percent(result["pixel_accuracy"]),
                percent(result["frequency_weighted_iou"]),
            )
        )
    reasons = [difference(confusion, "official", protocol) for protocol in protocol_names]
    return "\n".join([aligned(rows), *filter(None, reasons)])
