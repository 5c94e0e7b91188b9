"""Losses that a model chooses by name: of objectness, of boxes and of masks.

- rpn_loss "bce": binary cross entropy; "focal": focal loss (arXiv 1708.02002), alpha 0.25 and gamma 2. Both are of the
  sampled anchors, as many as ``rpn_batch_size_per_image``, divided by their number; the paper's is of all anchors,
  divided by the number of positive ones.
- box_loss, of the box head's positive samples, divided by the number of all samples: "smooth_l1" with beta 1/9 (Fast
  R-CNN, arXiv 1504.08083, equation 3, with torchvision's beta); "l1"; "weighted_smooth_l1": smooth L1 times 2 - a,
  where a is the ground-truth box's share of the image's area, so that small objects count up to twice (as YOLOv3's,
  arXiv 1804.02767, in darknet's src/yolo_layer.c); on decoded boxes "giou" (arXiv 1902.09630), "diou" and "ciou" (arXiv
  1911.08287). The RPN's boxes keep smooth L1.
- mask_loss, of each positive RoI's mask, divided by their number: "bce", the mean over pixels; "dice": 1 - dice
  coefficient of the probabilities (arXiv 1606.04797, equation 3); "bce_dice": the sum of both.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmask.checks import check_choice, upcast
from fastmask.models.detection._utils import BoxCoder
from fastmask.ops.ciou_loss import complete_box_iou_loss
from fastmask.ops.diou_loss import distance_box_iou_loss
from fastmask.ops.focal_loss import sigmoid_focal_loss
from fastmask.ops.giou_loss import generalized_box_iou_loss
from fastmask.variants import CHOICES

BETA = 1 / 9  # where smooth L1 turns from a parabola into a line
MIN_SIDE = 1e-2  # of a decoded box in pixels, as of detections: rounding leaves no side to divide by
SMOOTH = 1.0  # added to both parts of the dice coefficient: with nothing to find, finding nothing costs nothing
Regression = Callable[[Tensor, Tensor], Tensor]
IOU_LOSSES = {"giou": generalized_box_iou_loss, "diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}


def objectness_error(name: str, logits: Tensor, wanted: Tensor) -> Tensor:
    """The loss ``rpn_loss`` of each logit [...], wanted 0 or 1 [...]."""
    check_choice("rpn_loss", name, CHOICES["rpn_loss"])
    if name == "focal":
        logits = upcast(logits)
        return sigmoid_focal_loss(logits, wanted.to(logits.dtype), alpha=0.25, gamma=2)
    return F.binary_cross_entropy_with_logits(logits, wanted.to(logits.dtype), reduction="none")


def box_error(
    name: str,
    coder: BoxCoder,
    deltas: Tensor,
    boxes: Tensor,
    gt_boxes: Tensor,
    positive: Tensor,
    image_area: Tensor | None = None,
) -> Tensor:
    """The loss ``box_loss`` of deltas [..., 4] from boxes to ground-truth boxes [..., 4], summed over positive [...].

    ``image_area`` [...]: of each row's image in pixels, for "weighted_smooth_l1". In the losses of decoded boxes, rows
    whose box or ground-truth box has no area do not count.
    """
    check_choice("box_loss", name, CHOICES["box_loss"])
    if name in IOU_LOSSES:
        return _iou_error(name, coder, deltas, boxes, gt_boxes, positive)
    with torch.no_grad():
        wanted = torch.where(positive[..., None], coder.encode_single(gt_boxes, boxes), 0).to(deltas.dtype)
    if name == "l1":
        error = F.l1_loss(deltas, wanted, reduction="none")
    else:
        error = F.smooth_l1_loss(deltas, wanted, beta=BETA, reduction="none")
    if name == "weighted_smooth_l1":
        assert image_area is not None
        share = (gt_boxes[..., 2:] - gt_boxes[..., :2]).prod(-1) / image_area
        error = error * (2 - share.clamp(0, 1))[..., None]
    return (error * positive[..., None]).sum()


def make_regression(
    name: str,
    coder: BoxCoder,
    boxes: Sequence[Tensor],
    gt_boxes: Sequence[Tensor],
    matched: Sequence[Tensor],
    image_shapes: Sequence[tuple[int, int]],
) -> Regression:
    """:func:`box_error` of samples [S, 4], ground-truth boxes [G, 4] and matches [S] of each image, N samples in all.

    Returns:
        deltas [P, 4] of rows [P] of the N -> their summed loss.
    """
    sampled, shapes = torch.cat(tuple(boxes)), zip(boxes, image_shapes, strict=True)
    area = torch.cat([box.new_full((len(box),), height * width) for box, (height, width) in shapes])
    triples = zip(boxes, gt_boxes, matched, strict=True)
    target = torch.cat([gt[index].to(box) if len(gt) else torch.zeros_like(box) for box, gt, index in triples])

    def regression(deltas: Tensor, rows: Tensor) -> Tensor:
        every = torch.ones_like(rows, dtype=torch.bool)
        return box_error(name, coder, deltas, sampled[rows], target[rows], every, area[rows])

    return regression


def _iou_error(name: str, coder: BoxCoder, deltas: Tensor, boxes: Tensor, gt_boxes: Tensor, positive: Tensor) -> Tensor:
    with torch.no_grad():
        sides = torch.cat((boxes[..., 2:] - boxes[..., :2], gt_boxes[..., 2:] - gt_boxes[..., :2]), dim=-1)
        counts = (positive & (sides > 0).all(-1))[..., None]
        unit = (torch.arange(4, device=boxes.device) >= 2).to(boxes.dtype)  # in place of the others: 0, 0, 1, 1
        boxes, gt_boxes = torch.where(counts, boxes, unit), torch.where(counts, gt_boxes, unit)
    lower, upper = coder.decode_boxes(torch.where(counts, deltas, 0), boxes).split(2, -1)
    decoded = torch.cat((lower, torch.maximum(upper, lower + MIN_SIDE)), dim=-1)
    return (IOU_LOSSES[name](decoded, gt_boxes) * counts.squeeze(-1)).sum()


def mask_error(name: str, logits: Tensor, wanted: Tensor) -> Tensor:
    """The loss ``mask_loss`` of each mask: logits and wanted shares [R, M, M] -> [R]."""
    check_choice("mask_loss", name, CHOICES["mask_loss"])
    if name == "bce":
        return _cross_entropy(logits, wanted)
    return _dice_error(logits, wanted) + (_cross_entropy(logits, wanted) if name == "bce_dice" else 0)


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean((1, 2))


def _dice_error(logits: Tensor, wanted: Tensor) -> Tensor:
    probability = upcast(logits).sigmoid()
    share = wanted.to(probability.dtype)
    overlap = (probability * share).sum((1, 2))
    total = (probability.square() + share.square()).sum((1, 2))
    return 1 - (2 * overlap + SMOOTH) / (total + SMOOTH)
