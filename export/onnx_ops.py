"""The ``fastmask::`` ops of the static program in ONNX's standard operators, for ``torch.onnx.export``.

Source: https://onnx.ai/onnx/operators/ (RoiAlign, NonMaxSuppression, TopK, ScatterND), opset 18.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, numpy_helper
from onnxscript import opset18

from fastmask.kernels.fallback.nms import largest_not_above
from fastmask.kernels.nms import nms_padded_op
from fastmask.kernels.paste import paste_masks_op
from fastmask.kernels.roi_align import multilevel_roi_align_op
from fastmask.kernels.roi_pool import roi_pool_op

op: Any = opset18  # whose types are narrower than what the exporter hands over
Value = Any  # a tensor of the ONNX graph
LOWEST = float(np.finfo(np.float32).min)  # NonMaxSuppression takes scores that are above it


def nms_padded(
    boxes: Value,
    scores: Value,
    groups: Value | None,
    valid: Value | None,
    iou_threshold: float,
    max_output: int,
    num_groups: int = 0,
    presorted: Sequence[int] | None = None,
) -> tuple[Value, Value]:
    """Groups are NonMaxSuppression's classes; what it keeps is ranked by TopK, the first of equal scores first.

    Boxes are compared in float32. A score that is NaN is never kept.
    """
    return nms_above(LOWEST, -math.inf, boxes, scores, groups, valid, iou_threshold, max_output, num_groups, presorted)


def nms_of_probabilities(
    boxes: Value,
    scores: Value,
    groups: Value | None,
    valid: Value | None,
    iou_threshold: float,
    max_output: int,
    num_groups: int = 0,
    presorted: Sequence[int] | None = None,
) -> tuple[Value, Value]:
    """:func:`nms_padded` of scores in [0, 1], of which one that is 0 is never kept.

    The threshold is TensorRT's own: its documentation does not say how it handles negative scores.
    """
    return nms_above(0.0, -1.0, boxes, scores, groups, valid, iou_threshold, max_output, num_groups, presorted)


def nms_above(
    threshold: float,
    below: float,
    boxes: Value,
    scores: Value,
    groups: Value | None,
    valid: Value | None,
    iou_threshold: float,
    max_output: int,
    num_groups: int,
    presorted: Sequence[int] | None,
) -> tuple[Value, Value]:
    """NMS of scores above a threshold; other scores, and those of no candidate, are ``below``. Runs become groups."""
    if presorted is not None:
        groups, num_groups = constant(np.repeat(np.arange(len(presorted)), presorted)[None]), len(presorted)
    if groups is not None and num_groups < 1:
        raise ValueError(f"num_groups must be given to nms_padded for groups to be exported, got {num_groups}")
    every = None if groups is None else constant(np.arange(num_groups)[:, None])
    there, scores = scores.shape[1], op.Cast(scores, to=TensorProto.FLOAT)
    return nms_of_groups(threshold, below, boxes, scores, there, groups, every, valid, iou_threshold, max_output)


def nms_of_groups(
    threshold: float,
    below: float,
    boxes: Value,
    scores: Value,
    there: object,
    groups: Value | None,
    every: Value | None,
    valid: Value | None,
    iou_threshold: float,
    max_output: Value | int,
) -> tuple[Value, Value]:
    """:func:`nms_above` of ``there`` float32 scores an image, in the groups that are in ``every``, [G, 1]."""
    nobody = constant(below)
    rivals = op.Unsqueeze(scores if valid is None else op.Where(valid, scores, nobody), constant([1]))  # [B, 1, N]
    if groups is not None:
        rivals = op.Where(op.Equal(op.Unsqueeze(groups, constant([1])), every), rivals, nobody)  # [B, G, N]
    kept = op.NonMaxSuppression(
        op.Cast(boxes, to=TensorProto.FLOAT),
        rivals,
        length(max_output),
        constant(np.array([largest_not_above(iou_threshold, np.dtype(np.float32))])),
        constant([threshold]),
    )  # [K, 3]: image, group, box
    place = op.Gather(kept, constant([0, 2]), axis=1)
    ranked = op.ScatterND(op.Expand(nobody, op.Shape(scores)), place, op.GatherND(scores, place))
    if not isinstance(max_output, int):
        ranked = op.Pad(ranked, op.Concat(constant([0, 0, 0]), length(max_output), axis=0), nobody)
    elif not isinstance(there, int) or there < max_output:  # TopK takes no more than there are
        ranked = op.Pad(ranked, constant([0, 0, 0, max_output]), nobody)
    best, indices = op.TopK(ranked, length(max_output))
    is_kept = op.Greater(best, constant(threshold))
    count = op.ReduceSum(op.Cast(is_kept, to=TensorProto.INT64), constant([1]), keepdims=0)
    return op.Where(is_kept, indices, constant(-1)), count


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
    """Let every level pool all RoIs, a point at the origin in place of another level's, then select by level.

    In float32 at least: half types do not tell pixels apart. RoIs are not checked to be boxes of an image.
    """
    kind = features[0].dtype
    wide = TensorProto.DOUBLE if kind == TensorProto.DOUBLE else TensorProto.FLOAT
    rois = op.Cast(rois, to=wide)
    image = op.Cast(op.Squeeze(columns(rois, 0, 1), constant([1])), to=TensorProto.INT64)
    boxes, zero = columns(rois, 1, 5), op.CastLike(constant(0.0), rois)
    sides = op.Sub(columns(rois, 3, 5), columns(rois, 1, 3))
    size = op.Sqrt(op.ReduceProd(sides, constant([1]), keepdims=1))  # [K, 1]
    below = [op.Less(size, op.CastLike(constant(limit), rois)) for limit in level_limits[:-1]]
    pooled = []
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        own = boxes
        if level < len(below):
            own = op.Where(below[level], own, zero)
        if level > 0:
            own = op.Where(below[level - 1], zero, own)
        pooled.append(
            op.RoiAlign(
                op.Cast(feature, to=wide),
                own,
                image,
                mode="avg",
                output_height=pooled_height,
                output_width=pooled_width,
                sampling_ratio=sampling_ratio if level_ratios is None else level_ratios[level],
                spatial_scale=scale,
                coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
            )
        )
    chosen = pooled.pop()
    while pooled:
        narrower = op.Unsqueeze(below[len(pooled) - 1], constant([2, 3]))  # [K, 1, 1, 1]
        chosen = op.Where(narrower, pooled.pop(), chosen)
    return op.Cast(chosen, to=kind)


def roi_pool(
    features: Value, rois: Value, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Value, Value]:
    """Zeros for RoIs of no image, such as those of other levels. RoIs are not checked otherwise."""
    is_image = op.Greater(columns(rois, 0, 1), like(-1.0, rois))
    return pool_valid(features, rois, is_image, spatial_scale, pooled_height, pooled_width)


def pool_valid(
    features: Value, rois: Value, valid: Value, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Value, Value]:
    """MaxRoiPool of the RoIs that are valid [K, 1], in float32; without argmaxima, which nobody reads: all are -1."""
    rois = op.Cast(rois, to=TensorProto.FLOAT)
    pooled = op.MaxRoiPool(
        op.Cast(features, to=TensorProto.FLOAT),
        op.Where(valid, rois, constant(0.0)),
        pooled_shape=(pooled_height, pooled_width),
        spatial_scale=spatial_scale,
    )
    pooled = op.Where(op.Unsqueeze(valid, constant([2, 3])), pooled, constant(0.0))
    return op.Cast(pooled, to=features.dtype), op.Expand(constant(-1), op.Shape(pooled))


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
    """torchvision's mode: along each axis a matrix of bilinear weights, [N, pixels, cells], and their product."""
    if continuous or output == "packed":
        raise ValueError(f"paste_masks must be in torchvision's mode and not packed to be exported, got {output}")
    side, kind = masks.shape[-1], masks.dtype
    pasted = paste_grown(op.Sigmoid(masks) if logits else masks, side, boxes, height, width, padding)
    return op.Greater(pasted, constant(threshold)) if output == "bool" else op.Cast(pasted, to=kind)


