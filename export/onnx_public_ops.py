"""The ``fastmask::`` ops of a user's module in ONNX's standard operators: whatever RoIs, boxes and scores it is given.

A model's program, whose values are known to be sound, has the shorter onnx_ops.py.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
from onnx import TensorProto

from fastmask.export import onnx_ops
from fastmask.export.onnx_ops import Value, columns, constant, count_pixels, like, number, op
from fastmask.kernels.nms import nms_padded_op
from fastmask.kernels.paste import paste_masks_op
from fastmask.kernels.reference import COORDINATE_LIMIT
from fastmask.kernels.roi_align import multilevel_roi_align_op
from fastmask.kernels.roi_pool import roi_pool_op
from fastmask.models.detection._unpad import valid_rows as valid_rows_op

HIGHEST = -onnx_ops.LOWEST


def nms_padded(
    boxes: Value,
    scores: Value,
    groups: Value | None,
    valid: Value | None,
    iou_threshold: float,
    max_output: Value | int,
    num_groups: int = 0,
    presorted: Sequence[int] | None = None,
) -> tuple[Value, Value]:
    """NaN comes first and -inf last; boxes of no area or that are NaN suppress nothing; groups may be any integers.

    NonMaxSuppression compares in float32, turns boxes whose corners are swapped, and gets a row of scores a group.
    """
    if not iou_threshold >= 0:
        raise ValueError(f"fastmask::nms_padded: iou_threshold must be at least 0 to be exported, got {iou_threshold}")
    there, scores = scores.shape[1], op.Cast(scores, to=TensorProto.FLOAT)
    boxes = op.Cast(boxes, to=TensorProto.FLOAT)
    x1, y1, x2, y2 = (op.Gather(boxes, constant([i]), axis=2) for i in range(4))  # [B, N, 1]
    boxes = op.Where(op.And(op.Greater(x2, x1), op.Greater(y2, y1)), boxes, constant(0.0))
    finite = op.Clip(scores, constant(onnx_ops.LOWEST), constant(HIGHEST))
    scores = op.Where(op.IsNaN(scores), constant(math.inf), finite)
    if presorted is not None:
        groups = constant(np.repeat(np.arange(len(presorted)), presorted)[None])
        every = constant(np.arange(len(presorted))[:, None])
    elif groups is None:
        every = None
    elif num_groups > 0:
        every = constant(np.arange(num_groups)[:, None])
    else:
        every = op.Unsqueeze(op.Unique(groups)[0], constant([1]))
    iou_threshold = min(iou_threshold, 1.0)  # the largest that ONNX Runtime takes, which no IoU exceeds
    below = -math.inf
    return onnx_ops.nms_of_groups(below, below, boxes, scores, there, groups, every, valid, iou_threshold, max_output)


def multilevel_roi_align(
    features: Sequence[Value],
    rois: Value,
    scales: Sequence[float],
    level_limits: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    level_ratios: Sequence[int] | None = None,
) -> Value:
    """Zeros for RoIs of no image, NaN, or far away; with several levels also for those of negative area."""
    kind = features[0].dtype
    rois = op.Cast(rois, to=TensorProto.DOUBLE if kind == TensorProto.DOUBLE else TensorProto.FLOAT)
    valid = is_valid(rois, features[0], max(scales))
    sides = op.Sub(columns(rois, 3, 5), columns(rois, 1, 3))
    if len(features) > 1:
        area = op.ReduceProd(sides, constant([1]), keepdims=1)
        valid = op.And(valid, op.GreaterOrEqual(area, like(0.0, rois)))
    adaptive = [ratio <= 0 for ratio in level_ratios or [sampling_ratio] * len(features)]
    if aligned and any(adaptive):  # there are no samples in a side of no length, nor in a negative one
        fixed = constant([not adaptive[-1]])
        for limit, is_adaptive in zip(level_limits[-2::-1], adaptive[-2::-1], strict=True):
            below = op.Less(op.Sqrt(area), like(limit, rois))
            fixed = op.And(op.Not(below), fixed) if is_adaptive else op.Or(below, fixed)
        valid = op.And(valid, op.Or(fixed, are_all(op.Greater(sides, like(0.0, rois)))))
    pooled = onnx_ops.multilevel_roi_align(
        features,
        op.Where(valid, rois, like(0.0, rois)),
        scales,
        level_limits,
        pooled_height,
        pooled_width,
        sampling_ratio,
        aligned,
        level_ratios,
    )
    return op.Where(op.Unsqueeze(valid, constant([2, 3])), pooled, op.CastLike(constant(0.0), pooled))


def roi_pool(
    features: Value, rois: Value, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Value, Value]:
    """By MaxRoiPool, in float32; zeros for RoIs of no image, NaN, or far away."""
    rois = op.Cast(rois, to=TensorProto.FLOAT)
    valid = is_valid(rois, features, spatial_scale)
    return onnx_ops.pool_valid(features, rois, valid, spatial_scale, pooled_height, pooled_width)


def paste_masks(
    masks: Value,
    boxes: Value,
    height: Value | int,
    width: Value | int,
    output: str,
    threshold: float,
    continuous: bool,
    logits: bool,
    padding: int,
) -> Value:
    """Both modes and all outputs; zeros for boxes that are NaN or far away."""
    side, kind = masks.shape[-1], masks.dtype
    if not isinstance(side, int):
        raise ValueError(f"fastmask::paste_masks: masks must be of a fixed size to be exported, got {masks.shape}")
    if output != "float" and not (threshold > 0 if continuous else threshold >= 0):
        raise ValueError(f"fastmask::paste_masks: threshold must be positive to be exported, got {threshold}")
    masks = op.Cast(masks, to=TensorProto.FLOAT)
    masks = op.Sigmoid(masks) if logits else masks
    boxes = op.Cast(boxes, to=TensorProto.DOUBLE if boxes.dtype == TensorProto.DOUBLE else TensorProto.FLOAT)
    corners = [boxes] if continuous else onnx_ops.expand_boxes(boxes, (side + 2 * padding) / side)
    near = [are_all(op.LessOrEqual(op.Abs(corner), like(COORDINATE_LIMIT, boxes))) for corner in corners]
    valid = op.And(near[0], near[-1])  # [N, 1]
    boxes = op.Where(valid, boxes, like(0.0, boxes))
    if continuous:
        pasted = paste_continuous(masks, side, op.Cast(boxes, to=TensorProto.FLOAT), height, width)
    else:
        pasted = onnx_ops.paste_grown(masks, side, boxes, height, width, padding)
    pasted = op.Where(op.Unsqueeze(valid, constant([2])), pasted, constant(0.0))
    if output == "float":
        return op.Cast(pasted, to=kind)
    exceeds = op.GreaterOrEqual if continuous else op.Greater
    is_mask = exceeds(pasted, constant(threshold))
    return pack_bits(is_mask, width) if output == "packed" else is_mask


def paste_continuous(masks: Value, side: int, boxes: Value, height: Value | int, width: Value | int) -> Value:
    """detectron2's mode: pixel centers sampled in the box as it is, zeros beyond the mask -> float32 [N, H, W]."""
    weights = []
    for axis, pixels in ((1, height), (0, width)):
        start = columns(boxes, axis, axis + 1)
        extent = op.Sub(columns(boxes, axis + 2, axis + 3), start)  # [N, 1]
        place = op.Sub(op.Add(count_pixels(pixels), constant(0.5)), start)
        place = op.Sub(op.Mul(op.Div(place, extent), constant(float(side))), constant(0.5))  # [N, pixels]
        place = op.Where(op.Greater(extent, constant(0.0)), place, constant(-1.0))
        weights.append(onnx_ops.weigh_cells(place, side))
    return onnx_ops.spread_cells(masks, *weights)


