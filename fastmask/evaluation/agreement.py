"""Agreement of two sets of detections: the rule by which float32 paths are compared everywhere."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fastmask.ops import box_iou

KEPT_IOU = 0.75  # of a detection that another dtype keeps
KEPT_SHARE = 0.99  # of detections that bfloat16 must keep


class Tolerance(NamedTuple):
    """How far two detections of one label may be apart and still match."""

    pixels: float = 1.0  # of each side of the box
    score: float = 1e-3
    mask_iou: float = 0.99  # the masks' must be above it


FLOAT32 = Tolerance()


def matched_share(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: Tolerance = FLOAT32
) -> float:
    """The fraction of detections that match one to one.

    Args:
        actual, expected: boxes [N, 4] in pixels, labels [N], scores [N] and, if ``expected`` has them, masks
            [N, 1, H, W] as probabilities, of one image.
        tolerance: of a match, but for the labels, which are the same.

    Returns:
        In [0, 1]; 1 if both are empty.
    """
    total = len(actual["boxes"]) + len(expected["boxes"])
    if total == 0:
        return 1.0
    distance = (actual["boxes"][:, None] - expected["boxes"]).abs().amax(2)
    close = actual["labels"][:, None] == expected["labels"]
    close &= distance <= tolerance.pixels
    close &= (actual["scores"][:, None] - expected["scores"]).abs() <= tolerance.score
    pairs = close.nonzero().tolist()
    matched: tuple[set[int], set[int]] = (set(), set())
    for i, j in sorted(pairs, key=lambda pair: float(distance[pair[0], pair[1]])):  # the nearest first
        if i in matched[0] or j in matched[1]:
            continue
        if "masks" in expected:
            a, b = actual["masks"][i] > 0.5, expected["masks"][j] > 0.5
            if int((a & b).sum()) <= tolerance.mask_iou * int((a | b).sum()) and bool((a | b).any()):
                continue
        matched[0].add(i)
        matched[1].add(j)
    return 2 * len(matched[0]) / total


def count_kept(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> int:
    """How many of the expected detections, of one image, are still there: IoU at least 0.75 (AP75's) and their label.

    The IoU is the masks', [N, H, W] bool, where there are any, else the boxes'. Coarser than :func:`matched_share`, in
    which a half type's rounding of scores and borders counts as a difference.
    """
    if "masks" in expected:
        return int((mask_ious(actual, expected) >= KEPT_IOU).sum())
    near = box_iou(expected["boxes"], actual["boxes"]) >= KEPT_IOU
    return int((near & (expected["labels"][:, None] == actual["labels"])).any(1).sum())


def mask_ious(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Tensor:
    """The highest IoU of each expected mask with an actual mask of its label -> [N]; 0 without one.

    Args:
        actual, expected: labels [N] and masks [N, H, W] bool, of one image.
    """
    # float32 is exact up to 2^24 pixels
    ours, theirs = (detections["masks"].flatten(1).float() for detections in (actual, expected))
    inter = theirs @ ours.T
    union = theirs.sum(1)[:, None] + ours.sum(1) - inter
    iou = torch.where(union > 0, inter / union, 1.0)  # of two empty masks
    iou = torch.where(expected["labels"][:, None] == actual["labels"], iou, 0)
    return torch.cat([iou, iou.new_zeros(len(iou), 1)], dim=1).amax(1)
