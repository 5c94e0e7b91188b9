"""RoIAlign over a pyramid in Triton, forward: one launch for all levels and images.

Pixel model, source and differences: roi_align.py. Specification: reference.multilevel_roi_align.
A program takes one RoI, BINS of its bins and CHANNELS channels; it chooses the level itself and computes the geometry
once; a tap of channels-last features is one contiguous row of CHANNELS, 16 bytes a thread. Any strides work, uncopied.
Cost in bytes: traffic.least_bytes at best, where the 16 taps of a bin at sampling_ratio 2 come from the cache.
Speed: not yet measured.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels import cpu_roi
from fastmask.kernels.gpu_roi_geometry import (
    MAX_LEVELS,
    VARYING,
    by_level,
    level_geometry,
    locate,
    of_level,
    samples_of,
)
from fastmask.kernels.launch import on_device
from fastmask.kernels.reference import compute_dtype

BINS = 8  # of a program
CHANNELS, APART_CHANNELS = 256, 64  # likewise, where channels are contiguous and where they lie apart
NUM_WARPS = 8

# the values of all levels stand on one line
# fmt: off


@triton.jit
def _sample(base, y, x, valid, offs_c, mask_c, height, width, stride_c, stride_y, stride_x):
    """Bilinear samples of one map at (y, x) [BINS] -> [BINS, CHANNELS]."""
    inside = valid & (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y = tl.minimum(tl.maximum(tl.where(inside, y, 0.0), 0.0), (height - 1).to(tl.float32))
    x = tl.minimum(tl.maximum(tl.where(inside, x, 0.0), 0.0), (width - 1).to(tl.float32))
    y0, x0 = y.to(tl.int32), x.to(tl.int32)
    y1, x1 = tl.minimum(y0 + 1, height - 1), tl.minimum(x0 + 1, width - 1)
    dy, dx = y - y0, x - x0
    row0, row1 = y0.to(tl.int64) * stride_y, y1.to(tl.int64) * stride_y
    column0, column1 = x0.to(tl.int64) * stride_x, x1.to(tl.int64) * stride_x
    ptrs = base + offs_c[None, :] * stride_c
    mask = inside[:, None] & mask_c[None, :]
    v00 = tl.load(ptrs + (row0 + column0)[:, None], mask=mask, other=0).to(tl.float32)
    v01 = tl.load(ptrs + (row0 + column1)[:, None], mask=mask, other=0).to(tl.float32)
    v10 = tl.load(ptrs + (row1 + column0)[:, None], mask=mask, other=0).to(tl.float32)
    v11 = tl.load(ptrs + (row1 + column1)[:, None], mask=mask, other=0).to(tl.float32)
    top = ((1 - dy) * (1 - dx))[:, None] * v00 + ((1 - dy) * dx)[:, None] * v01
    bottom = (dy * (1 - dx))[:, None] * v10 + (dy * dx)[:, None] * v11
    return top + bottom


@triton.jit
def _first_sample(edge, length, grid, size, most):
    """The first sample of each bin that can fall on a map of that size, of which at most ``most`` in a row can."""
    first = tl.floor((-1 - edge) * grid / length - 2)
    first = tl.where(length > 0, first, 0.0)
    return tl.minimum(tl.maximum(first, 0.0), tl.maximum(grid - most, 0.0))


@triton.jit(do_not_specialize=VARYING)
def _forward_kernel(
    # tensors
    map0_ptr,  # [B, C, H_0, W_0] of any strides
    map1_ptr,
    map2_ptr,
    map3_ptr,
    map4_ptr,
    rois_ptr,  # [K, 5] (image, x1, y1, x2, y2)
    out_ptr,  # [K, POOLED_H, POOLED_W, C] out
    # sizes
    batch,
    channels,
    height0, height1, height2, height3, height4,
    width0, width1, width2, width3, width4,
    # strides
    stride_b0, stride_b1, stride_b2, stride_b3, stride_b4,
    stride_c0, stride_c1, stride_c2, stride_c3, stride_c4,
    stride_y0, stride_y1, stride_y2, stride_y3, stride_y4,
    stride_x0, stride_x1, stride_x2, stride_x3, stride_x4,
    # level geometry
    scale0, scale1, scale2, scale3, scale4,
    limit0, limit1, limit2, limit3,
    # constants
    LEVELS: tl.constexpr,
    POOLED_H: tl.constexpr,
    POOLED_W: tl.constexpr,
    RATIO: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,  # stride_c is 1 everywhere
    MULTIPLE: tl.constexpr,  # what all other strides are a multiple of: 16 where loads may be wide, else 1
    BINS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    bin_blocks: tl.constexpr = (POOLED_H * POOLED_W + BINS - 1) // BINS
    channel_blocks = tl.cdiv(channels, CHANNELS)
    pid = tl.program_id(0)
    roi = (pid // (bin_blocks * channel_blocks)).to(tl.int64)
    offs_bin = (pid // channel_blocks) % bin_blocks * BINS + tl.arange(0, BINS)
    offs_c = pid % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    mask_bin, mask_c = offs_bin < POOLED_H * POOLED_W, offs_c < channels

    image, level, start_x, start_y, roi_w, roi_h, valid = locate(
        rois_ptr, roi, True, batch, scale0, scale1, scale2, scale3, scale4,
        limit0, limit1, limit2, limit3, LEVELS, ALIGNED,
    )
    base = of_level(level, map0_ptr, map1_ptr, map2_ptr, map3_ptr, map4_ptr, LEVELS)
    height = of_level(level, height0, height1, height2, height3, height4, LEVELS)
    width = of_level(level, width0, width1, width2, width3, width4, LEVELS)
    stride_b = of_level(level, stride_b0, stride_b1, stride_b2, stride_b3, stride_b4, LEVELS).to(tl.int64)
    stride_y = of_level(level, stride_y0, stride_y1, stride_y2, stride_y3, stride_y4, LEVELS).to(tl.int64)
    stride_x = of_level(level, stride_x0, stride_x1, stride_x2, stride_x3, stride_x4, LEVELS).to(tl.int64)
    stride_b, stride_y, stride_x = (
        tl.multiple_of(stride_b, MULTIPLE),
        tl.multiple_of(stride_y, MULTIPLE),
        tl.multiple_of(stride_x, MULTIPLE),
    )
    if CHANNELS_LAST:
        stride_c: tl.constexpr = 1
    else:
        stride_c = of_level(level, stride_c0, stride_c1, stride_c2, stride_c3, stride_c4, LEVELS).to(tl.int64)
    base += image * stride_b
    valid = valid & (height > 0) & (width > 0)

    bin_w, bin_h = tl.div_rn(roi_w, POOLED_W * 1.0), tl.div_rn(roi_h, POOLED_H * 1.0)
    edge_y = start_y + (offs_bin // POOLED_W).to(tl.float32) * bin_h
    edge_x = start_x + (offs_bin % POOLED_W).to(tl.float32) * bin_w
    counts = offs_bin < tl.where(valid, POOLED_H * POOLED_W, 0)  # a mask & a scalar is unusable in Triton 3.9
    acc = tl.zeros([BINS, CHANNELS], dtype=tl.float32)
    # rounded as elsewhere: a sample on the border of the map counts or does not
    if RATIO > 0:
        for i in tl.static_range(RATIO):
            y = edge_y + tl.div_rn((i + 0.5) * bin_h, RATIO * 1.0)
            for j in tl.static_range(RATIO):
                x = edge_x + tl.div_rn((j + 0.5) * bin_w, RATIO * 1.0)
                acc += _sample(base, y, x, counts, offs_c, mask_c, height, width, stride_c, stride_y, stride_x)
        acc = acc / (RATIO * RATIO)
    else:
        grid_h, grid_w = samples_of(bin_h, RATIO), samples_of(bin_w, RATIO)
        most_h = tl.minimum(grid_h, (2 * height + 6).to(tl.float32))
        most_w = tl.minimum(grid_w, (2 * width + 6).to(tl.float32))
        first_y = _first_sample(edge_y, bin_h, grid_h, height, most_h)
        first_x = _first_sample(edge_x, bin_w, grid_w, width, most_w)
        for i in range(most_h.to(tl.int32)):
            y = edge_y + tl.div_rn((first_y + i + 0.5) * bin_h, grid_h)
            for j in range(most_w.to(tl.int32)):
                x = edge_x + tl.div_rn((first_x + j + 0.5) * bin_w, grid_w)
                acc += _sample(base, y, x, counts, offs_c, mask_c, height, width, stride_c, stride_y, stride_x)
        acc = acc / tl.maximum(grid_h * grid_w, 1.0)

    ptrs_out = out_ptr + (roi * (POOLED_H * POOLED_W) + offs_bin)[:, None] * channels + offs_c[None, :]
    tl.store(ptrs_out, acc.to(out_ptr.dtype.element_ty), mask=mask_bin[:, None] & mask_c[None, :])


# fmt: on


def multilevel_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    scales: Sequence[float],
    level_limits: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Shapes as in reference.py -> [K, C, pooled_height, pooled_width], channels-last. float64 is plain PyTorch's."""
    if compute_dtype(*features, rois) == torch.float64 or len(features) > MAX_LEVELS:
        return cpu_roi.multilevel_roi_align(
            features, rois, scales, level_limits, pooled_height, pooled_width, sampling_ratio, aligned
        )
    batch, channels = features[0].shape[:2]
    out = cpu_roi.empty_channels_last(features[0], rois.shape[0], channels, pooled_height, pooled_width)
    if out.numel() == 0 or batch == 0:
        return out.zero_()
    last = all(feature.stride(1) == 1 for feature in features)
    wide = last and all(
        feature.data_ptr() % 16 == 0 and all(feature.stride(axis) % 16 == 0 for axis in (0, 2, 3))
        for feature in features
    )
    block = min(triton.next_power_of_2(channels), CHANNELS if last else APART_CHANNELS)
    programs = rois.shape[0] * triton.cdiv(pooled_height * pooled_width, BINS) * triton.cdiv(channels, block)
    with on_device(rois):
        _forward_kernel[(programs,)](
            # tensors
            **by_level("map{}_ptr", features),
            rois_ptr=rois.contiguous(),
            out_ptr=out,
            # sizes
            batch=batch,
            channels=channels,
            **by_level("height{}", [feature.shape[2] for feature in features]),
            **by_level("width{}", [feature.shape[3] for feature in features]),
            # strides
            **by_level("stride_b{}", [feature.stride(0) for feature in features]),
            **by_level("stride_c{}", [feature.stride(1) for feature in features]),
            **by_level("stride_y{}", [feature.stride(2) for feature in features]),
            **by_level("stride_x{}", [feature.stride(3) for feature in features]),
            # level geometry
            **level_geometry(scales, level_limits),
            # constants
            LEVELS=len(features),
            POOLED_H=pooled_height,
            POOLED_W=pooled_width,
            RATIO=max(sampling_ratio, 0),
            ALIGNED=aligned,
            CHANNELS_LAST=last,
            MULTIPLE=16 if wide else 1,
            BINS=BINS,
            CHANNELS=block,
            num_warps=NUM_WARPS,
        )
    return out