def pack_bits(bits: Value, width: Value | int) -> Value:
    """Bool [N, H, W] -> uint8 [N, H, ceil(W / 8)], the first pixel in the highest bit."""
    missing = op.Mod(op.Neg(op.Reshape(number(width), constant([1]))), constant([8]))
    bits = op.Pad(op.Cast(bits, to=TensorProto.FLOAT), op.Concat(constant([0, 0, 0, 0, 0]), missing, axis=0))
    values = op.Conv(
        op.Unsqueeze(bits, constant([1])), constant(2.0 ** np.arange(7, -1, -1)[None, None, None]), strides=[1, 8]
    )
    return op.Cast(op.Squeeze(values, constant([1])), to=TensorProto.UINT8)


def is_valid(rois: Value, features: Value, scale: float) -> Value:
    """Whether RoIs [K, 5] are of an image of the batch and at most COORDINATE_LIMIT feature pixels away, [K, 1]."""
    image = columns(rois, 0, 1)
    batch = op.CastLike(op.Shape(features, start=0, end=1), rois)
    is_image = op.And(op.Greater(image, like(-1.0, rois)), op.Less(image, batch))  # cut to an integer
    near = op.LessOrEqual(op.Abs(columns(rois, 1, 5)), like(COORDINATE_LIMIT / scale, rois))
    return op.And(is_image, are_all(near))


def are_all(values: Value) -> Value:
    """Bool [N, M] -> [N, 1]."""
    return op.Cast(op.ReduceMin(op.Cast(values, to=TensorProto.INT32), constant([1]), keepdims=1), to=TensorProto.BOOL)


def valid_rows(count: Value, most: int) -> list[Value]:
    """Row numbers below each of the counts [B], of a model that is called on images."""
    counts = [op.Squeeze(op.Gather(count, constant([i])), constant([0])) for i in range(count.shape[0])]
    return [op.Range(constant(0), num, constant(1)) for num in counts]


def refuse(name: str) -> Callable[..., NoReturn]:
    """A translation that raises the error of an op that has none."""

    def translate(*args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(f"fastmask::{name} has no translation to ONNX")

    return translate


TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    nms_padded_op._opoverload: nms_padded,
    multilevel_roi_align_op._opoverload: multilevel_roi_align,
    roi_pool_op._opoverload: roi_pool,
    paste_masks_op._opoverload: paste_masks,
    valid_rows_op._opoverload: valid_rows,
}
