"""Overlap of box pairs [..., 4], row by row, for the IoU losses."""

import torch
from torch import Tensor

from fastmask.checks import ArgumentError, check_tensor


def check_pairs(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Check a pair of box sets and convert every dtype but float64 to float32."""
    check_tensor("boxes1", boxes1)
    check_tensor("boxes2", boxes2)
    shapes = tuple(boxes1.shape), tuple(boxes2.shape)
    together = all(a == b or 1 in (a, b) for a, b in zip(shapes[0][::-1], shapes[1][::-1], strict=False))
    if not together or any(shape[-1:] != (4,) for shape in shapes):
        raise ArgumentError(f"boxes1 and boxes2 must be [..., 4] and broadcast, got {shapes[0]} and {shapes[1]}")
    wide = (torch.float32, torch.float64)
    return tuple(boxes if boxes.dtype in wide else boxes.float() for boxes in (boxes1, boxes2))  # type: ignore[return-value]


def inter_union(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union areas, [...] each; boxes that do not overlap pass no gradient to the intersection."""
    sides = torch.min(boxes1[..., 2:], boxes2[..., 2:]) - torch.max(boxes1[..., :2], boxes2[..., :2])
    overlap = (sides > 0).all(-1)
    inter = torch.where(overlap[..., None], sides, 0).prod(-1)
    area1, area2 = ((boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (boxes1, boxes2))
    return inter, area1 + area2 - inter


def enclosing_sides(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Width and height of the smallest box around each pair, [..., 2]."""
    return torch.max(boxes1[..., 2:], boxes2[..., 2:]) - torch.min(boxes1[..., :2], boxes2[..., :2])


def diou_loss_and_iou(boxes1: Tensor, boxes2: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """1 - DIoU and IoU, [...] each."""
    inter, union = inter_union(boxes1, boxes2)
    iou = inter / (union + eps)
    diagonal = (enclosing_sides(boxes1, boxes2) ** 2).sum(-1) + eps
    center1, center2 = ((boxes[..., :2] + boxes[..., 2:]) / 2 for boxes in (boxes1, boxes2))
    apart = ((center1 - center2) ** 2).sum(-1)
    return 1 - iou + apart / diagonal, iou