def paste_grown(masks: Value, side: int, boxes: Value, height: Value | int, width: Value | int, padding: int) -> Value:
    """Masks [N, side, side] padded with zeros, in boxes that grow in proportion -> float32 [N, H, W]."""
    masks = op.Pad(masks, constant([0, padding, padding, 0, padding, padding]), op.CastLike(constant(0.0), masks))
    first, last = (
        op.Cast(op.Cast(corner, to=TensorProto.INT64), to=TensorProto.FLOAT)
        for corner in expand_boxes(boxes, (side + 2 * padding) / side)
    )  # [N, 2], cut to whole pixels
    side += 2 * padding
    spans = op.Max(op.Add(op.Sub(last, first), constant(1.0)), constant(1.0))
    weights = []
    for axis, pixels in ((1, height), (0, width)):
        start, end, span = (columns(values, axis, axis + 1) for values in (first, last, spans))  # [N, 1]
        pixel = count_pixels(pixels)
        place = op.Div(op.Mul(op.Add(op.Sub(pixel, start), constant(0.5)), constant(float(side))), span)
        place = op.Clip(op.Sub(place, constant(0.5)), constant(0.0), constant(float(side - 1)))  # [N, pixels]
        inside = op.And(op.LessOrEqual(start, pixel), op.LessOrEqual(pixel, end))
        near = weigh_cells(place, side)
        weights.append(op.Where(op.Unsqueeze(inside, constant([2])), near, constant(0.0)))
    return spread_cells(masks, *weights)


