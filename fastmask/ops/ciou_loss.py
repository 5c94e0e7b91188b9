"""Complete IoU loss; torchvision.ops.ciou_loss' names."""

import math

import torch
from torch import Tensor

from fastmask.checks import not_scriptable, reduce_loss
from fastmask.ops._loss_geometry import check_pairs, diou_loss_and_iou


@not_scriptable
def complete_box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """Complete IoU loss, 1 - CIoU of box pairs (arXiv 1911.08287): IoU, distance of the centers and aspect ratios.

    Arguments, result and errors: :func:`fastmask.ops.generalized_box_iou_loss`. Source: torchvision/ops/ciou_loss.py.
    """
    boxes1, boxes2 = check_pairs(boxes1, boxes2)
    loss, iou = diou_loss_and_iou(boxes1, boxes2, 1e-7)  # torchvision's eps does not reach this term
    width1, height1 = (boxes1[..., 2:] - boxes1[..., :2]).unbind(-1)
    width2, height2 = (boxes2[..., 2:] - boxes2[..., :2]).unbind(-1)
    v = 4 / math.pi**2 * (torch.atan(width2 / height2) - torch.atan(width1 / height1)) ** 2
    with torch.no_grad():
        alpha = v / (1 - iou + v + eps)
    return reduce_loss(loss + alpha * v, reduction, empty_mean=0.0)
