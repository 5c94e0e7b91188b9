"""Average precision and recall from matches, by pycocotools' own accumulation."""

import contextlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmask.cocoapi import cocoeval
from fastmask.evaluation.matching import Matches


class Metrics(NamedTuple):
    """COCO's twelve; -1 where there is no object that counts. https://cocodataset.org/#detection-eval"""

    ap: float  # mean over IoU 0.5, 0.55, ..., 0.95
    ap50: float
    ap75: float
    ap_small: float  # objects of fewer than 32 x 32 pixels
    ap_medium: float
    ap_large: float  # of more than 96 x 96
    ar_1: float  # recall with one detection of a category in an image
    ar_10: float
    ar_100: float
    ar_small: float
    ar_medium: float
    ar_large: float


class Curves(NamedTuple):
    """T thresholds, R recalls, K categories, A sizes, M numbers of detections; -1 where nothing counts."""

    precision: NDArray[np.float64]  # [T, R, K, A, M]
    recall: NDArray[np.float64]  # [T, K, A, M]


def accumulated(categories: Sequence[Sequence[Matches]]) -> Curves:
    """Of each category's matches, image by image in the order of their ids; images without any are left out."""
    each = [_of_category(matches) for matches in categories]
    precision = np.concatenate([_nothing()[0], *(one.precision for one in each)], axis=2)
    return Curves(precision, np.concatenate([_nothing()[1], *(one.recall for one in each)], axis=1))


def _nothing(*value: float) -> Curves:
    """Of no category at all, or of one, all of it the value."""
    settings = cocoeval.COCOeval(iouType="bbox").params
    shape = (len(settings.iouThrs), len(settings.recThrs), len(value), len(settings.areaRng), len(settings.maxDets))
    precision = np.full(shape, value[0] if value else 0.0)
    return Curves(precision, precision[:, 0])


def _of_category(matches: Sequence[Matches]) -> Curves:
    if not matches:
        return _nothing(-1.0)
    evaluation = cocoeval.COCOeval(iouType="bbox")
    evaluation.params.catIds, evaluation.params.imgIds = [1], list(range(len(matches)))
    evaluation._paramsEval = evaluation.params
    evaluation.evalImgs = [
        {"dtScores": one.scores, "dtMatches": one.matched[a], "dtIgnore": one.ignored[a], "gtIgnore": one.absent[a]}
        for a in range(len(evaluation.params.areaRng))
        for one in matches
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        evaluation.accumulate()
    return Curves(evaluation.eval["precision"], evaluation.eval["recall"])


def metrics(curves: Curves) -> Metrics:
    """The twelve, over all categories of which there are objects."""
    evaluation = cocoeval.COCOeval(iouType="bbox")
    evaluation.eval = curves._asdict()
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    return Metrics(*evaluation.stats.tolist())


def of_category(curves: Curves, index: int) -> Metrics:
    """The twelve, of one category."""
    return metrics(Curves(curves.precision[:, :, index : index + 1], curves.recall[:, index : index + 1]))
