"""Object keypoint similarity: how near detected keypoints are to annotated ones, as IoU is for boxes."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fastmask.cocoapi import cocoeval
from fastmask.data.records import Keypoints
from fastmask.skeletons import PERSON, Skeleton


def choose_sigmas(number: int, sigmas: Sequence[float] | None = None) -> NDArray[np.float64]:
    """The standard deviations [K] of ``number`` keypoints, as fractions of an object's scale (the root of its area).

    They are the given ones, or COCO's for its 17 keypoints, or 1 / K each.
    """
    if sigmas is not None:
        return np.array(sigmas, np.float64)
    if number == PERSON.number:
        coco: NDArray[np.float64] = cocoeval.Params("keypoints").kpt_oks_sigmas
        return coco
    return np.full(number, 1 / number)


def check_sigmas(sigmas: Sequence[float] | None, skeletons: Mapping[str, Skeleton]) -> None:
    """Raise a ValueError unless sigmas, where they are given, are positive, and one for each keypoint."""
    if sigmas is None:
        return
    if not all(0 < sigma < np.inf for sigma in sigmas):
        raise ValueError(f"sigmas must be above 0, got {list(sigmas)}")
    for name, skeleton in skeletons.items():
        if len(sigmas) != skeleton.number:
            raise ValueError(f"sigmas must be {skeleton.number}, as {name} has keypoints, got {len(sigmas)}")


def compute_oks(
    detected: Sequence[Keypoints],
    annotated: Sequence[Keypoints | None],
    boxes: NDArray[np.float64],
    areas: NDArray[np.float64],
    sigmas: Sequence[float] | None = None,
) -> NDArray[np.float64]:
    """The OKS [D, G] in [0, 1] of D detections with G annotated objects.

    An object without annotated keypoints is as similar as a detection's keypoints are near to its box, which is
    enlarged by its own size on each side: COCO ignores detections there.

    Args:
        detected: D times [K, 3] (x, y, any number).
        annotated: G times [K, 3] (x, y, visibility), or None.
        boxes: [G, 4] (x, y, width, height) of the objects.
        areas: [G] of the objects, in pixels.
        sigmas: see :func:`choose_sigmas`.

    Source: pycocotools' COCOeval.computeOks.
    """
    points = np.stack(detected)[:, :, :2]  # [D, K, 2]
    variances = (2 * choose_sigmas(points.shape[1], sigmas)) ** 2
    result = np.zeros((len(detected), len(annotated)))
    for j, truth in enumerate(annotated):
        labeled = None if truth is None else truth[:, 2] > 0
        if truth is not None and labeled is not None and labeled.any():
            offsets, counted = points[:, labeled] - truth[labeled, :2], variances[labeled]
        else:
            corner, size = boxes[j, :2], boxes[j, 2:]
            below, above = corner - size - points, points - (corner + 2 * size)
            offsets, counted = below.clip(0) + above.clip(0), variances
        errors = (offsets**2).sum(2) / counted / (areas[j] + np.spacing(1)) / 2
        result[:, j] = np.exp(-errors).mean(1)
    return result


def check_number(number: int | None, skeletons: Mapping[str, Skeleton]) -> None:
    """Raise a ValueError if a model has keypoints, but not as many as a category."""
    for name, skeleton in skeletons.items():
        if number not in (None, 0, skeleton.number):
            raise ValueError(f"model must have the {skeleton.number} keypoints of {name}, got {number}")
