"""RoIAlign over a feature pyramid in Triton, forward: one launch for all levels and images.

Pixel model, border rule, source and differences: roi_align.py. Specification: reference.multilevel_roi_align.
A program takes one RoI, COLUMNS columns of its bins and TILES x CHANNELS channels, and walks down the rows: it computes
the level, the RoI and the columns' taps once. A tap is one contiguous row of CHANNELS, 16 bytes a thread:
    program (RoI, columns 0-7, channels 0-255)                  bin (p, q), sampling_ratio 2: 4 samples of 4 taps
      p = 0  2 tiles [8 bins x 128 channels] -> store             row0  o--o----o--o
      p = 1  2 tiles [8 bins x 128 channels] -> store             row1  o--o----o--o   acc = fma(weight, tap, acc)
      ...                                                         and two rows more below
RoIs with all samples on the map, nearly all of them, are read without masks. Maps that are not channels-last are copied
first where taps outnumber pixels (triton/channels_last.py), else read in place (triton/roi_align_apart.py).
Cost in bytes: roofline.min_bytes at best, where the 16 taps of a bin at sampling_ratio 2 come from the cache.
Predicted (README.md) for 1000 RoIs of 7 x 7 x 256 bfloat16: 77 -> 51 us, ideal instruction issue 55 -> 25,
because a RoI's geometry is computed twice instead of seven times (290 of 901 instructions), a tap costs one
multiply-add instead of 1.5 operations, and two tiles share addresses and weights. On an H200 (bc309f8): 34 us, 39 with
a cold L2 cache; 138 for 8 x 512 RoIs; 23 for 100 RoIs of 14 x 14 from float32 maps.
Each level's values are parameters of their own. Triton 3.6 and 3.8 compile tuples of them, 26 parameters instead of 57,
to the same PTX, but specialize a tuple's members despite ``do_not_specialize``: ``native_specialize_impl(backend,
(16, 1), False, False, True)`` gives the keys "D" and 1, where 16 alone gives None. Pairs of images padded to multiples
of 32, short side at most 800, long side 800 to 1344, would compile 35 variants of this kernel instead of one.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels.fallback import roi as roi_fallback
from fastmask.kernels.jit import Plan, jit
from fastmask.kernels.launch import INTERPRET, on_device
from fastmask.kernels.reference import compute_dtype
from fastmask.kernels.triton import channels_last as channels_last_triton, roi_align_apart as roi_align_apart_triton
from fastmask.kernels.triton.roi_align_tile import register_limit, tile_of
from fastmask.kernels.triton.roi_geometry import (
    MAX_LEVELS,
    VARYING,
    Layout,
    count_walked,
    first_sample,
    fits_digits,
    is_channels_last,
    is_sampled,
    is_wide,
    layouts_of,
    level_geometry,
    level_numbers,
    locate_exactly,
    neighbors,
    of_level,
    offset_type,
    pack_ratios,
    pad_levels,
    samples_of,
)
from fastmask.kernels.tuning import tuned_value

CHANNELS = 128  # of a tile, at most
ADAPTIVE = 2  # samples a bin and axis, assumed where they depend on the RoIs or their levels
PROGRAMS = 1024  # at least, for few RoIs by fewer rows each: several for each multiprocessor

# the values of all levels stand on one line
# fmt: off


@triton.jit
def _read(ptrs, mask, ALL: tl.constexpr):
    """Taps [COLUMNS, CHANNELS] in float32; two bfloat16 lie in an int32, each the upper half of its float32."""
    value = tl.load(ptrs) if ALL else tl.load(ptrs, mask=mask, other=0)
    if ptrs.dtype.element_ty == tl.int32:
        even, odd = (value << 16).to(tl.float32, bitcast=True), (value & -65536).to(tl.float32, bitcast=True)
        return tl.join(even, odd).reshape(value.shape[0], value.shape[1] * 2)
    else:
        return value.to(tl.float32)


@triton.jit
def _add_tap(acc, more, weight, ptrs, mask, ALL: tl.constexpr, MORE: tl.constexpr):
    """acc and, if there is a second tile MORE elements further, more: with a weighted tap of each bin."""
    acc = tl.fma(weight[:, None], _read(ptrs, mask, ALL), acc)
    if MORE > 0:
        more = tl.fma(weight[:, None], _read(ptrs + MORE, mask, ALL), more)
    return acc, more


@triton.jit
def _add_sample(
    acc, more, row0, row1, weight0, weight1, x, offs_c, mask, width, stride_x,
    OFFSET: tl.constexpr, ALL: tl.constexpr, MORE: tl.constexpr,
):
    """One sample of each bin, at columns x of two weighted rows of the map, added."""
    x0, x1, dx = neighbors(x, width)
    offs0 = (x0.to(OFFSET) * stride_x)[:, None] + offs_c[None, :]
    offs1 = (x1.to(OFFSET) * stride_x)[:, None] + offs_c[None, :]
    acc, more = _add_tap(acc, more, weight0 * (1 - dx), row0 + offs0, mask, ALL, MORE)
    acc, more = _add_tap(acc, more, weight0 * dx, row0 + offs1, mask, ALL, MORE)
    acc, more = _add_tap(acc, more, weight1 * (1 - dx), row1 + offs0, mask, ALL, MORE)
    acc, more = _add_tap(acc, more, weight1 * dx, row1 + offs1, mask, ALL, MORE)
    return acc, more


@triton.jit
def _sample_mask(
    start_y, roi_h, sample_y, samples_y, height, start_x, roi_w, sample_x, samples_x, width, mask_c, INNER: tl.constexpr
):
    """Mask of a sample of each bin by the border rule along both axes: [COLUMNS, CHANNELS], or [1, CHANNELS]."""
    if INNER:
        return mask_c[None, :]
    else:
        row_counts = is_sampled(start_y, roi_h, sample_y, samples_y, height)
        width = tl.where(row_counts, width, -2)  # a mask & a scalar is unusable in Triton 3.9
        return is_sampled(start_x, roi_w, sample_x, samples_x, width)[:, None] & mask_c[None, :]


@triton.jit
def _row_of_bins(
    base, p, offs_q, offs_c, mask_c, level, start_x, start_y, roi_w, roi_h, height, width, stride_y, stride_x,
    POOLED_H: tl.constexpr, POOLED_W: tl.constexpr, RATIO: tl.constexpr, OFFSET: tl.constexpr,
    CHANNELS: tl.constexpr, EVEN: tl.constexpr, UNROLL: tl.constexpr, MORE: tl.constexpr, INNER: tl.constexpr,
):
    """The means of bins (p, q) [COLUMNS, CHANNELS]. INNER: all samples of the RoI count."""
    acc = tl.zeros([offs_q.shape[0], CHANNELS], dtype=tl.float32)
    more = tl.zeros([offs_q.shape[0], CHANNELS], dtype=tl.float32)
    x1, y1, length_x, length_y = (
        start_x.to(tl.float32), start_y.to(tl.float32), roi_w.to(tl.float32), roi_h.to(tl.float32)
    )
    if UNROLL:
        step_y, step_x = tl.div_rn(length_y, POOLED_H * RATIO * 1.0), tl.div_rn(length_x, POOLED_W * RATIO * 1.0)
        share: tl.constexpr = 1 / (RATIO * RATIO)
        for i in tl.static_range(RATIO):
            sample_y = p * RATIO + i
            y_before, y_after, dy = neighbors(y1 + (sample_y + 0.5) * step_y, height)
            row0, row1 = base + y_before.to(OFFSET) * stride_y, base + y_after.to(OFFSET) * stride_y
            for j in tl.static_range(RATIO):
                sample_x = offs_q * RATIO + j
                x = x1 + (sample_x + 0.5) * step_x
                mask = _sample_mask(
                    start_y, roi_h, sample_y, POOLED_H * RATIO, height,
                    start_x, roi_w, sample_x, POOLED_W * RATIO, width, mask_c, INNER,
                )
                acc, more = _add_sample(
                    acc, more, row0, row1, (1 - dy) * share, dy * share, x, offs_c, mask, width, stride_x,
                    OFFSET, INNER and EVEN, MORE,
                )
    else:
        grid_y, grid_x = samples_of(roi_h, level, POOLED_H, RATIO), samples_of(roi_w, level, POOLED_W, RATIO)
        num_y, num_x = grid_y.to(tl.float32), grid_x.to(tl.float32)
        bin_h, bin_w = tl.div_rn(length_y, POOLED_H * 1.0), tl.div_rn(length_x, POOLED_W * 1.0)
        step_y, step_x = tl.div_rn(bin_h, tl.maximum(num_y, 1.0)), tl.div_rn(bin_w, tl.maximum(num_x, 1.0))
        share = tl.div_rn(1.0, tl.maximum(num_y * num_x, 1.0))
        edge_y, edge_x = y1 + p * bin_h, x1 + offs_q * bin_w
        if INNER:
            first_y, first_x, most_y, most_x = 0.0, 0.0, num_y, num_x
        else:
            most_y, most_x = count_walked(num_y, height, RATIO), count_walked(num_x, width, RATIO)
            first_y = first_sample(edge_y, bin_h, num_y, most_y)
            first_x = first_sample(edge_x, bin_w, num_x, most_x)
        for i in range(most_y.to(tl.int32)):
            sample_y = first_y + i
            y_before, y_after, dy = neighbors(edge_y + (sample_y + 0.5) * step_y, height)
            row0, row1 = base + y_before.to(OFFSET) * stride_y, base + y_after.to(OFFSET) * stride_y
            for j in range(most_x.to(tl.int32)):
                sample_x = first_x + j
                x = edge_x + (sample_x + 0.5) * step_x
                mask = _sample_mask(
                    start_y, roi_h, p * grid_y + sample_y, POOLED_H * grid_y, height,
                    start_x, roi_w, offs_q * grid_x + sample_x, POOLED_W * grid_x, width, mask_c, INNER,
                )
                acc, more = _add_sample(
                    acc, more, row0, row1, (1 - dy) * share, dy * share, x, offs_c, mask, width, stride_x,
                    OFFSET, INNER and EVEN, MORE,
                )
    return acc, more


@jit(do_not_specialize=[*VARYING, "rows"])
def _forward_kernel(
    # tensors
    map0_ptr, map1_ptr, map2_ptr, map3_ptr, map4_ptr,  # [B, C, H_l, W_l], channels-last: stride 1 along C
    rois_ptr,  # [K, 5] (image, x1, y1, x2, y2)
    out_ptr,  # [K, POOLED_H, POOLED_W, C] out
    # sizes
    batch,
    channels,
    rows,  # of bins, of a program
    height0, height1, height2, height3, height4,
    width0, width1, width2, width3, width4,
    # strides, in units of UNIT elements
    stride_b0, stride_b1, stride_b2, stride_b3, stride_b4,
    stride_y0, stride_y1, stride_y2, stride_y3, stride_y4,
    stride_x0, stride_x1, stride_x2, stride_x3, stride_x4,
    # level geometry
    scale0, scale1, scale2, scale3, scale4,
    limit0, limit1, limit2, limit3,
    # constants
    LEVELS: tl.constexpr,
    POOLED_H: tl.constexpr,
    POOLED_W: tl.constexpr,
    RATIO: tl.constexpr,  # see pack_ratios
    ALIGNED: tl.constexpr,
    UNIT: tl.constexpr,  # 16 where loads may be wide, else 1
    PACK: tl.constexpr,  # elements read as one: 2 where two bfloat16 are an int32, else 1
    OFFSET: tl.constexpr,  # type of the offsets within one image's map
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILES: tl.constexpr,  # of CHANNELS channels: 1 or 2
    UNROLL: tl.constexpr,  # RATIO x RATIO samples, all in a row
    EVEN: tl.constexpr,  # channels are a multiple of CHANNELS
):
    # --- 1. find this program's rows of bins [first, past), columns and channels
    column_blocks: tl.constexpr = (POOLED_W + COLUMNS - 1) // COLUMNS
    roi = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) // column_blocks * rows
    past = tl.minimum(first + rows, POOLED_H)
    offs_q = tl.program_id(1) % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    offs_c = tl.program_id(2) * (CHANNELS * TILES) + tl.arange(0, CHANNELS)
    mask_out = (offs_q < POOLED_W)[:, None] & (offs_c < channels)[None, :]
    ptrs_out = out_ptr + ((roi * POOLED_H + first) * POOLED_W + offs_q)[:, None] * channels + offs_c[None, :]

    # --- 2. locate the RoI and its map
    image, level, start_x, start_y, roi_w, roi_h, valid = locate_exactly(
        rois_ptr, roi, True, batch, scale0, scale1, scale2, scale3, scale4,
        limit0, limit1, limit2, limit3, LEVELS, ALIGNED,
    )
    base = of_level(level, map0_ptr, map1_ptr, map2_ptr, map3_ptr, map4_ptr, LEVELS)
    height = of_level(level, height0, height1, height2, height3, height4, LEVELS)
    width = of_level(level, width0, width1, width2, width3, width4, LEVELS)
    stride_b = of_level(level, stride_b0, stride_b1, stride_b2, stride_b3, stride_b4, LEVELS).to(tl.int64)
    stride_y = of_level(level, stride_y0, stride_y1, stride_y2, stride_y3, stride_y4, LEVELS).to(OFFSET)
    stride_x = of_level(level, stride_x0, stride_x1, stride_x2, stride_x3, stride_x4, LEVELS).to(OFFSET)
    base += image * stride_b * UNIT
    offs_in = tl.program_id(2) * (CHANNELS * TILES // PACK) + tl.arange(0, CHANNELS // PACK)
    if PACK == 2:
        base = base.to(tl.pointer_type(tl.int32))
    stride_y, stride_x = stride_y * (UNIT // PACK), stride_x * (UNIT // PACK)
    valid = valid & (height > 0) & (width > 0)
    height, width = tl.where(valid, height, -2), tl.where(valid, width, -2)  # no sample counts there

    # --- 3. test whether all of its samples count: the first and the last along both axes
    samples_y = POOLED_H * samples_of(roi_h, level, POOLED_H, RATIO)
    samples_x = POOLED_W * samples_of(roi_w, level, POOLED_W, RATIO)
    inner = is_sampled(start_y, roi_h, samples_y * 0, samples_y, height)
    inner = inner & is_sampled(start_y, roi_h, samples_y - 1, samples_y, height)
    inner = inner & is_sampled(start_x, roi_w, samples_x * 0, samples_x, width)
    inner = inner & is_sampled(start_x, roi_w, samples_x - 1, samples_x, width)

    # --- 4. average the samples of a row of bins at a time, without masks where all samples count
    offs_q = tl.minimum(offs_q, POOLED_W - 1)  # columns beyond the last read what it reads
    mask_c = offs_in < channels // PACK
    MORE: tl.constexpr = CHANNELS // PACK if TILES == 2 else 0
    if inner:
        for p in range(first, past):
            acc, more = _row_of_bins(
                base, p, offs_q, offs_in, mask_c, level, start_x, start_y, roi_w, roi_h, height, width,
                stride_y, stride_x,
                POOLED_H, POOLED_W, RATIO, OFFSET, CHANNELS, EVEN, UNROLL, MORE, True,
            )
            tl.store(ptrs_out, acc.to(out_ptr.dtype.element_ty), mask=mask_out)
            if TILES == 2:
                tl.store(ptrs_out + CHANNELS, more.to(out_ptr.dtype.element_ty), mask=mask_out)
            ptrs_out += POOLED_W * channels
    else:
        for p in range(first, past):
            acc, more = _row_of_bins(
                base, p, offs_q, offs_in, mask_c, level, start_x, start_y, roi_w, roi_h, height, width,
                stride_y, stride_x,
                POOLED_H, POOLED_W, RATIO, OFFSET, CHANNELS, EVEN, UNROLL, MORE, False,
            )
            tl.store(ptrs_out, acc.to(out_ptr.dtype.element_ty), mask=mask_out)
            if TILES == 2:
                tl.store(ptrs_out + CHANNELS, more.to(out_ptr.dtype.element_ty), mask=mask_out)
            ptrs_out += POOLED_W * channels


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
    level_ratios: Sequence[int] | None = None,
) -> Tensor:
    """Shapes as in reference.py -> channels-last [K, C, pooled_height, pooled_width]. float64: the eager fallback."""
    wide = compute_dtype(*features, rois) == torch.float64
    if wide or len(features) > MAX_LEVELS or not fits_digits(level_ratios):
        return roi_fallback.multilevel_roi_align(
            features, rois, scales, level_limits, pooled_height, pooled_width, sampling_ratio, aligned, level_ratios
        )
    batch, channels = features[0].shape[:2]
    num_rois = rois.shape[0]
    out = roi_fallback.empty_channels_last(features[0], num_rois, channels, pooled_height, pooled_width)
    if out.numel() == 0 or batch == 0:
        return out.zero_()
    ratio = pack_ratios(sampling_ratio, level_ratios)
    rois = rois.contiguous()
    with on_device(rois):
        if not is_channels_last(features):
            taps = num_rois * pooled_height * pooled_width * 4 * (ratio if ratio > 0 else ADAPTIVE) ** 2
            if not channels_last_triton.is_worth_it(features, taps):
                geometry = {**level_geometry(scales, level_limits), "LEVELS": len(features), "ALIGNED": aligned}
                geometry |= {"POOLED_H": pooled_height, "POOLED_W": pooled_width, "RATIO": ratio}
                roi_align_apart_triton.launch(features, rois, out, geometry)
                return out
            features = channels_last_triton.copy(features)
        most_channels = tuned_value("roi_align.channels", CHANNELS, rois.device)
        programs = tuned_value("roi_align.programs", PROGRAMS, rois.device)
        levels = layouts_of(features), tuple(scales), tuple(level_limits)
        launch = _prepare(*levels, out.shape, out.dtype, ratio, aligned, most_channels, programs, offset_type)
        launch(*pad_levels(features), rois, out)
    return out


@functools.lru_cache(256)
def _prepare(
    features: tuple[Layout, ...], scales: tuple[float, ...], level_limits: tuple[float, ...], shape: torch.Size,
    dtype: torch.dtype, ratio: int, aligned: bool, most_channels: int, programs: int,
    type_offsets: Callable[[Sequence[Layout]], Any],
) -> Plan:  # fmt: skip
    """Prepare a launch, but for its tensors, of channels-last features; ``type_offsets``: offset_type, or a test's."""
    num_rois, channels, pooled_height, pooled_width = shape
    wide, offset = is_wide(features), type_offsets(features)
    tile = tile_of(pooled_width, channels, ratio, wide and offset == tl.int32, most_channels)  # registers: no more
    unit, column_blocks = 16 if wide else 1, triton.cdiv(pooled_width, tile["COLUMNS"])
    channel_blocks = triton.cdiv(channels, tile["TILES"] * tile["CHANNELS"])
    wanted = triton.cdiv(programs, num_rois * column_blocks * channel_blocks)
    rows = triton.cdiv(pooled_height, min(wanted, pooled_height))
    return Plan(
        _forward_kernel,
        (num_rois, column_blocks * triton.cdiv(pooled_height, rows), channel_blocks),
        **{"batch": features[0].shape[0], "channels": channels, "rows": rows},
        **level_numbers(features, "byx", unit),
        **level_geometry(scales, level_limits),
        **{"LEVELS": len(features), "POOLED_H": pooled_height, "POOLED_W": pooled_width, "RATIO": ratio},
        **{"ALIGNED": aligned, "UNIT": unit, "OFFSET": offset},
        PACK=2 if wide and dtype == torch.bfloat16 and channels % 2 == 0 else 1,
        **tile,
        **({} if INTERPRET or torch.version.hip else register_limit(len(features), pooled_width, dtype, tile)),
    )
