"""How much two sets of detections agree: what is asked of the float32 paths, wherever two of them are compared."""

from collections.abc import Mapping

import torch
from torch import Tensor


def matched_share(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The share of detections that have a twin on the other side: label, 1 pixel, score 1e-3, mask IoU above 0.99.

    Args:
        actual, expected: boxes [N, 4], labels [N], scores [N] and, if ``expected`` has them, masks [N, 1, H, W] as
            probabilities, of one image.

    Returns:
        From 0 to 1; 1 if both are empty.
    """
    total = len(actual["boxes"]) + len(expected["boxes"])
    if total == 0:
        return 1.0
    distance = (actual["boxes"][:, None] - expected["boxes"]).abs().amax(2)
    twin = actual["labels"][:, None] == expected["labels"]
    twin &= distance <= 1
    twin &= (actual["scores"][:, None] - expected["scores"]).abs() <= 1e-3
    pairs = twin.nonzero().tolist()
    taken: tuple[set[int], set[int]] = (set(), set())
    for i, j in sorted(
        pairs, key=lambda pair: float(distance[pair[0], pair[1]])
    ):  # each has one twin, the nearest first
        if i in taken[0] or j in taken[1]:
            continue
        if "masks" in expected:
            a, b = actual["masks"][i] > 0.5, expected["masks"][j] > 0.5
            if int((a & b).sum()) <= 0.99 * int((a | b).sum()) and bool((a | b).any()):
                continue
        taken[0].add(i)
        taken[1].add(j)
    return 2 * len(taken[0]) / total


def mask_ious(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Tensor:
    """For each expected detection the IoU of its mask with the likest actual one of its label -> [N]; 0 without one.

    Args:
        actual, expected: labels [N] and masks [N, H, W] bool, of one image.
    """
    ours, theirs = (found["masks"].flatten(1).float() for found in (actual, expected))  # float32 counts to 2^24 exactly
    inter = theirs @ ours.T
    union = theirs.sum(1)[:, None] + ours.sum(1) - inter
    iou = torch.where(union > 0, inter / union, 1.0)  # two empty masks are the same
    iou = torch.where(expected["labels"][:, None] == actual["labels"], iou, 0)
    return torch.cat([iou, iou.new_zeros(len(iou), 1)], dim=1).amax(1)
