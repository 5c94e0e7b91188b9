"""Non-maximum suppression (NMS), IoU, box areas and formats; torchvision.ops.boxes' names and semantics."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmask.checks import (
    ArgumentError,
    check_at_least,
    check_choice,
    check_device,
    check_floating,
    check_pair,
    check_shape,
    check_tensor,
    not_scriptable,
    upcast,
)
from fastmask.kernels.nms import nms_padded_op
from fastmask.ops._box_convert import AXIS_ALIGNED, COORDINATES, ROTATED, convert_rotated, from_corners, to_corners
from fastmask.ops._rotated_iou import rotated_box_iou


@not_scriptable
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression (NMS): drop each box whose IoU with a kept one of higher score exceeds the threshold.

    Args:
        boxes (Tensor[N, 4]): (x1, y1, x2, y2), any float dtype.
        scores (Tensor[N]): any float dtype. Equal scores keep the input's order; NaN comes first, as in torchvision.
        iou_threshold: compared as double with IoUs computed in the boxes' dtype (half types in float32).

    Returns:
        Tensor[K]: int64 indices of the kept boxes, score descending.

    Raises:
        ValueError: a shape, dtype, device or the threshold does not fit.

    Source: torchvision/csrc/ops/cpu/nms_kernel.cpp.
    """
    check_shape("boxes", boxes, "N", 4)
    check_shape("scores", scores, boxes.shape[0])
    return _nms(boxes, scores, None, iou_threshold)


@not_scriptable
def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression (NMS) within each category: boxes of different categories never suppress each other.

    Args:
        boxes, scores, iou_threshold: see :func:`nms`.
        idxs (Tensor[N]): category of each box, any real dtype.

    Returns:
        Tensor[K]: int64 indices of the kept boxes, score descending over all categories.

    Raises:
        ValueError: a shape, dtype, device or the threshold does not fit.

    Source: torchvision/ops/boxes.py, without its coordinate offsets, whose rounding changes some results.
    """
    check_shape("boxes", boxes, "N", 4)
    check_shape("scores", scores, boxes.shape[0])
    check_shape("idxs", idxs, boxes.shape[0])
    check_device("idxs", idxs, boxes)
    return _nms(boxes, scores, to_integers(idxs), iou_threshold)


def to_integers(categories: Tensor) -> Tensor:
    """Integers that are equal where categories are: floating ones are read as bits, for which ONNX has no operator."""
    if not categories.is_floating_point():
        return categories.to(torch.int64)
    if torch.compiler.is_exporting():
        values, order = categories.sort()
        changes = (values != torch.cat([values[:1], values[:-1]])).cumsum(0)
        return torch.empty_like(changes).scatter(0, order, changes)
    return (categories.double() + 0.0).view(torch.int64)  # + 0.0 makes -0.0 equal to 0.0


def _nms(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float) -> Tensor:
    batch = (boxes[None], scores[None], None if groups is None else groups[None])
    indices, count = nms_padded(*batch, iou_threshold=iou_threshold)
    if boxes.shape[0] == 0:
        return indices[0]
    num: Any = count[0].item()
    torch._check(num <= boxes.shape[0])  # torch.export cannot know it
    return indices[0].narrow(0, 0, num)  # of [:num] PyTorch 2.14's AOTInductor makes C++ that does not compile


@not_scriptable
def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None = None,
    valid: Tensor | None = None,
    *,
    iou_threshold: float,
    max_output: int | None = None,
    num_groups: int = 0,
    presorted: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression (NMS) of a batch of images in fixed shapes.

    Args:
        boxes (Tensor[B, N, 4]), scores (Tensor[B, N]), iou_threshold: see :func:`nms`.
        groups (Tensor[B, N]): integers; boxes of different groups never suppress each other. None: one group an image.
        valid (Tensor[B, N]): bool; False for padding, which takes no part. None: all boxes are valid.
        max_output: maximum number of indices of an image, None for N; the best are kept.
        num_groups: upper bound of groups, which start at 0. ONNX export needs it, and a GPU sorts faster with it.
        presorted: lengths of the groups, in place of ``groups``, if they follow one another in every image, each with
            its scores descending (NaN first): nothing is sorted then. A score that is larger than one before it in its
            group counts as that one.

    Returns:
        indices (Tensor[B, max_output]): int64 into N, score descending, filled up with -1; count (Tensor[B]): int64.

    Raises:
        ValueError: a shape, dtype, device or number does not fit.
    """
    groups = check_padded_boxes(boxes, scores, groups, valid)
    if presorted is not None:
        if groups is not None:
            raise ArgumentError("presorted and groups must not both be given")
        lengths = list(presorted)
        if sum(lengths) != boxes.shape[1] or any(length < 0 for length in lengths):
            raise ArgumentError(f"presorted must be lengths that add up to {boxes.shape[1]}, got {lengths}")
    if iou_threshold != iou_threshold:  # math.isnan would end torch.compile(dynamic=True)'s graph
        raise ArgumentError(f"iou_threshold must be a number, got {iou_threshold}")
    limit = boxes.shape[1] if max_output is None else max_output
    check_at_least("max_output", limit, 0)
    check_at_least("num_groups", num_groups, 0)
    runs = None if presorted is None else list(presorted)
    indices, count = nms_padded_op(boxes, scores, groups, valid, float(iou_threshold), limit, num_groups, runs)
    return indices, count