def expand_boxes(boxes: Value, scale: float) -> tuple[Value, Value]:
    """Low and high corners [N, 2] of boxes grown about their centers."""
    low, high = columns(boxes, 0, 2), columns(boxes, 2, 4)
    half = op.Mul(op.Mul(op.Sub(high, low), like(0.5, boxes)), like(scale, boxes))
    center = op.Mul(op.Add(high, low), like(0.5, boxes))
    return op.Sub(center, half), op.Add(center, half)


def count_pixels(pixels: Value | int) -> Value:
    """0.0, 1.0, ... along an axis of so many pixels."""
    return op.Cast(op.Range(constant(0), op.Squeeze(number(pixels)), constant(1)), to=TensorProto.FLOAT)


def weigh_cells(place: Value, side: int) -> Value:
    """Bilinear weight of each of ``side`` cells at places [N, pixels] -> [N, pixels, cells]."""
    away = op.Abs(op.Sub(op.Unsqueeze(place, constant([2])), constant(np.arange(side, dtype=np.float32))))
    return op.Relu(op.Sub(constant(1.0), away))


def spread_cells(masks: Value, rows: Value, across: Value) -> Value:
    """Masks [N, M, M] over pixels, by the weights [N, pixels, M] of both axes -> float32 [N, H, W]."""
    cells = op.Cast(masks, to=TensorProto.FLOAT)
    return op.MatMul(op.MatMul(rows, cells), op.Transpose(across, perm=[0, 2, 1]))


def constant(value: Any) -> Value:
    """Python numbers are float32 or int64, as ONNX's own are."""
    array = np.asarray(value)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    return op.Constant(value=numpy_helper.from_array(array))


def like(value: float, tensor: Value) -> Value:
    return op.CastLike(constant(value), tensor)


def number(value: Value | int) -> Value:
    """A static size, or a tensor for a dynamic one."""
    return constant(value) if isinstance(value, int) else value


def length(value: Value | int) -> Value:
    """A size, static or dynamic, as [1]."""
    return constant([value]) if isinstance(value, int) else op.Reshape(value, constant([1]))


def columns(values: Value, start: int, end: int) -> Value:
    """Columns [N, start:end], not by Slice: the exporter merges several Slices into a Split where the last one was."""
    return op.Gather(values, constant(np.arange(start, end)), axis=1)


def as_strided(x: Value, size: Sequence[Any], stride: Sequence[Any], storage_offset: int | None = None) -> Value:
    """The same tensor: PyTorch 2.11 gives averages over whole maps, [B, C, 1, 1], strides, which ONNX does not have."""
    if [*x.shape[2:]] != [1, 1] or [*size[2:]] != [1, 1]:
        raise ValueError(f"as_strided must be of [B, C, 1, 1] for a graph to be exported, got {x.shape} as {size}")
    return op.Identity(x)


TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.as_strided.default: as_strided,
    nms_padded_op._opoverload: nms_padded,
    multilevel_roi_align_op._opoverload: multilevel_roi_align,
    roi_pool_op._opoverload: roi_pool,
    paste_masks_op._opoverload: paste_masks,
}
FOR_TENSORRT = TRANSLATIONS | {nms_padded_op._opoverload: nms_of_probabilities}
