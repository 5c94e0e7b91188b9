"""RoIAlign over a pyramid in Triton, backward: a gather, the same bits in every run.

Pixel model, source and differences: roi_align.py. Specification: the transpose of reference.multilevel_roi_align.
RoIs are sorted by (level, image). A program owns TILE x TILE pixels of one map; it walks its image's RoIs in index
order and of each the bins that reach the tile, sums in float32 registers, and stores once: no atomics on the result, no
zero-fill and no cast. The weights are separable: a bin's rows are weighted first, then spread over the columns.
Cost in bytes: traffic.least_bytes, but the gradient's bins once for each tile they reach, and 20 a RoI and tile.
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
    sort_by_map,
)
from fastmask.kernels.launch import on_device
from fastmask.kernels.reference import compute_dtype

TILE, CHANNELS = 8, 64  # of a program: TILE x TILE pixels
ROIS = 32  # that a program looks at together
NUM_WARPS = 4

# the values of all levels stand on one line
# fmt: off


@triton.jit
def _weights(edge, length, grid, pixels, size, tile_start, TILE: tl.constexpr, RATIO: tl.constexpr):
    """What one bin's samples along one axis give each of the tile's pixels [TILE], divided by their number."""
    weight = tl.zeros([TILE], dtype=tl.float32)
    if RATIO > 0:
        for i in tl.static_range(RATIO):
            weight += _hat(edge + tl.div_rn((i + 0.5) * length, RATIO * 1.0), pixels, size)
    else:
        reach = TILE + 4.0  # samples further off the tile's first pixel than that, on either side, give it nothing
        first = tl.floor((tile_start - 2.0 - edge) * grid / length - 2)
        first = tl.maximum(tl.where(length > 0, first, 0.0), 0.0)
        most = tl.minimum(tl.ceil(reach * grid / length) + 4, grid - first)
        most = tl.where(length > 0, most, 0.0)
        for i in range(most.to(tl.int32)):
            weight += _hat(edge + tl.div_rn((first + i + 0.5) * length, grid), pixels, size)
    return weight / tl.maximum(grid, 1.0)


@triton.jit
def _hat(position, pixels, size):
    """The bilinear weight of a sample at a scalar position for each pixel."""
    inside = (position >= -1) & (position <= size)
    position = tl.minimum(tl.maximum(position, 0.0), (size - 1).to(tl.float32))
    return tl.where(inside, tl.maximum(1 - tl.abs(pixels - position), 0.0), 0.0)


@triton.jit
def _reached(start, length, tile_start, TILE: tl.constexpr, BINS: tl.constexpr):
    """First and one-past-last of the bins along one axis whose samples may reach the tile."""
    slack = 2.0 + tl.abs(start) * 2.4e-7  # a pixel for the interpolation, one and an ulp for rounding
    first = tl.floor((tile_start - slack - start) / length)
    past = tl.floor((tile_start + TILE + slack - start) / length) + 1
    first = tl.where(length > 0, tl.minimum(tl.maximum(first, 0.0), BINS * 1.0), 0.0)
    past = tl.where(length > 0, tl.minimum(tl.maximum(past, 0.0), BINS * 1.0), BINS * 1.0)
    return first.to(tl.int32), past.to(tl.int32)


@triton.jit(do_not_specialize=VARYING)
def _backward_kernel(
    # tensors
    grad_ptr,  # [K, POOLED_H, POOLED_W, C]
    rois_ptr,  # [K, 5]
    order_ptr,  # [K] RoIs sorted by (level, image), those that do not count last
    starts_ptr,  # [LEVELS * batch + 1] where each (level, image) begins there
    out0_ptr,  # [B, H_0, W_0, C] out
    out1_ptr,
    out2_ptr,
    out3_ptr,
    out4_ptr,
    # sizes
    batch,
    channels,
    height0, height1, height2, height3, height4,
    width0, width1, width2, width3, width4,
    # level geometry
    scale0, scale1, scale2, scale3, scale4,
    limit0, limit1, limit2, limit3,
    # constants
    LEVELS: tl.constexpr,
    POOLED_H: tl.constexpr,
    POOLED_W: tl.constexpr,
    RATIO: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROIS: tl.constexpr,
):
    tile = tl.program_id(0)
    offs_c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask_c = offs_c < channels
    level = tl.full([], 0, tl.int32)
    past = batch * tl.cdiv(height0, TILE) * tl.cdiv(width0, TILE)
    first = past * 0
    if LEVELS > 1:
        level += (tile >= past).to(tl.int32)
        first = tl.where(tile >= past, past, first)
        past += batch * tl.cdiv(height1, TILE) * tl.cdiv(width1, TILE)
    if LEVELS > 2:
        level += (tile >= past).to(tl.int32)
        first = tl.where(tile >= past, past, first)
        past += batch * tl.cdiv(height2, TILE) * tl.cdiv(width2, TILE)
    if LEVELS > 3:
        level += (tile >= past).to(tl.int32)
        first = tl.where(tile >= past, past, first)
        past += batch * tl.cdiv(height3, TILE) * tl.cdiv(width3, TILE)
    if LEVELS > 4:
        level += (tile >= past).to(tl.int32)
        first = tl.where(tile >= past, past, first)
    height = of_level(level, height0, height1, height2, height3, height4, LEVELS)
    width = of_level(level, width0, width1, width2, width3, width4, LEVELS)
    tiles_y, tiles_x = tl.cdiv(height, TILE), tl.cdiv(width, TILE)
    tile -= first
    image = tile // (tiles_y * tiles_x)
    row = tile // tiles_x % tiles_y * TILE
    column = tile % tiles_x * TILE
    offs_y, offs_x = row + tl.arange(0, TILE), column + tl.arange(0, TILE)
    tile_y, tile_x = row.to(tl.float32), column.to(tl.float32)

    acc = tl.zeros([TILE, TILE, CHANNELS], dtype=tl.float32)
    begin = tl.load(starts_ptr + level * batch + image)
    end = tl.load(starts_ptr + level * batch + image + 1)
    for block in range(begin, end, ROIS):
        offs_k = block + tl.arange(0, ROIS)
        mask_k = offs_k < end
        members = tl.load(order_ptr + offs_k, mask=mask_k, other=0)
        _, _, start_x, start_y, roi_w, roi_h, valid = locate(
            rois_ptr, members, mask_k, batch, scale0, scale1, scale2, scale3, scale4,
            limit0, limit1, limit2, limit3, LEVELS, ALIGNED,
        )
        first_p, past_p = _reached(start_y, tl.div_rn(roi_h, POOLED_H * 1.0), tile_y, TILE, POOLED_H)
        first_q, past_q = _reached(start_x, tl.div_rn(roi_w, POOLED_W * 1.0), tile_x, TILE, POOLED_W)
        near = valid & (first_p < past_p) & (first_q < past_q)
        lanes = tl.arange(0, ROIS)
        lane = tl.min(tl.where(near, lanes, ROIS), axis=0)
        while lane < ROIS:
            roi = tl.load(order_ptr + block + lane).to(tl.int64)
            _image, _level, x, y, w, h, _valid = locate(
                rois_ptr, roi, True, batch, scale0, scale1, scale2, scale3, scale4,
                limit0, limit1, limit2, limit3, LEVELS, ALIGNED,
            )
            bin_w, bin_h = tl.div_rn(w, POOLED_W * 1.0), tl.div_rn(h, POOLED_H * 1.0)
            grid_w, grid_h = samples_of(bin_w, RATIO), samples_of(bin_h, RATIO)
            p0, p1 = _reached(y, bin_h, tile_y, TILE, POOLED_H)
            q0, q1 = _reached(x, bin_w, tile_x, TILE, POOLED_W)
            for q in range(q0, q1):
                weight_x = _weights(x + q * bin_w, bin_w, grid_w, offs_x, width, tile_x, TILE, RATIO)
                columns = tl.zeros([TILE, CHANNELS], dtype=tl.float32)
                for p in range(p0, p1):
                    weight_y = _weights(y + p * bin_h, bin_h, grid_h, offs_y, height, tile_y, TILE, RATIO)
                    ptrs = grad_ptr + ((roi * POOLED_H + p) * POOLED_W + q) * channels + offs_c
                    grad = tl.load(ptrs, mask=mask_c, other=0).to(tl.float32)
                    # a pixel that no sample touches gets 0, not 0 * NaN
                    columns += tl.where(weight_y[:, None] > 0, weight_y[:, None] * grad[None, :], 0.0)
                spread = weight_x[None, :, None] * columns[:, None, :]
                acc += tl.where(weight_x[None, :, None] > 0, spread, 0.0)
            lane = tl.min(tl.where(near & (lanes > lane), lanes, ROIS), axis=0)

    out = of_level(level, out0_ptr, out1_ptr, out2_ptr, out3_ptr, out4_ptr, LEVELS)
    rows = (image.to(tl.int64) * height + offs_y)[:, None] * width + offs_x[None, :]
    mask = ((offs_y < height)[:, None] & (offs_x < width)[None, :])[:, :, None] & mask_c[None, None, :]
    ptrs_out = out + rows[:, :, None] * channels + offs_c[None, None, :]
    tl.store(ptrs_out, acc.to(out0_ptr.dtype.element_ty), mask=mask)


# fmt: on


def multilevel_roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    batch: int,
    heights: Sequence[int],
    widths: Sequence[int],
    scales: Sequence[float],
    level_limits: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> list[Tensor]:
    """Gradient [K, C, ph, pw] -> one [B, C, H_l, W_l] a level, channels-last, dtype of ``grad``; deterministic."""
    if compute_dtype(grad, rois) == torch.float64 or len(heights) > MAX_LEVELS:
        return cpu_roi.multilevel_roi_align_backward(
            grad, rois, batch, heights, widths, scales, level_limits, sampling_ratio, aligned
        )
    _, channels, pooled_height, pooled_width = grad.shape
    sizes = list(zip(heights, widths, strict=True))
    outs = [cpu_roi.empty_channels_last(grad, batch, channels, height, width) for height, width in sizes]
    tiles = sum(batch * triton.cdiv(height, TILE) * triton.cdiv(width, TILE) for height, width in sizes)
    if tiles == 0 or channels == 0:
        return outs
    rois = rois.contiguous()
    geometry = {**level_geometry(scales, level_limits), "LEVELS": len(sizes), "ALIGNED": aligned}
    block = min(triton.next_power_of_2(channels), CHANNELS)
    with on_device(rois):
        order, starts = sort_by_map(rois, batch, geometry)
        _backward_kernel[(tiles, triton.cdiv(channels, block))](
            # tensors
            grad_ptr=grad.permute(0, 2, 3, 1).contiguous(),
            rois_ptr=rois,
            order_ptr=order,
            starts_ptr=starts,
            **by_level("out{}_ptr", outs),
            # sizes
            batch=batch,
            channels=channels,
            **by_level("height{}", heights),
            **by_level("width{}", widths),
            # level geometry, constants
            **geometry,
            POOLED_H=pooled_height,
            POOLED_W=pooled_width,
            RATIO=max(sampling_ratio, 0),
            TILE=TILE,
            CHANNELS=block,
            ROIS=ROIS,
            num_warps=NUM_WARPS,
        )
    return outs