def check_padded_boxes(boxes: Tensor, scores: Tensor, groups: Tensor | None, valid: Tensor | None) -> Tensor | None:
    """Check the tensors of a batch of images for NMS -> the groups as int64."""
    check_shape("boxes", boxes, "B", "N", 4)
    check_floating("boxes", boxes)
    check_shape("scores", scores, *boxes.shape[:2])
    check_floating("scores", scores)
    check_device("scores", scores, boxes)
    if groups is not None:
        check_shape("groups", groups, *boxes.shape[:2])
        check_device("groups", groups, boxes)
        if groups.is_floating_point():
            raise ArgumentError(f"groups must be integer, got {groups.dtype}")
        groups = groups.to(torch.int64)
    if valid is not None:
        check_shape("valid", valid, *boxes.shape[:2])
        check_device("valid", valid, boxes)
        if valid.dtype != torch.bool:
            raise ArgumentError(f"valid must be bool, got {valid.dtype}")
    return groups


@not_scriptable
def remove_small_boxes(boxes: Tensor, min_size: float) -> Tensor:
    """Indices int64 [K] of the boxes (x1, y1, x2, y2) [N, 4] whose sides are both at least ``min_size`` pixels."""
    _check_last("boxes", boxes, 4)
    sides = boxes[..., 2:] - boxes[..., :2]
    return torch.where((sides >= min_size).all(-1))[0]


