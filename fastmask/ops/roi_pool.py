"""RoIPool (Fast R-CNN, section 2.1); torchvision.ops.roi_pool's names."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastmask.checks import (
    NotScriptable,
    check_floating,
    check_pair,
    check_scale,
    check_shape,
    not_scriptable,
    rois_from_boxes,
)
from fastmask.kernels.reference import compute_dtype
from fastmask.kernels.roi_pool import roi_pool_op
from fastmask.ops.roi_align import check_levels, follow_format, level_limits


@torch.fx.wrap
@not_scriptable
def roi_pool(
    input: Tensor, boxes: Tensor | list[Tensor], output_size: int | Sequence[int], spatial_scale: float = 1.0
) -> Tensor:
    """RoIPool: the maximum of the input in each bin of each RoI (Fast R-CNN, section 2.1).

    Args:
        input (Tensor[N, C, H, W]): feature map, float16, bfloat16, float32 or float64, any strides.
        boxes (Tensor[K, 5] or list[Tensor[L, 4]]): (image index, x1, y1, x2, y2) in image pixels, or for each image its
            (x1, y1, x2, y2); rounded to whole feature pixels.
        output_size: bins as an int or (height, width).
        spatial_scale: feature pixels per image pixel.

    Returns:
        Tensor[K, C, output_size[0], output_size[1]]: dtype of the input, channels-last where the input is;
        0 for empty bins and for invalid RoIs (see :func:`fastmask.ops.roi_align`). Differentiable in the input (once).

    Raises:
        ValueError: a shape, dtype, device or size does not fit.

    Source: torchvision/ops/roi_pool.py and its C++ kernels.
    """
    check_shape("input", input, "N", "C", "H", "W")
    check_floating("input", input)
    check_scale("spatial_scale", spatial_scale)
    rois = rois_from_boxes(boxes, input)
    height, width = check_pair("output_size", output_size, 1)
    pooled, _ = roi_pool_op(input, rois, float(spatial_scale), height, width)
    return follow_format(pooled, input)


@torch.fx.wrap
@not_scriptable
def multilevel_roi_pool(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: int | Sequence[int],
    scales: Sequence[float],
    *,
    canonical_scale: float = 224,
    canonical_level: float = 4,
) -> Tensor:
    """RoIPool of each RoI on the pyramid level that fits its size: the rule of levels of ``multilevel_roi_align``.

    Every level pools all RoIs, those of other levels as RoIs of no image, which cost little; the sum is the result.

    Args:
        features (list[Tensor[N, C, H_l, W_l]]): finest first, one dtype, any strides.
        rois (Tensor[K, 5]): (image index, x1, y1, x2, y2) in image pixels.
        output_size, scales, canonical_scale, canonical_level: see :func:`fastmask.ops.multilevel_roi_align`.

    Returns:
        Tensor[K, C, output_size[0], output_size[1]]: channels-last, in the order of the RoIs; with several levels, RoIs
        of negative area give zeros, and otherwise everything as :func:`roi_pool`.

    Raises:
        ValueError: a shape, dtype, device or size does not fit.
    """
    check_levels(features, rois, scales)
    height, width = check_pair("output_size", output_size, 1)
    if len(features) == 1:
        only: Tensor = roi_pool_op(features[0], rois, float(scales[0]), height, width)[0]
        return only
    wide = rois.to(compute_dtype(*features, rois))
    sides = wide[:, 3:] - wide[:, 1:3]
    size = (sides[:, 0] * sides[:, 1]).sqrt()  # NaN of a negative area, which is on no level
    limits = level_limits(scales, canonical_scale, canonical_level)
    total: Tensor | None = None
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        own = size <= torch.inf if level == len(limits) - 1 else size < limits[level]
        if level > 0:
            own &= size >= limits[level - 1]
        image = torch.where(own, wide[:, 0], -1)
        pooled, _ = roi_pool_op(feature, torch.cat([image[:, None], wide[:, 1:]], 1), float(scale), height, width)
        total = pooled if total is None else total + pooled
    assert total is not None
    return total


class RoIPool(NotScriptable, nn.Module):
    """See :func:`roi_pool`."""

    def __init__(self, output_size: int | Sequence[int], spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        return roi_pool(input, rois, self.output_size, self.spatial_scale)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(output_size={self.output_size}, spatial_scale={self.spatial_scale})"
