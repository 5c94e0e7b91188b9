"""Average precision and recall from matches, accumulated by pycocotools itself."""

import contextlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmask.cocoapi import cocoeval
from fastmask.evaluation.matching import Matches


class Metrics(NamedTuple):
    """COCO's twelve metrics, -1 without ground truth. Source: https://cocodataset.org/#detection-eval."""

    ap: float  # mean over IoU thresholds 0.5, 0.55, ..., 0.95
    ap50: float
    ap75: float
    ap_small: float  # area below 32 x 32 pixels
    ap_medium: float
    ap_large: float  # area above 96 x 96 pixels
    ar_1: float  # recall with at most 1 detection of a category in an image
    ar_10: float
    ar_100: float
    ar_small: float
    ar_medium: float
    ar_large: float


class KeypointMetrics(NamedTuple):
    """COCO's ten metrics of keypoints, by OKS instead of IoU, of at most 20 detections of a category in an image.

    They are -1 without ground truth. Source: https://cocodataset.org/#keypoints-eval.
    """

    ap: float  # mean over OKS thresholds 0.5, 0.55, ..., 0.95
    ap50: float
    ap75: float
    ap_medium: float  # area from 32 x 32 to 96 x 96 pixels
    ap_large: float
    ar: float  # recall, mean over the thresholds
    ar50: float
    ar75: float
    ar_medium: float
    ar_large: float


AnyMetrics = Metrics | KeypointMetrics


class Curves(NamedTuple):
    """Precision and recall at T IoU thresholds, R recalls, K categories, A area ranges, M maximum detections.

    They are -1 where there is no ground truth.
    """

    precision: NDArray[np.float64]  # [T, R, K, A, M]
    recall: NDArray[np.float64]  # [T, K, A, M]


def accumulate(categories: Sequence[Sequence[Matches]], iou_type: str = "bbox") -> Curves:
    """The curves of K categories from the matches of each one's images, in the order of image ids.

    ``iou_type`` gives the recalls, area ranges and numbers of detections, which boxes and masks have in common.
    """
    curves = [_empty_curves(iou_type), *(_accumulate_category(matches, iou_type) for matches in categories)]
    precision, recall = zip(*curves, strict=True)
    return Curves(np.concatenate(precision, axis=2), np.concatenate(recall, axis=1))


def _empty_curves(iou_type: str, *values: float) -> Curves:
    """Curves of one category, filled with the value, or, without one, of no category."""
    params = cocoeval.COCOeval(iouType=iou_type).params
    shape = (len(params.iouThrs), len(params.recThrs), len(values), len(params.areaRng), len(params.maxDets))
    precision = np.full(shape, values[0] if values else 0.0)
    return Curves(precision, precision[:, 0])


def _accumulate_category(matches: Sequence[Matches], iou_type: str) -> Curves:
    if not matches:
        return _empty_curves(iou_type, -1.0)
    evaluation = cocoeval.COCOeval(iouType=iou_type)
    evaluation.params.catIds, evaluation.params.imgIds = [1], list(range(len(matches)))
    evaluation._paramsEval = evaluation.params
    evaluation.evalImgs = [
        {"dtScores": m.scores, "dtMatches": m.matched[a], "dtIgnore": m.ignored[a], "gtIgnore": m.gt_ignored[a]}
        for a in range(len(evaluation.params.areaRng))
        for m in matches
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # accumulate prints
        evaluation.accumulate()
    return Curves(evaluation.eval["precision"], evaluation.eval["recall"])


def summarize(curves: Curves, iou_type: str = "bbox") -> AnyMetrics:
    """The metrics over all categories that have ground truth."""
    evaluation = cocoeval.COCOeval(iouType=iou_type)
    evaluation.eval = curves._asdict()
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    values = evaluation.stats.tolist()
    return KeypointMetrics(*values) if iou_type == "keypoints" else Metrics(*values)


def summarize_category(curves: Curves, index: int, iou_type: str = "bbox") -> AnyMetrics:
    """The metrics of one of the K categories."""
    one = Curves(curves.precision[:, :, index : index + 1], curves.recall[:, index : index + 1])
    return summarize(one, iou_type)