@not_scriptable
def clip_boxes_to_image(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Clip boxes (x1, y1, x2, y2) [..., 4] to an image of ``size`` (height, width) pixels; NaN stays NaN."""
    _check_last("boxes", boxes, 4, quantized=True)
    height, width = check_pair("size", size, 0)
    x = boxes[..., 0::2].clamp(min=0, max=width)
    y = boxes[..., 1::2].clamp(min=0, max=height)
    return torch.stack((x, y), dim=boxes.ndim).reshape(boxes.shape)


@not_scriptable
def box_convert(boxes: Tensor, in_fmt: str, out_fmt: str) -> Tensor:
    """Convert boxes [..., K] between 'xyxy', 'xywh', 'cxcywh', or between the rotated 'xywhr', 'cxcywhr', 'xyxyxyxy'.

    Returns a new tensor, also where both formats are the same. Raises ValueError for an unknown format or wrong K, and
    NotImplementedError between axis-aligned and rotated formats, as torchvision does.
    """
    check_choice("in_fmt", in_fmt, tuple(COORDINATES))
    check_choice("out_fmt", out_fmt, tuple(COORDINATES))
    _check_last("boxes", boxes, COORDINATES[in_fmt], quantized=in_fmt == out_fmt)
    if in_fmt == out_fmt:
        return boxes.clone()
    if in_fmt in ROTATED and out_fmt in ROTATED:
        return convert_rotated(boxes, in_fmt, out_fmt)
    if in_fmt in ROTATED or out_fmt in ROTATED:
        raise NotImplementedError(f"boxes cannot be converted from {in_fmt} to {out_fmt}")
    corners = boxes if in_fmt == "xyxy" else to_corners(boxes, in_fmt)
    return corners if out_fmt == "xyxy" else from_corners(corners, out_fmt)


@not_scriptable
def box_area(boxes: Tensor, fmt: str = "xyxy") -> Tensor:
    """Area of boxes [..., 4] in format 'xyxy', 'xywh' or 'cxcywh' -> [...], at least float32 or int32."""
    check_choice("fmt", fmt, AXIS_ALIGNED)
    _check_last("boxes", boxes, 4)
    boxes = upcast(boxes)
    sides = boxes[..., 2:] - boxes[..., :2] if fmt == "xyxy" else boxes[..., 2:]
    return sides[..., 0] * sides[..., 1]


@not_scriptable
def box_iou(boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy") -> Tensor:
    """Intersection over union (IoU) of every pair of boxes [..., N, K] and [..., M, K] -> [..., N, M].

    ``fmt`` is any of :func:`box_convert`'s formats; rotated boxes are [N, 5] or [M, 8], without batch dimensions.
    Two boxes without area give NaN, as 0 / 0 does, or 0 in the rotated formats.
    """
    check_choice("fmt", fmt, tuple(COORDINATES))
    if fmt in ROTATED:
        check_shape("boxes1", boxes1, "N", COORDINATES[fmt])
        check_shape("boxes2", boxes2, "M", COORDINATES[fmt])
        return rotated_box_iou(*(box_convert(upcast(boxes), fmt, "xyxyxyxy") for boxes in (boxes1, boxes2)))
    _check_last("boxes1", boxes1, 4)
    _check_last("boxes2", boxes2, 4)
    inter, union = _inter_union(boxes1, boxes2, fmt)
    return inter / union


def _inter_union(boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy") -> tuple[Tensor, Tensor]:
    area1, area2 = box_area(boxes1, fmt), box_area(boxes2, fmt)
    if fmt != "xyxy":
        boxes1, boxes2 = to_corners(boxes1, fmt), to_corners(boxes2, fmt)
    a, b = boxes1[..., :, None, :], boxes2[..., None, :, :]
    low = torch.max(a[..., :2], b[..., :2])
    high = torch.min(a[..., 2:], b[..., 2:])
    sides = upcast(high - low).clamp(min=0)  # [..., N, M, 2]
    inter = sides[..., 0] * sides[..., 1]
    return inter, area1[..., :, None] + area2[..., None, :] - inter


def _enclosing_sides(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Width and height of the smallest box around each pair -> [..., N, M, 2]."""
    a, b = boxes1[..., :, None, :], boxes2[..., None, :, :]
    return upcast(torch.max(a[..., 2:], b[..., 2:]) - torch.min(a[..., :2], b[..., :2])).clamp(min=0)


@not_scriptable
def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalized IoU (arXiv 1902.09630) of every pair of boxes [..., N, 4] and [..., M, 4] -> [..., N, M]."""
    _check_last("boxes1", boxes1, 4)
    _check_last("boxes2", boxes2, 4)
    inter, union = _inter_union(boxes1, boxes2)
    sides = _enclosing_sides(boxes1, boxes2)
    around = sides[..., 0] * sides[..., 1]
    return inter / union - (around - union) / around


@not_scriptable
def distance_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Distance IoU (arXiv 1911.08287) of every pair of boxes [..., N, 4] and [..., M, 4] -> [..., N, M]."""
    _check_last("boxes1", boxes1, 4)
    _check_last("boxes2", boxes2, 4)
    return _diou_iou(upcast(boxes1), upcast(boxes2), eps)[0]


def _diou_iou(boxes1: Tensor, boxes2: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    iou = box_iou(boxes1, boxes2)
    diagonal = (_enclosing_sides(boxes1, boxes2) ** 2).sum(-1) + eps
    center1 = (boxes1[..., :2] + boxes1[..., 2:]) / 2
    center2 = (boxes2[..., :2] + boxes2[..., 2:]) / 2
    apart = (upcast(center1[..., :, None, :] - center2[..., None, :, :]) ** 2).sum(-1)
    return iou - apart / diagonal, iou


@not_scriptable
def complete_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Complete IoU (arXiv 1911.08287) of every pair of boxes [..., N, 4] and [..., M, 4] -> [..., N, M]."""
    _check_last("boxes1", boxes1, 4)
    _check_last("boxes2", boxes2, 4)
    boxes1, boxes2 = upcast(boxes1), upcast(boxes2)
    diou, iou = _diou_iou(boxes1, boxes2, eps)
    sides1, sides2 = boxes1[..., 2:] - boxes1[..., :2], boxes2[..., 2:] - boxes2[..., :2]
    shape1, shape2 = (torch.atan(sides[..., 0] / sides[..., 1]) for sides in (sides1, sides2))
    v = 4 / math.pi**2 * (shape1[..., :, None] - shape2[..., None, :]) ** 2
    with torch.no_grad():
        alpha = v / (1 - iou + v + eps)
    return diou - alpha * v


@not_scriptable
def masks_to_boxes(masks: Tensor) -> Tensor:
    """Bounding boxes (x1, y1, x2, y2) float32 [N, 4] of the nonzero pixels, ends included, of masks [N, H, W].

    A mask without nonzero pixels gives zeros.
    """
    check_shape("masks", masks, "N", "H", "W")
    if masks.numel() == 0:
        return torch.zeros(masks.shape[0], 4, dtype=torch.float32, device=masks.device)
    bounds = []
    for dim in (2, 1):  # over columns for y, over rows for x
        any_set = masks.bool().any(dim).to(torch.uint8)  # [N, H] or [N, W]
        first, last = any_set.argmax(1), any_set.shape[1] - 1 - any_set.flip(1).argmax(1)
        bounds.append((first, last))
    (top, bottom), (left, right) = bounds
    boxes = torch.stack((left, top, right, bottom), dim=1).float()
    return torch.where(masks.bool().flatten(1).any(1, keepdim=True), boxes, 0.0)


def _check_last(name: str, boxes: Tensor, coordinates: int, quantized: bool = False) -> None:
    if isinstance(boxes, torch.fx.Proxy):  # without a shape
        return
    if not (quantized and isinstance(boxes, Tensor)):
        check_tensor(name, boxes)
    if boxes.ndim == 0 or boxes.shape[-1] != coordinates:
        raise ArgumentError(f"{name} must be [..., {coordinates}], got {tuple(boxes.shape)}")
