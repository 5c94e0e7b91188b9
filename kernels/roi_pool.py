"""``fastmask::roi_pool``: RoIPool, max pooling of regions of interest, with its backward.

Pixel model: corners are rounded (halves away from zero) to whole pixels, both belonging to the RoI; a bin is every
pixel that it touches, so neighboring bins may share one.
Source: Fast R-CNN section 2.1; torchvision/csrc/ops/cpu/roi_pool_kernel.cpp.
Differs from torchvision: int64 argmaxima, channels-last output, zeros for RoIs that are NaN, inf or of no image.
"""

from typing import Any

import torch
from torch import Tensor

from fastmask.kernels.fallback import roi as roi_fallback
from fastmask.kernels.launch import HAS_TRITON, register

roi_pool_op = torch.library.custom_op("fastmask::roi_pool", roi_fallback.roi_pool, mutates_args=())
roi_pool_backward_op = torch.library.custom_op(
    "fastmask::roi_pool_backward", roi_fallback.roi_pool_backward, mutates_args=()
)


if HAS_TRITON:
    from fastmask.kernels.triton import roi_pool as roi_pool_triton

    register(roi_pool_op, roi_pool_triton.roi_pool, roi_fallback.roi_pool)
    register(roi_pool_backward_op, roi_pool_triton.roi_pool_backward, roi_fallback.roi_pool_backward)


@roi_pool_op.register_fake
def _(
    features: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Tensor, Tensor]:
    out = roi_fallback.empty_channels_last(features, rois.shape[0], features.shape[1], pooled_height, pooled_width)
    return out, torch.empty_like(out, dtype=torch.int64)


@roi_pool_backward_op.register_fake
def _(grad: Tensor, rois: Tensor, argmax: Tensor, scale: float, batch: int, height: int, width: int) -> Tensor:
    return roi_fallback.empty_channels_last(grad, batch, grad.shape[1], height, width)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, rois, ctx.spatial_scale, *_ = inputs
    _, argmax = output
    ctx.mark_non_differentiable(argmax)
    ctx.save_for_backward(rois, argmax)
    ctx.batch, _, ctx.height, ctx.width = features.shape


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    rois, argmax = ctx.saved_tensors
    features = roi_pool_backward_op(grad, rois, argmax, ctx.spatial_scale, ctx.batch, ctx.height, ctx.width)
    return features, None, None, None, None  # rois (as in torchvision), spatial_scale, pooled size: none


roi_pool_op.register_autograd(_backward, setup_context=_setup_context)
