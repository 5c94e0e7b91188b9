"""RoIPool in Triton, forward and backward; the backward is a gather, bitwise reproducible.

Pixel model, source and differences: roi_pool.py. Specification: reference.roi_pool.
Forward: a program takes one RoI, BINS of its bins and CHANNELS channels, and walks the pixels of all its bins at once.
Backward: RoIs are sorted by image; a program owns TILE x TILE pixels of CHANNELS channels, walks its image's
RoIs in index order, and of each takes the bins that reach the tile and whose maximum lies there; one store, no atomics.
Cost in bytes: roofline.min_bytes, pixels again for each bin that they are in. Speed: not yet measured.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels.fallback import roi as roi_fallback
from fastmask.kernels.jit import jit
from fastmask.kernels.launch import on_device
from fastmask.kernels.reference import COORDINATE_LIMIT, compute_dtype
from fastmask.kernels.triton.roi_geometry import (
    is_channels_last,
    is_wide,
    level_geometry,
    sort_by_map,
    strides_of,
)

BINS, CHANNELS = 8, 128  # of a forward program
NUM_WARPS = 4
TILE, GRAD_CHANNELS = 4, 64  # of a backward program: TILE x TILE pixels
ROIS = 16  # of a step of a backward program; 32 spill on sm_100 with Triton 3.6

VARYING = [
    *("batch", "height", "width", "stride_b", "stride_c", "stride_y", "stride_x"),
    *("spatial_scale", "lowest"),
]
_LIMIT = tl.constexpr(COORDINATE_LIMIT)


@triton.jit
def _round(value):
    """C's round(): halves go away from zero."""
    whole = value.to(tl.int32).to(tl.float32)
    away = tl.where(tl.abs(value - whole) >= 0.5, 1.0, 0.0)
    return whole + tl.where(value < 0, -away, away)


@triton.jit
def _locate(rois_ptr, roi, mask, batch, spatial_scale):
    """RoIs -> image, whole (x1, y1, x2, y2) on the map, and whether they are valid."""
    ptrs = rois_ptr + roi.to(tl.int64) * 5
    image = tl.load(ptrs, mask=mask, other=-1).to(tl.float32)
    x1 = tl.load(ptrs + 1, mask=mask, other=0).to(tl.float32) * spatial_scale
    y1 = tl.load(ptrs + 2, mask=mask, other=0).to(tl.float32) * spatial_scale
    x2 = tl.load(ptrs + 3, mask=mask, other=0).to(tl.float32) * spatial_scale
    y2 = tl.load(ptrs + 4, mask=mask, other=0).to(tl.float32) * spatial_scale
    valid = (image > -1) & (image < batch)  # NaN compares false
    valid = valid & (tl.abs(x1) <= _LIMIT) & (tl.abs(y1) <= _LIMIT) & (tl.abs(x2) <= _LIMIT) & (tl.abs(y2) <= _LIMIT)
    return (
        tl.where(valid, image, 0).to(tl.int64),
        _round(tl.where(valid, x1, 0)),
        _round(tl.where(valid, y1, 0)),
        _round(tl.where(valid, x2, 0)),
        _round(tl.where(valid, y2, 0)),
        valid,
    )


@triton.jit
def _bin_length(low, high, BINS: tl.constexpr):
    return tl.div_rn(tl.maximum(high - low + 1, 1.0), BINS * 1.0)


@triton.jit
def _span(low, high, bins, size, BINS: tl.constexpr):
    """First and one-past-last pixel of bins along one axis."""
    length = _bin_length(low, high, BINS)
    first = tl.floor(bins * length) + low
    past = tl.ceil((bins + 1) * length) + low
    last = size.to(tl.float32)
    first = tl.minimum(tl.maximum(first, 0.0), last)
    past = tl.minimum(tl.maximum(past, first), last)
    return first.to(tl.int32), past.to(tl.int32)


