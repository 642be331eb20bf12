"""Named conventions of scoring a confusion matrix: every choice that moves mIoU, by name.

All of them count pixels over the whole set, leave out those labelled 255, and define IoU = tp / (pred + gt - tp),
accuracy = tp / gt, pixel accuracy and frequency-weighted IoU alike. What differs is the classes without ground truth:
what counts for them, or whether they are left out of the means. Where every class has ground truth, all agree.
"""

from typing import NamedTuple

import numpy as np

from isnet_jax import metrics
from isnet_jax.console import aligned


class Protocol(NamedTuple):
    """NaN: left out of the means."""

    absent: float  # IoU of a class in neither prediction nor truth, and accuracy of one without truth
    predicted_only: float  # IoU of a class that is predicted and never occurs
    source: str  # where the convention was read


NAN = float("nan")
PROTOCOLS = {
    "official": Protocol(
        NAN,
        0.0,
        "SegmentationBLWX/sssegmentation ssseg/modules/datasets/base.py, which calls "
        "chainer/chainercv chainercv/evaluations/eval_semantic_segmentation.py (nanmean); "
        "ssseg/test.py makes labels of K and above -1, which is ignored there",
    ),
    # IoUMetric adds float32 histograms and rounds percentages to two digits.
    "mmseg": Protocol(NAN, 0.0, "open-mmlab/mmsegmentation mmseg/evaluation/metrics/iou_metric.py (nan_to_num=None)"),
    # A prediction of one of the labels that are not evaluated is a miss there; train ids have none of these. It defines
    # no accuracy. Its categories are `merge` of CITYSCAPES_CATEGORIES.
    "cityscapes": Protocol(
        NAN, 0.0, "mcordts/cityscapesScripts cityscapesscripts/evaluation/evalPixelLevelSemanticLabeling.py"
    ),
    "ground_truth": Protocol(
        NAN,
        NAN,
        "facebookresearch/detectron2 detectron2/evaluation/sem_seg_evaluation.py; "
        "nightrome/cocostuffapi PythonAPI/pycocotools/cocostuffeval.py, COCO-Stuff's own",
    ),
    "absent_zero": Protocol(
        0.0,
        0.0,
        "CSAILVision/sceneparsing demoEvaluation.m, ADE20K's own; liutinglt/CE2P utils/miou.py, common for LIP",
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


def scores(confusion, protocol="official"):
    """`metrics.scores` of a confusion matrix (K, K), rows truth, under one of PROTOCOLS."""
    absent, predicted_only, _ = PROTOCOLS[protocol]
    return metrics.scores(confusion, absent, predicted_only)


def all_scores(confusion):
    """{protocol: `scores`}."""
    return {protocol: scores(confusion, protocol) for protocol in PROTOCOLS}


def boundary_scores(counts):
    """{"miou", "iou" (K,)} of boundary bands, from counts (3, K): hits, predicted and truth pixels in the bands.

    Boundary IoU (Cheng et al., CVPR 2021, bowenc0221/boundary-iou-api) is the IoU of a class's predicted and true
    pixels near the respective outline; the mean is over the classes that have any.
    """
    iou = metrics.iou(counts)
    return {"miou": float(metrics.mean(iou)), "iou": iou}


def merge(confusion, groups):
    """Confusion matrix (G, G) int64 of groups of classes, an iterable of G tuples, from one of classes (K, K).

    Confusions within a group become hits: that is how cityscapesscripts scores its categories.
    """
    confusion = np.asarray(confusion, np.int64)
    member = np.array([np.isin(np.arange(len(confusion)), group) for group in groups], np.int64)  # (G, K)
    return member @ confusion @ member.T


def difference(confusion, a, b):
    """Why two of PROTOCOLS score a confusion matrix differently: one line, "" if they do not."""
    _, predicted, truth = metrics.class_counts(confusion)
    truthless = (truth == 0).sum()
    only = ((truth == 0) & (predicted > 0)).sum()
    pa, pb = PROTOCOLS[a], PROTOCOLS[b]
    cases = (
        (truthless - only, "{} neither predicted nor in the truth", pa.absent, pb.absent),
        (only, "{} predicted but never in the truth", pa.predicted_only, pb.predicted_only),
        (only, "{} predicted but never in the truth, in mean accuracy", pa.absent, pb.absent),
    )
    return "; ".join(
        f"{text.format('1 class is' if n == 1 else f'{n} classes are')}: {a} {_treatment(x, n)}, {b} {_treatment(y, n)}"
        for n, text, x, y in cases
        if n and not np.array_equal(x, y, equal_nan=True)
    )


def _treatment(value, n):
    them = "it" if n == 1 else "them"
    return f"leaves {them} out" if np.isnan(value) else f"counts {them} as {value:.0f}"


def format_table(confusion, names=tuple(PROTOCOLS)):
    """Aligned text table of a confusion matrix (K, K) under PROTOCOLS by name, in percent, and why some differ."""
    rows = [("protocol", "mIoU %", "classes", "mean acc %", "pixel acc %", "fw IoU %")]
    for protocol in names:
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
    reasons = [difference(confusion, "official", protocol) for protocol in names]
    return "\n".join([aligned(rows), *filter(None, reasons)])


def percent(x, sign=""):
    """A share as a percentage with two digits, "-" for NaN; `sign` "+" shows the sign of a difference."""
    return f"{100 * x:{sign}.2f}" if np.isfinite(x) else "-"
