"""Channels-last copies of a feature pyramid in Triton, all levels in one launch, for kernels that gather pixels.

RoIAlign's backward copies its gradient this way, as a level of K small maps.

A program copies PIXELS x CHANNELS of one image: it reads along pixels, transposes the tile in shared memory, and writes
along channels. Cost: every map read and written once: 2 x 46 MB of bfloat16 for P2-P5 of 800 x 1344, 27 us at 3.35
TB/s; four copies by PyTorch are four launches, with strided reads or writes.
On an H200 (bc309f8): 104 us for 2 x 91 MB of float32 maps, 45 at copy bandwidth; since then 1136 -> 552 instructions a
program, and channels of a pixel by neighboring programs: not yet measured.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels.fallback.roi import empty_channels_last
from fastmask.kernels.jit import Plan, jit
from fastmask.kernels.triton.roi_geometry import (
    MAX_LEVELS,
    VARYING,
    Layout,
    layouts_of,
    level_numbers,
    of_level,
    pad_levels,
    strides_of,
)
from fastmask.kernels.tuning import tuned_value
from fastmask.kernels.variant import DTYPES, Variant, pointers

PIXELS, CHANNELS = 64, 64  # of a program
NUM_WARPS = 4
COPY_TAPS = 1  # taps a pixel above which copies pay
MAX_BYTES = 2**30  # of all copies together: larger maps are read where they are

# the values of all levels stand on one line
# fmt: off


@jit(do_not_specialize=VARYING)
def _copy_kernel(
    # tensors
    map0_ptr, map1_ptr, map2_ptr, map3_ptr, map4_ptr,  # [B, C, H_l, W_l] of any strides
    out0_ptr, out1_ptr, out2_ptr, out3_ptr, out4_ptr,  # [B, H_l, W_l, C] out
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
    # constants
    LEVELS: tl.constexpr,
    FLAT: tl.constexpr,  # whether rows of pixels follow each other: no division then
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    # --- 1. locate the tile: neighboring programs have the same pixels' channels, to fill pages of memory together
    blocks = tl.cdiv(channels, CHANNELS)
    tile = tl.program_id(0) // blocks
    level = tl.full([], 0, tl.int32)
    past = batch * tl.cdiv(height0 * width0, PIXELS)
    first = past * 0
    for i in tl.static_range(1, LEVELS):
        level += (tile >= past).to(tl.int32)
        first = tl.where(tile >= past, past, first)
        rows = of_level(i, height0, height1, height2, height3, height4, LEVELS)
        columns = of_level(i, width0, width1, width2, width3, width4, LEVELS)
        past += batch * tl.cdiv(rows * columns, PIXELS)
    height = of_level(level, height0, height1, height2, height3, height4, LEVELS)
    width = of_level(level, width0, width1, width2, width3, width4, LEVELS)
    tiles = tl.cdiv(height * width, PIXELS)
    image = ((tile - first) // tiles).to(tl.int64)
    offs_pixel = (tile - first) % tiles * PIXELS + tl.arange(0, PIXELS)
    offs_c = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)

    # --- 2. read along pixels
    source = of_level(level, map0_ptr, map1_ptr, map2_ptr, map3_ptr, map4_ptr, LEVELS)
    stride_b = of_level(level, stride_b0, stride_b1, stride_b2, stride_b3, stride_b4, LEVELS).to(tl.int64)
    stride_c = of_level(level, stride_c0, stride_c1, stride_c2, stride_c3, stride_c4, LEVELS).to(tl.int64)
    stride_y = of_level(level, stride_y0, stride_y1, stride_y2, stride_y3, stride_y4, LEVELS).to(tl.int64)
    stride_x = of_level(level, stride_x0, stride_x1, stride_x2, stride_x3, stride_x4, LEVELS).to(tl.int64)
    offs_in = image * stride_b
    if FLAT:
        offs_in += offs_pixel * stride_x
    else:
        offs_in += offs_pixel // width * stride_y + offs_pixel % width * stride_x
    mask_pixel, mask_c = offs_pixel < height * width, offs_c < channels
    ptrs = source + (offs_c * stride_c)[:, None] + offs_in[None, :]
    values = tl.load(ptrs, mask=mask_c[:, None] & mask_pixel[None, :], other=0)

    # --- 3. write along channels
    out = of_level(level, out0_ptr, out1_ptr, out2_ptr, out3_ptr, out4_ptr, LEVELS)
    ptrs_out = out + (image * height * width + offs_pixel)[:, None] * channels + offs_c[None, :]
    tl.store(ptrs_out, tl.trans(values), mask=mask_pixel[:, None] & mask_c[None, :])


# fmt: on


def is_worth_it(features: Sequence[Tensor], taps: int) -> bool:
    """Whether so many taps will be read that copies of all maps pay, and whether there is room for these."""
    pixels = sum(feature.shape[0] * feature.shape[2] * feature.shape[3] for feature in features)
    size = sum(feature.numel() * feature.element_size() for feature in features)
    enough = tuned_value("roi_align.copy_taps", COPY_TAPS, features[0].device) * pixels
    return taps > enough and size <= MAX_BYTES


def copy(features: Sequence[Tensor]) -> list[Tensor]:
    """Maps [B, C, H_l, W_l] of any strides, with elements -> the same, channels-last."""
    outs = [empty_channels_last(feature, *feature.shape) for feature in features]
    _prepare(layouts_of(features))(*pad_levels(features), *pad_levels(outs))
    return outs


@functools.lru_cache(256)
def _prepare(features: tuple[Layout, ...]) -> Plan:
    """Prepare a launch, except for its tensors."""
    batch, channels = features[0].shape[:2]
    tiles = sum(batch * triton.cdiv(feature.shape[2] * feature.shape[3], PIXELS) for feature in features)
    block = min(triton.next_power_of_2(channels), CHANNELS)
    strides = [strides_of(feature) for feature in features]
    return Plan(
        _copy_kernel,
        (tiles * triton.cdiv(channels, block),),
        batch=batch,
        channels=channels,
        **level_numbers(features, "bcyx"),
        LEVELS=len(features),
        FLAT=all(stride[2] == feature.shape[3] * stride[3] for feature, stride in zip(features, strides, strict=True)),
        PIXELS=PIXELS,
        CHANNELS=block,
        num_warps=NUM_WARPS,
    )


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: dtypes, numbers of levels, rows of pixels that follow each other or not."""
    for dtype, levels, flat in itertools.product(DTYPES, (4, 1), (True, False)):
        yield Variant(
            f"channels-last copies, {dtype}, {levels} levels{'' if flat else ', rows apart'}",
            _copy_kernel,
            pointers(dtype, *(f"{name}{level}" for name in ("map", "out") for level in range(MAX_LEVELS))),
            {"LEVELS": levels, "FLAT": flat, "PIXELS": PIXELS, "CHANNELS": CHANNELS},
            {"num_warps": NUM_WARPS},
            multiples=("channels",),
            default=levels == 4 and flat,
            wide=("STG",),
        )