@jit(do_not_specialize=VARYING)
def _forward_kernel(
    # tensors
    map_ptr,  # [B, C, H, W] of any strides
    rois_ptr,  # [K, 5] (image, x1, y1, x2, y2)
    out_ptr,  # [K, POOLED_H, POOLED_W, C] out
    argmax_ptr,  # [K, POOLED_H, POOLED_W, C] out
    # sizes
    batch,
    channels,
    height,
    width,
    # strides
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    # what counts
    spatial_scale,
    lowest,  # finite value of the map's dtype
    # constants
    POOLED_H: tl.constexpr,
    POOLED_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,  # stride_c is 1
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
    stride_b = tl.multiple_of(stride_b.to(tl.int64), MULTIPLE)
    stride_y = tl.multiple_of(stride_y.to(tl.int64), MULTIPLE)
    stride_x = tl.multiple_of(stride_x.to(tl.int64), MULTIPLE)
    if CHANNELS_LAST:
        step_c: tl.constexpr = 1
    else:
        step_c = stride_c.to(tl.int64)

    # --- 1. find the pixels of each bin
    image, x1, y1, x2, y2, valid = _locate(rois_ptr, roi, True, batch, spatial_scale)
    top, bottom = _span(y1, y2, (offs_bin // POOLED_W).to(tl.float32), height, POOLED_H)
    left, right = _span(x1, x2, (offs_bin % POOLED_W).to(tl.float32), width, POOLED_W)
    bottom = tl.where(offs_bin < tl.where(valid, POOLED_H * POOLED_W, 0), bottom, top)
    filled = (bottom > top) & (right > left)
    bottom = tl.where(filled, bottom, top)
    base = map_ptr + image * stride_b + offs_c[None, :] * step_c
    # --- 2. take the maximum over them
    best = tl.zeros([BINS, CHANNELS], dtype=tl.float32) + lowest
    where = tl.full([BINS, CHANNELS], -1, dtype=tl.int64)
    for i in range(tl.max(bottom - top, axis=0)):
        y = tl.minimum(top + i, height - 1)
        for j in range(tl.max(right - left, axis=0)):
            x = tl.minimum(left + j, width - 1)
            inside = (top + i < bottom) & (left + j < right)
            offs = y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x
            value = tl.load(base + offs[:, None], mask=inside[:, None] & mask_c[None, :], other=0).to(tl.float32)
            better = (value > best) & inside[:, None]  # NaN never is
            best = tl.where(better, value, best)
            where = tl.where(better, (y.to(tl.int64) * width + x)[:, None], where)
    # --- 3. store maxima and their pixels
    best = tl.where(filled[:, None], best, 0.0)
    offs_out = (roi * (POOLED_H * POOLED_W) + offs_bin)[:, None] * channels + offs_c[None, :]
    mask = mask_bin[:, None] & mask_c[None, :]
    tl.store(out_ptr + offs_out, best.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(argmax_ptr + offs_out, where, mask=mask)


@triton.jit
def _find_bins(low, high, tile_start, TILE: tl.constexpr, BINS: tl.constexpr):
    """First and one-past-last of the bins along one axis that may have a pixel in the tile."""
    length = _bin_length(low, high, BINS)
    first = tl.floor((tile_start - 2 - low) / length)  # a pixel for the ceiling, one for rounding
    past = tl.floor((tile_start + TILE + 2 - low) / length) + 1
    first, past = tl.minimum(tl.maximum(first, 0.0), BINS * 1.0), tl.minimum(tl.maximum(past, 0.0), BINS * 1.0)
    return first.to(tl.int32), past.to(tl.int32)


@jit(do_not_specialize=VARYING)
def _backward_kernel(
    # tensors
    grad_ptr,  # [K, POOLED_H, POOLED_W, C]
    argmax_ptr,  # [K, POOLED_H, POOLED_W, C]
    rois_ptr,  # [K, 5]
    order_ptr,  # [K] RoIs sorted by image, those that do not count last
    starts_ptr,  # [B + 1] where each image begins there
    out_ptr,  # [B, H, W, C] out
    # sizes
    batch,
    channels,
    height,
    width,
    # what counts
    spatial_scale,
    # constants
    POOLED_H: tl.constexpr,
    POOLED_W: tl.constexpr,
    TILE: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROIS: tl.constexpr,
):
    # --- 1. locate the tile
    tiles_y, tiles_x = tl.cdiv(height, TILE), tl.cdiv(width, TILE)
    tile = tl.program_id(0)
    image = tile // (tiles_y * tiles_x)
    row, column = tile // tiles_x % tiles_y * TILE, tile % tiles_x * TILE
    tile_y, tile_x = row.to(tl.float32), column.to(tl.float32)
    offs_c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask_c = offs_c < channels
    pixels = tl.arange(0, TILE * TILE)
    lanes = tl.arange(0, ROIS)

    acc = tl.zeros([TILE * TILE, CHANNELS], dtype=tl.float32)
    begin, end = tl.load(starts_ptr + image), tl.load(starts_ptr + image + 1)
    for block in range(begin, end, ROIS):
        # --- 2. find the RoIs that may reach it, ROIS at a time
        mask_k = block + lanes < end
        members = tl.load(order_ptr + block + lanes, mask=mask_k, other=0)
        _image, x1, y1, x2, y2, valid = _locate(rois_ptr, members, mask_k, batch, spatial_scale)
        first_p, past_p = _find_bins(y1, y2, tile_y, TILE, POOLED_H)
        first_q, past_q = _find_bins(x1, x2, tile_x, TILE, POOLED_W)
        near = valid & (first_p < past_p) & (first_q < past_q)
        lane = tl.min(tl.where(near, lanes, ROIS), axis=0)
        # --- 3. add the gradients of their bins whose maximum lies here
        while lane < ROIS:
            roi = tl.load(order_ptr + block + lane).to(tl.int64)
            _same, left, top, right, bottom, _valid = _locate(rois_ptr, roi, True, batch, spatial_scale)
            p0, p1 = _find_bins(top, bottom, tile_y, TILE, POOLED_H)
            q0, q1 = _find_bins(left, right, tile_x, TILE, POOLED_W)
            for p in range(p0, p1):
                for q in range(q0, q1):
                    offs = ((roi * POOLED_H + p) * POOLED_W + q) * channels + offs_c
                    where = tl.load(argmax_ptr + offs, mask=mask_c, other=-1).to(tl.int32)
                    grad = tl.load(grad_ptr + offs, mask=mask_c, other=0).to(tl.float32)
                    y, x = where // width - row, where % width - column
                    here = (where >= 0) & (y >= 0) & (y < TILE) & (x >= 0) & (x < TILE)
                    hit = tl.where(here, y * TILE + x, -1)
                    acc += tl.where(pixels[:, None] == hit[None, :], grad[None, :], 0.0)
            lane = tl.min(tl.where(near & (lanes > lane), lanes, ROIS), axis=0)

    # --- 4. store the tile
    offs_y, offs_x = row + pixels // TILE, column + pixels % TILE
    rows = (image.to(tl.int64) * height + offs_y) * width + offs_x
    mask = ((offs_y < height) & (offs_x < width))[:, None] & mask_c[None, :]
    tl.store(out_ptr + rows[:, None] * channels + offs_c[None, :], acc.to(out_ptr.dtype.element_ty), mask=mask)


def roi_pool(
    features: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Tensor, Tensor]:
    """Shapes as in reference.py, channels-last. float64 takes the eager fallback."""
    if compute_dtype(features, rois) == torch.float64:
        return roi_fallback.roi_pool(features, rois, spatial_scale, pooled_height, pooled_width)
    batch, channels, height, width = features.shape
    out = roi_fallback.empty_channels_last(features, rois.shape[0], channels, pooled_height, pooled_width)
    argmax = torch.empty_like(out, dtype=torch.int64)
    if out.numel() == 0 or features.numel() == 0:
        return out.zero_(), argmax.fill_(-1)
    last = is_channels_last([features])
    stride_b, stride_c, stride_y, stride_x = strides_of(features)
    block = min(triton.next_power_of_2(channels), CHANNELS)
    programs = rois.shape[0] * triton.cdiv(pooled_height * pooled_width, BINS) * triton.cdiv(channels, block)
    with on_device(rois):
        _forward_kernel[(programs,)](
            # tensors
            map_ptr=features,
            rois_ptr=rois.contiguous(),
            out_ptr=out,
            argmax_ptr=argmax,
            # sizes
            batch=batch,
            channels=channels,
            height=height,
            width=width,
            # strides
            stride_b=stride_b,
            stride_c=stride_c,
            stride_y=stride_y,
            stride_x=stride_x,
            # what counts
            spatial_scale=spatial_scale,
            lowest=torch.finfo(features.dtype).min,
            # constants
            POOLED_H=pooled_height,
            POOLED_W=pooled_width,
            CHANNELS_LAST=last,
            MULTIPLE=16 if last and is_wide([features]) else 1,
            BINS=BINS,
            CHANNELS=block,
            num_warps=NUM_WARPS,
        )
    return out, argmax


def roi_pool_backward(
    grad: Tensor, rois: Tensor, argmax: Tensor, spatial_scale: float, batch: int, height: int, width: int
) -> Tensor:
    """Gradient and argmaxima [K, C, ph, pw] -> [B, C, H, W], channels-last, dtype of ``grad``; deterministic.

    float64 and maps of over 2^31 pixels take the eager fallback.
    """
    if compute_dtype(grad, rois) == torch.float64 or height * width >= 2**31:
        return roi_fallback.roi_pool_backward(grad, rois, argmax, spatial_scale, batch, height, width)
    _, channels, pooled_height, pooled_width = grad.shape
    out = roi_fallback.empty_channels_last(grad, batch, channels, height, width)
    if out.numel() == 0:
        return out
    rois = rois.contiguous()
    block = min(triton.next_power_of_2(channels), GRAD_CHANNELS)
    with on_device(rois):
        one_level = {**level_geometry([spatial_scale], [0.0]), "LEVELS": 1, "ALIGNED": False}
        order, starts = sort_by_map(rois, batch, one_level)
        tiles = batch * triton.cdiv(height, TILE) * triton.cdiv(width, TILE)
        _backward_kernel[(tiles, triton.cdiv(channels, block))](
            # tensors
            grad_ptr=grad.permute(0, 2, 3, 1).contiguous(),
            argmax_ptr=argmax.permute(0, 2, 3, 1).contiguous(),
            rois_ptr=rois,
            order_ptr=order,
            starts_ptr=starts,
            out_ptr=out,
            # sizes
            batch=batch,
            channels=channels,
            height=height,
            width=width,
            # what counts
            spatial_scale=spatial_scale,
            # constants
            POOLED_H=pooled_height,
            POOLED_W=pooled_width,
            TILE=TILE,
            CHANNELS=block,
            ROIS=ROIS,
        )
    return out
