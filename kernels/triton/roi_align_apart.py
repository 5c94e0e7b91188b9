"""RoIAlign over a feature pyramid in Triton, forward, of maps that are not channels-last (NCHW), read in place.

It serves RoIs too few to pay for a channels-last copy of the maps, and maps too large for one. Pixel model, border
rule: roi_align.py. A program takes BINS bins of one RoI and CHANNELS channels: the lanes of a warp run along the bins,
so that a request touches the lines of neighboring bins, about 7 as in torchvision, instead of one a channel: 32.
Predicted for 100 RoIs of 7 x 7 x 256 on an H100: 11 us of instructions at the ideal rate.
Speed: not yet measured.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels.jit import jit
from fastmask.kernels.triton.roi_geometry import (
    MAX_LEVELS,
    MIXED,
    TYPES,
    VARYING,
    by_level,
    count_walked,
    first_sample,
    is_sampled,
    locate_exactly,
    name_ratio,
    neighbors,
    of_level,
    samples_of,
    strides_of,
)
from fastmask.kernels.variant import DTYPES, Variant, pointers

BINS, CHANNELS = 64, 16  # of a program
NUM_WARPS = 4

# the values of all levels stand on one line
# fmt: off


@jit(do_not_specialize=VARYING)
def _apart_kernel(
    # tensors
    map0_ptr, map1_ptr, map2_ptr, map3_ptr, map4_ptr,  # [B, C, H_l, W_l] of any strides
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
    BINS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    # --- 1. find this program's bins and channels
    bin_blocks: tl.constexpr = (POOLED_H * POOLED_W + BINS - 1) // BINS
    roi = (tl.program_id(0) // bin_blocks).to(tl.int64)
    offs_bin = tl.program_id(0) % bin_blocks * BINS + tl.arange(0, BINS)
    offs_c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask_bin, mask_c = offs_bin < POOLED_H * POOLED_W, offs_c < channels

    # --- 2. locate the RoI and its map
    image, level, start_x, start_y, roi_w, roi_h, valid = locate_exactly(
        rois_ptr, roi, True, batch, scale0, scale1, scale2, scale3, scale4,
        limit0, limit1, limit2, limit3, LEVELS, ALIGNED,
    )
    base = of_level(level, map0_ptr, map1_ptr, map2_ptr, map3_ptr, map4_ptr, LEVELS)
    height = of_level(level, height0, height1, height2, height3, height4, LEVELS)
    width = of_level(level, width0, width1, width2, width3, width4, LEVELS)
    stride_b = of_level(level, stride_b0, stride_b1, stride_b2, stride_b3, stride_b4, LEVELS).to(tl.int64)
    stride_c = of_level(level, stride_c0, stride_c1, stride_c2, stride_c3, stride_c4, LEVELS).to(tl.int64)
    stride_y = of_level(level, stride_y0, stride_y1, stride_y2, stride_y3, stride_y4, LEVELS).to(tl.int64)
    stride_x = of_level(level, stride_x0, stride_x1, stride_x2, stride_x3, stride_x4, LEVELS).to(tl.int64)
    ptrs = base + image * stride_b + (offs_c * stride_c)[:, None]
    valid = valid & (height > 0) & (width > 0)
    height, width = tl.where(valid, height, -2), tl.where(valid, width, -2)  # no sample counts there

    # --- 3. find the samples of each bin, and sum them
    offs_p, offs_q = offs_bin // POOLED_W, offs_bin % POOLED_W
    grid_y, grid_x = samples_of(roi_h, level, POOLED_H, RATIO), samples_of(roi_w, level, POOLED_W, RATIO)
    num_y, num_x = grid_y.to(tl.float32), grid_x.to(tl.float32)
    bin_h, bin_w = tl.div_rn(roi_h.to(tl.float32), POOLED_H * 1.0), tl.div_rn(roi_w.to(tl.float32), POOLED_W * 1.0)
    step_y, step_x = tl.div_rn(bin_h, tl.maximum(num_y, 1.0)), tl.div_rn(bin_w, tl.maximum(num_x, 1.0))
    edge_y, edge_x = start_y.to(tl.float32) + offs_p * bin_h, start_x.to(tl.float32) + offs_q * bin_w
    most_y, most_x = count_walked(num_y, height, RATIO), count_walked(num_x, width, RATIO)
    first_y = first_sample(edge_y, bin_h, num_y, most_y)
    first_x = first_sample(edge_x, bin_w, num_x, most_x)
    acc = tl.zeros([CHANNELS, BINS], dtype=tl.float32)
    for i in range(most_y.to(tl.int32)):
        sample_y = first_y + i
        y_before, y_after, dy = neighbors(edge_y + (sample_y + 0.5) * step_y, height)
        row0, row1 = y_before.to(tl.int64) * stride_y, y_after.to(tl.int64) * stride_y
        mask_y = is_sampled(start_y, roi_h, offs_p * grid_y + sample_y, POOLED_H * grid_y, height) & mask_bin
        for j in range(most_x.to(tl.int32)):
            sample_x = first_x + j
            x_before, x_after, dx = neighbors(edge_x + (sample_x + 0.5) * step_x, width)
            column0, column1 = x_before.to(tl.int64) * stride_x, x_after.to(tl.int64) * stride_x
            mask_x = is_sampled(start_x, roi_w, offs_q * grid_x + sample_x, POOLED_W * grid_x, width)
            mask = mask_c[:, None] & (mask_y & mask_x)[None, :]
            v00 = tl.load(ptrs + (row0 + column0)[None, :], mask=mask, other=0).to(tl.float32)
            v01 = tl.load(ptrs + (row0 + column1)[None, :], mask=mask, other=0).to(tl.float32)
            v10 = tl.load(ptrs + (row1 + column0)[None, :], mask=mask, other=0).to(tl.float32)
            v11 = tl.load(ptrs + (row1 + column1)[None, :], mask=mask, other=0).to(tl.float32)
            acc = tl.fma(((1 - dy) * (1 - dx))[None, :], v00, acc)
            acc = tl.fma(((1 - dy) * dx)[None, :], v01, acc)
            acc = tl.fma((dy * (1 - dx))[None, :], v10, acc)
            acc = tl.fma((dy * dx)[None, :], v11, acc)
    acc = acc * tl.div_rn(1.0, tl.maximum(num_y * num_x, 1.0))

    # --- 4. write along channels
    ptrs_out = out_ptr + (roi * (POOLED_H * POOLED_W) + offs_bin)[:, None] * channels + offs_c[None, :]
    tl.store(ptrs_out, tl.trans(acc).to(out_ptr.dtype.element_ty), mask=mask_bin[:, None] & mask_c[None, :])


# fmt: on


def launch(features: Sequence[Tensor], rois: Tensor, out: Tensor, geometry: dict[str, Any]) -> None:
    """Fill ``out`` [K, C, POOLED_H, POOLED_W], channels-last. ``geometry``: scales, limits, and LEVELS to RATIO."""
    num_rois, channels, pooled_height, pooled_width = out.shape
    strides = [strides_of(feature) for feature in features]
    bins, block = (
        min(triton.next_power_of_2(n), most) for n, most in ((pooled_height * pooled_width, BINS), (channels, CHANNELS))
    )
    _apart_kernel[(num_rois * triton.cdiv(pooled_height * pooled_width, bins), triton.cdiv(channels, block))](
        # tensors
        **by_level("map{}_ptr", features),
        rois_ptr=rois,
        out_ptr=out,
        # sizes
        batch=features[0].shape[0],
        channels=channels,
        **by_level("height{}", [feature.shape[2] for feature in features]),
        **by_level("width{}", [feature.shape[3] for feature in features]),
        # strides
        **by_level("stride_b{}", [stride[0] for stride in strides]),
        **by_level("stride_c{}", [stride[1] for stride in strides]),
        **by_level("stride_y{}", [stride[2] for stride in strides]),
        **by_level("stride_x{}", [stride[3] for stride in strides]),
        # level geometry, constants
        **geometry,
        BINS=bins,
        CHANNELS=block,
        num_warps=NUM_WARPS,
    )


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: dtypes, numbers of levels, sampling ratios."""
    for dtype, levels, ratio in itertools.product(DTYPES, (4, 1), (2, 0, MIXED)):
        if ratio < 0 and levels == 1:
            continue
        yield Variant(
            f"RoIAlign forward, NCHW, {dtype}, {levels} levels, sampling ratio {name_ratio(ratio)}",
            _apart_kernel,
            TYPES | pointers(dtype, "out", *(f"map{level}" for level in range(MAX_LEVELS))),
            {"LEVELS": levels, "POOLED_H": 7, "POOLED_W": 7, "RATIO": ratio, "ALIGNED": False}
            | {"BINS": BINS, "CHANNELS": CHANNELS},
            {"num_warps": NUM_WARPS},
            multiples=("channels",),
            default=(levels, ratio) == (4, 2),
            wide=("STG",),
        )
