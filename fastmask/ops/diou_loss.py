"""Distance IoU loss; torchvision.ops.diou_loss' names."""

from torch import Tensor

from fastmask.checks import not_scriptable, reduce_loss
from fastmask.ops._loss_geometry import check_pairs, diou_loss_and_iou


@not_scriptable
def distance_box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """Distance IoU loss, 1 - DIoU of box pairs (arXiv 1911.08287): IoU and distance of the centers.

    Arguments, result and errors: :func:`fastmask.ops.generalized_box_iou_loss`. Source: torchvision/ops/diou_loss.py.
    """
    boxes1, boxes2 = check_pairs(boxes1, boxes2)
    loss, _ = diou_loss_and_iou(boxes1, boxes2, eps)
    return reduce_loss(loss, reduction, empty_mean=0.0)
