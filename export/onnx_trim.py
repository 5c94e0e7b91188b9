"""Ops of graphs whose numbers of rows depend on the images, for CPUs: RoIs are pooled on their own levels alone.

They are sorted by level; so each level's are a slice, which may have no rows.
Source: https://onnx.ai/onnx/operators/ (TopK, Slice, RoiAlign), opset 18.
"""

from collections.abc import Callable, Sequence
from typing import Any

from onnx import TensorProto

from fastmask.export import onnx_ops
from fastmask.export.onnx_ops import Value, columns, constant, like, op
from fastmask.kernels.nms import nms_padded_op
from fastmask.kernels.roi_align import multilevel_roi_align_op


def nms_padded(boxes: Value, *rest: Any, **options: Any) -> tuple[Value, Value]:
    """:func:`fastmask.export.onnx_ops.nms_padded`; OpenVINO must know that boxes of unknown number have four sides."""
    return onnx_ops.nms_padded(op.Reshape(boxes, constant([0, -1, 4])), *rest, **options)


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
    """The values of :func:`fastmask.export.onnx_ops.multilevel_roi_align`, of which no level pools another's RoIs."""
    if len(features) == 1:
        size = pooled_height, pooled_width
        return onnx_ops.multilevel_roi_align(features, rois, scales, level_limits, *size, sampling_ratio, aligned)
    kind = features[0].dtype
    wide = TensorProto.DOUBLE if kind == TensorProto.DOUBLE else TensorProto.FLOAT
    rois = op.Cast(rois, to=wide)
    sides = op.Sub(columns(rois, 3, 5), columns(rois, 1, 3))
    size = op.Sqrt(op.ReduceProd(sides, constant([1]), keepdims=0))  # [K]
    number = op.Shape(size)
    level, ends = constant([0]), []
    for limit in level_limits[:-1]:
        is_below = op.Cast(op.Less(size, like(limit, rois)), to=TensorProto.INT64)
        ends.append(op.ReduceSum(is_below, constant([0]), keepdims=1))
        level = op.Add(level, op.Sub(constant([1]), is_below))
    ends.append(number)
    order = sort_indices(op.Add(op.Mul(level, number), op.Range(constant(0), op.Squeeze(number), constant(1))), number)
    ordered = op.Gather(rois, order, axis=0)
    image = op.Cast(op.Squeeze(columns(ordered, 0, 1), constant([1])), to=TensorProto.INT64)
    boxes, start, pooled = columns(ordered, 1, 5), constant([0]), []
    for i, (feature, scale, end) in enumerate(zip(features, scales, ends, strict=True)):
        pooled.append(
            op.RoiAlign(
                op.Cast(feature, to=wide),
                op.Slice(boxes, start, end, constant([0])),
                op.Slice(image, start, end, constant([0])),
                mode="avg",
                output_height=pooled_height,
                output_width=pooled_width,
                sampling_ratio=sampling_ratio if level_ratios is None else level_ratios[i],
                spatial_scale=scale,
                coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
            )
        )
        start = end
    joined = op.Concat(*pooled, axis=0)
    return op.Cast(op.Gather(joined, sort_indices(order, number), axis=0), to=kind)


def sort_indices(keys: Value, number: Value) -> Value:
    """Indices that sort the keys [K], which all differ; of a permutation these are its inverse."""
    return op.TopK(keys, number, largest=0)[1]


TRANSLATIONS: dict[Any, Callable[..., Any]] = onnx_ops.TRANSLATIONS | {
    nms_padded_op._opoverload: nms_padded,
    multilevel_roi_align_op._opoverload: multilevel_roi_align,
}
