"""RoIAlign (Mask R-CNN, section 3) on one feature map or a pyramid; torchvision.ops.roi_align's names."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastmask.checks import (
    ArgumentError,
    NotScriptable,
    check_device,
    check_floating,
    check_pair,
    check_scale,
    check_shape,
    not_scriptable,
    rois_from_boxes,
)
from fastmask.kernels.roi_align import multilevel_roi_align_op

NO_LIMIT = float(torch.finfo(torch.float32).max)  # no box is as large; AOTInductor's packages cannot hold infinity


@torch.fx.wrap
@not_scriptable
def roi_align(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """RoIAlign: the mean of bilinear samples of the input in each bin of each RoI (Mask R-CNN, section 3).

    Args:
        input (Tensor[N, C, H, W]): feature map, float16, bfloat16, float32 or float64, any strides.
        boxes (Tensor[K, 5] or list[Tensor[L, 4]]): (image index, x1, y1, x2, y2) in image pixels, or for each image its
            (x1, y1, x2, y2). Their dtype may differ from the input's.
        output_size: bins as an int or (height, width).
        spatial_scale: feature pixels per image pixel.
        sampling_ratio: samples per bin and axis; <= 0 takes ``ceil(roi / bins)``.
        aligned: take half a pixel off the scaled corners (Detectron2's correction); without it RoIs are at least 1 x 1.

    Returns:
        Tensor[K, C, output_size[0], output_size[1]]: dtype of the input, channels-last where the input is.
        Coordinates, weights and sums are float32 (float64 if an argument is), rounded once. A RoI whose image index is
        out of range, or whose corners are NaN, inf or over 2^24 feature pixels away, gives zeros: values are never
        inspected on the host. Differentiable in the input (once), in a fixed summation order.

    Raises:
        ValueError: a shape, dtype, device or size does not fit.

    Source: torchvision/ops/roi_align.py and its C++ kernels.
    """
    check_shape("input", input, "N", "C", "H", "W")
    check_floating("input", input)
    check_scale("spatial_scale", spatial_scale)
    rois = rois_from_boxes(boxes, input)
    pooled = multilevel_roi_align([input], rois, output_size, [spatial_scale], sampling_ratio, aligned)
    return follow_format(pooled, input)


def follow_format(pooled: Tensor, features: Tensor) -> Tensor:
    """Channels-last where the features are, as PyTorch's own ops do, else contiguous: ``.view`` keeps working."""
    keep = features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()
    return pooled if keep else pooled.contiguous()


@torch.fx.wrap
@not_scriptable
def multilevel_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: int | Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int | Sequence[int] = -1,
    aligned: bool = False,
    *,
    canonical_scale: float = 224,
    canonical_level: float = 4,
) -> Tensor:
    """RoIAlign of each RoI on the pyramid level that fits its size (FPN, eq. 1), in one op.

    Args:
        features (list[Tensor[N, C, H_l, W_l]]): finest first, one dtype, any strides.
        rois (Tensor[K, 5]): (image index, x1, y1, x2, y2) in image pixels.
        output_size: bins as an int or (height, width).
        scales: feature pixels per image pixel, of each level.
        sampling_ratio, aligned: see :func:`roi_align`; ``sampling_ratio`` may be one for each level.
        canonical_scale, canonical_level: a RoI of sqrt(area) ``canonical_scale`` pixels goes to level
            ``canonical_level``, where level k has the scale 2^-k; missing levels are replaced by the nearest.

    Returns:
        Tensor[K, C, output_size[0], output_size[1]]: channels-last, in the order of the RoIs; with several levels, RoIs
        of negative area give zeros too (as torchvision's do), and otherwise everything as :func:`roi_align`.

    Raises:
        ValueError: a shape, dtype, device or size does not fit.

    Source: torchvision/ops/poolers.py; unlike there, a size is compared with 224 * 2^(k-4) * 2^-1e-6, not by log2.
    """
    check_levels(features, rois, scales)
    height, width = check_pair("output_size", output_size, 1)
    limits = level_limits(scales, canonical_scale, canonical_level)
    ratio, each = split_ratio(sampling_ratio, len(features))
    rest = (aligned,) if each is None else (aligned, each)
    pooled: Tensor = multilevel_roi_align_op(
        list(features), rois, [float(s) for s in scales], limits, height, width, ratio, *rest
    )
    return pooled


def split_ratio(sampling_ratio: int | Sequence[int], levels: int) -> tuple[int, list[int] | None]:
    """One ratio for all levels and None, or any and one for each level, where they differ; 0 for adaptive ones."""
    if not isinstance(sampling_ratio, Sequence):
        return max(sampling_ratio, 0), None
    if len(sampling_ratio) != levels:
        raise ArgumentError(
            f"sampling_ratio must be an int or one for each level ({levels}), got {list(sampling_ratio)}"
        )
    ratios = [max(ratio, 0) for ratio in sampling_ratio]
    return ratios[0], ratios if len(set(ratios)) > 1 else None


def check_levels(features: Sequence[Tensor], rois: Tensor, scales: Sequence[float]) -> None:
    """Raise an ArgumentError unless the maps of a pyramid, their scales and RoIs [K, 5] fit together."""
    if not isinstance(features, list | tuple) or not features:
        raise ArgumentError(f"features must be a list of at least one level, got {type(features).__name__}")
    if len(scales) != len(features):
        raise ArgumentError(f"scales must have one entry a level ({len(features)}), got {len(scales)}")
    first = features[0]
    for i, feature in enumerate(features):
        if i > 0 and _is_like(feature, first):
            continue
        check_shape(f"features[{i}]", feature, "N", "C", "H", "W")
        check_floating(f"features[{i}]", feature)
        check_device(f"features[{i}]", feature, first)
        if feature.shape[:2] != first.shape[:2]:
            raise ArgumentError(
                f"features[{i}] must have N, C = {tuple(first.shape[:2])}, got {tuple(feature.shape[:2])}"
            )
        if feature.dtype != first.dtype:
            raise ArgumentError(f"features[{i}] must be {first.dtype}, got {feature.dtype}")
    for i, scale in enumerate(scales):
        check_scale(f"scales[{i}]", scale)
    check_shape("rois", rois, "K", 5)
    check_floating("rois", rois)
    check_device("rois", rois, first)


def _is_like(feature: Tensor, first: Tensor) -> bool:
    """Whether a level has the batch, channels, dtype and device of the first, which is checked."""
    return (
        isinstance(feature, Tensor)
        and feature.ndim == 4
        and feature.dtype == first.dtype
        and feature.device == first.device
        and feature.shape[0] == first.shape[0]
        and feature.shape[1] == first.shape[1]
    )


def level_limits(scales: Sequence[float], canonical_scale: float, canonical_level: float) -> list[float]:
    """The sqrt(area), in image pixels, at which each level ends and the next begins; the last has none.

    FPN's eq. 1 with torchvision's tolerance: floor(level + log2(size / scale) + 1e-6), as a bound on the size.
    """
    finest, coarsest = (int(-math.log2(scale)) for scale in (scales[0], scales[-1]))
    ends = range(finest + 1, coarsest + 1)[: len(scales) - 1]
    limits = [canonical_scale * 2.0 ** (level - canonical_level - 1e-6) for level in ends]
    return limits + [NO_LIMIT] * (len(scales) - len(limits))


class RoIAlign(NotScriptable, nn.Module):
    """See :func:`roi_align`."""

    def __init__(
        self, output_size: int | Sequence[int], spatial_scale: float, sampling_ratio: int, aligned: bool = False
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        return roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned})"
        )
