"""Generalized IoU loss; torchvision.ops.giou_loss' names."""

from torch import Tensor

from fastmask.checks import not_scriptable, reduce_loss
from fastmask.ops._loss_geometry import check_pairs, enclosing_sides, inter_union


@not_scriptable
def generalized_box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """Generalized IoU loss, 1 - GIoU of box pairs (arXiv 1902.09630); it has a gradient where they do not overlap.

    Args:
        boxes1, boxes2 (Tensor[..., 4]): (x1, y1, x2, y2), pair by pair; computed in float32 unless float64.
        reduction: 'none', 'mean' (0 for no pairs) or 'sum'.
        eps: added to denominators.

    Returns:
        Tensor[...], or a scalar.

    Raises:
        ValueError: the shapes or the reduction do not fit.

    Source: torchvision/ops/giou_loss.py.
    """
    boxes1, boxes2 = check_pairs(boxes1, boxes2)
    inter, union = inter_union(boxes1, boxes2)
    around = enclosing_sides(boxes1, boxes2).prod(-1)
    loss = 1 - inter / (union + eps) + (around - union) / (around + eps)
    return reduce_loss(loss, reduction, empty_mean=0.0)
