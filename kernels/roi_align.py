"""``fastmask::multilevel_roi_align``: RoIAlign over a feature pyramid in one op, with its backward.

Pixel model: a RoI is scaled by its level's scale; with ``aligned`` half a pixel is taken off, so that feature (i, j)
is the center of its pixel; samples further than one pixel outside the map count as 0, nearer ones are clamped.
Border rule: along an axis of n = bins x samples a bin, sample k lies at start + (2k + 1) / 2n x extent, and counts if
(-1 - start) 2n <= (2k + 1) extent <= (size - start) 2n. That is evaluated in float64, in which the products of float32
RoIs and scales are exact: no fused multiply-add changes it, and all paths decide alike (reference.is_sampled). How many
samples an adaptive bin takes, ceil(extent / bins), is counted in float32, as torchvision does it (reference.py).
``level_ratios`` are the samples a bin and axis of each level, in place of one ``sampling_ratio``; 0 is adaptive.
Source: Mask R-CNN section 3; FPN eq. 1; torchvision/csrc/ops/cpu/roi_align_kernel.cpp, torchvision/ops/poolers.py.
Differs from torchvision: one op for all levels, boxes and sums in float32 for half types, channels-last output, zeros
instead of a crash for RoIs that are NaN, inf or of no image, and a backward of fixed summation order.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmask.kernels.fallback import roi as roi_fallback
from fastmask.kernels.launch import HAS_TRITON, register

multilevel_roi_align_op = torch.library.custom_op(
    "fastmask::multilevel_roi_align", roi_fallback.multilevel_roi_align, mutates_args=()
)
multilevel_roi_align_backward_op = torch.library.custom_op(
    "fastmask::multilevel_roi_align_backward", roi_fallback.multilevel_roi_align_backward, mutates_args=()
)


if HAS_TRITON:
    from fastmask.kernels.triton import (
        roi_align as roi_align_triton,
        roi_align_backward as roi_align_backward_triton,
    )

    register(multilevel_roi_align_op, roi_align_triton.multilevel_roi_align, roi_fallback.multilevel_roi_align)
    register(
        multilevel_roi_align_backward_op,
        roi_align_backward_triton.multilevel_roi_align_backward,
        roi_fallback.multilevel_roi_align_backward,
    )


@multilevel_roi_align_op.register_fake
def _(
    features: Sequence[Tensor],
    rois: Tensor,
    scales: Any,
    limits: Any,
    pooled_height: int,
    pooled_width: int,
    *_: Any,
) -> Tensor:
    return roi_fallback.empty_channels_last(
        features[0], rois.shape[0], features[0].shape[1], pooled_height, pooled_width
    )


@multilevel_roi_align_backward_op.register_fake
def _(grad: Tensor, rois: Tensor, batch: int, heights: Sequence[int], widths: Sequence[int], *_: Any) -> list[Tensor]:
    sizes = zip(heights, widths, strict=True)
    return [roi_fallback.empty_channels_last(grad, batch, grad.shape[1], h, w) for h, w in sizes]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, scales, level_limits, _, _, ctx.sampling_ratio, ctx.aligned, ctx.level_ratios = inputs
    ctx.save_for_backward(rois)
    ctx.batch = features[0].shape[0]
    ctx.heights, ctx.widths = [f.shape[2] for f in features], [f.shape[3] for f in features]
    ctx.scales, ctx.level_limits = scales, level_limits


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (rois,) = ctx.saved_tensors
    features = multilevel_roi_align_backward_op(
        grad,
        rois,
        ctx.batch,
        ctx.heights,
        ctx.widths,
        ctx.scales,
        ctx.level_limits,
        ctx.sampling_ratio,
        ctx.aligned,
        ctx.level_ratios,
    )
    # None: rois (as in torchvision), scales, level_limits, pooled size, sampling_ratio, aligned; and level_ratios, but
    # PyTorch 2.11 does not pass it where it is the default
    return features, *[None] * (len(ctx.needs_input_grad) - 1)


multilevel_roi_align_op.register_autograd(_backward, setup_context=_setup_context)
