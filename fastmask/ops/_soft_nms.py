"""Soft-NMS (arXiv 1704.04503), which torchvision does not have: of one image, within categories, and of a batch."""

from typing import Any, Literal

import torch
from torch import Tensor

from fastmask.checks import ArgumentError, check_at_least, check_choice, check_device, check_shape, not_scriptable
from fastmask.kernels.soft_nms import soft_nms_padded_op
from fastmask.ops.boxes import check_padded_boxes, to_integers

METHODS = ("linear", "gaussian")
Method = Literal["linear", "gaussian"]


@not_scriptable
def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    method: Method = "linear",
    score_threshold: float = 0.001,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS: boxes that overlap a better one stay, with scores that decay as they overlap.

    The best remaining box is taken, of equal scores the first, and decays those that remain: "linear" multiplies scores
    by 1 - IoU where the IoU exceeds the threshold, "gaussian" all of them by exp(-IoU^2 / sigma). A score that falls
    below ``score_threshold``, or is there from the beginning, is dropped, and so is NaN.

    Args:
        boxes (Tensor[N, 4]): (x1, y1, x2, y2), any float dtype.
        scores (Tensor[N]): any float dtype. All is computed in float64 if boxes or scores are, else in float32.
        iou_threshold: of "linear"; compared as double.
        sigma: of "gaussian", above 0.
        method: "linear" or "gaussian".
        score_threshold: smallest score that is kept, at least 0.

    Returns:
        int64 indices [K] of the kept boxes, decayed score descending; their decayed scores [K], in the scores' dtype.
        Scores have gradients as if the decays were constants.

    Raises:
        ValueError: a shape, dtype, device or setting does not fit.

    Source: arXiv 1704.04503, Figure 2 and equations 2 and 3, with its sigma and threshold as defaults.
    """
    check_shape("boxes", boxes, "N", 4)
    check_shape("scores", scores, boxes.shape[0])
    return _soft_nms(boxes, scores, None, iou_threshold, sigma, method, score_threshold)


@not_scriptable
def batched_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    method: Method = "linear",
    score_threshold: float = 0.001,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS within each category: boxes of different categories never decay each other.

    Args:
        boxes, scores, iou_threshold, sigma, method, score_threshold: see :func:`soft_nms`.
        idxs (Tensor[N]): category of each box, any real dtype.

    Returns:
        int64 indices [K] of the kept boxes, decayed score descending over all categories; their decayed scores [K].

    Raises:
        ValueError: a shape, dtype, device or setting does not fit.
    """
    check_shape("boxes", boxes, "N", 4)
    check_shape("scores", scores, boxes.shape[0])
    check_shape("idxs", idxs, boxes.shape[0])
    check_device("idxs", idxs, boxes)
    return _soft_nms(boxes, scores, to_integers(idxs), iou_threshold, sigma, method, score_threshold)


def _soft_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    iou_threshold: float,
    sigma: float,
    method: Method,
    score_threshold: float,
) -> tuple[Tensor, Tensor]:
    indices, decayed, count = soft_nms_padded(
        boxes[None],
        scores[None],
        None if groups is None else groups[None],
        iou_threshold=iou_threshold,
        sigma=sigma,
        method=method,
        score_threshold=score_threshold,
    )
    if boxes.shape[0] == 0:
        return indices[0], decayed[0]
    num: Any = count[0].item()
    torch._check(num <= boxes.shape[0])  # torch.export cannot know it
    return indices[0].narrow(0, 0, num), decayed[0].narrow(0, 0, num)


@not_scriptable
def soft_nms_padded(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None = None,
    valid: Tensor | None = None,
    *,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    method: Method = "linear",
    score_threshold: float = 0.001,
    max_output: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Soft-NMS of a batch of images in fixed shapes.

    Args:
        boxes (Tensor[B, N, 4]), scores (Tensor[B, N]): see :func:`soft_nms`.
        groups (Tensor[B, N]): integers; boxes of different groups never decay each other. None: one group an image.
        valid (Tensor[B, N]): bool; False for padding, which takes no part. None: all boxes are valid.
        iou_threshold, sigma, method, score_threshold: see :func:`soft_nms`.
        max_output: maximum number of indices of an image, None for N; the best by decayed score are kept.

    Returns:
        indices (Tensor[B, max_output]): int64 into N, decayed score descending, filled up with -1; decayed scores
        (Tensor[B, max_output]), filled up with 0; count (Tensor[B]): int64.

    Raises:
        ValueError: a shape, dtype, device or setting does not fit.
    """
    groups = check_padded_boxes(boxes, scores, groups, valid)
    check_choice("method", method, METHODS)
    if iou_threshold != iou_threshold:
        raise ArgumentError(f"iou_threshold must be a number, got {iou_threshold}")
    if not sigma > 0:
        raise ArgumentError(f"sigma must be above 0, got {sigma}")
    if not score_threshold >= 0:
        raise ArgumentError(f"score_threshold must be at least 0, got {score_threshold}")
    limit = boxes.shape[1] if max_output is None else max_output
    check_at_least("max_output", limit, 0)
    settings = float(iou_threshold), float(sigma), method == "gaussian", float(score_threshold)
    indices, decayed, count = soft_nms_padded_op(boxes, scores, groups, valid, *settings, limit)
    return indices, decayed, count
