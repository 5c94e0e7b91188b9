"""Table of RoIs for RoIAlign's backward, sorted by map: from it, a tile of a map finds the bins that reach it.

RoIs are sorted by (level, image). The table's kernel computes once a RoI what every tile would compute again: where its
bins lie, which samples count (roi_align.py's border rule), and per axis the line that maps a tile to its bins, widened
by a pixel for the interpolation and by float32's error. What a tile reads of every RoI is stored by rows (24 bytes a
RoI), what it reads of those that reach it as 16 words a RoI.
Launches: the maps' keys and the table, for which every RoI counts those that come before it; beyond COUNTED RoIs, keys
are sorted between the two (bytes where they suffice). On an H200 (bc309f8) keys 1.7 us, sort 12, table 3.6. Predicted
since then, not yet measured:
- 20-30 us -> 13 us for 8 x 512 RoIs: no sort, three launches or four of torch's, of which one program sorts them all.
- A tile's scan takes about 20 instructions of a RoI, where locate() and two ranges took 200.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels.jit import jit
from fastmask.kernels.triton.roi_geometry import (
    VARYING,
    by_level,
    keys_of,
    locate_exactly,
    of_level,
    samples_of,
)

COLUMNS = 128  # of a program
COUNTED, COUNTED_MAPS = 2**13, 2**17  # RoIs, and maps, up to which RoIs are counted instead of sorted
_NUMBERS = tl.constexpr(2**13)  # a key and the number of one of so many RoIs are one int32
COUNTING, COMPARED = 16, 512  # columns of a program that counts, and keys of a step that they are compared with
# a RoI's words: along y, then as many along x, then which RoI it is
START, LENGTH, SCALE, LOW, HIGH, FIRST, PAST, ALONG_X, ROI = (
    tl.constexpr(word) for word in (0, 1, 2, 3, 4, 5, 6, 7, 14)
)
WORDS = tl.constexpr(16)
LINES = 6  # rows of what is read of every RoI: SCALE, LOW and HIGH along y, then along x

# the values of all levels stand on one line
# fmt: off


@triton.jit
def _first_sample(extent, bound, samples, PAST: tl.constexpr):
    """The first sample k with (2k + 1) * extent >= bound (PAST: > bound), of so many; extent >= 0, all float64."""
    guess = tl.floor((bound / tl.where(extent > 0, extent, 1.0) - 1) * 0.5) - 1  # one or two too few, by rounding
    first = tl.minimum(tl.maximum(tl.where(extent > 0, guess, 0.0), 0.0), samples)
    for _ in tl.static_range(4):
        place = (2 * first + 1) * extent
        reached = (place > bound) if PAST else (place >= bound)
        first += ((first < samples) & ~reached).to(tl.float64)
    reached = (extent * 0 > bound) if PAST else (extent * 0 >= bound)
    return tl.where(extent > 0, first, tl.where(reached, 0.0, samples)).to(tl.int32)


@triton.jit
def _write_axis(
    lines_ptr, words_ptr, level, start, extent, size, mask, columns,
    BINS: tl.constexpr, RATIO: tl.constexpr, TILE: tl.constexpr,
):
    """One axis of RoIs, their start and extent in float64."""
    near, length = start.to(tl.float32), tl.div_rn(extent.to(tl.float32), BINS * 1.0)
    grid = samples_of(extent, level, BINS, RATIO).to(tl.float32)
    # which samples count; those of an inverted RoI run the other way
    samples = grid.to(tl.float64) * BINS
    low, high = (-1.0 - start) * (2.0 * samples), (size - start) * (2.0 * samples)
    inverted = extent < 0
    low, high = tl.where(inverted, -high, low), tl.where(inverted, -low, high)
    first = _first_sample(tl.abs(extent), low, samples, False)
    past = _first_sample(tl.abs(extent), high, samples, True)
    # bins that reach a tile from t on: those from t * scale + low up, to t * scale + high
    slack = 1.0 + (tl.abs(start) + tl.abs(extent) + TILE) * 9.6e-7  # a pixel, and 16 times float32's 6e-8
    scale = 1.0 / tl.where(tl.abs(length) < 1e-20, 1e-20, length)
    before = tl.where(inverted, TILE - 1 + slack, -slack) - start
    after = tl.where(inverted, -slack, TILE - 1 + slack) - start
    inset = 0.5 / tl.maximum(grid, 1.0)  # a bin's first and last sample lie inside of it
    low, high = (before * scale).to(tl.float32) - (1 - inset), (after * scale).to(tl.float32) - inset
    tl.store(lines_ptr, scale, mask=mask)
    tl.store(lines_ptr + columns, low, mask=mask)
    tl.store(lines_ptr + 2 * columns, high, mask=mask)
    tl.store(words_ptr + START, near, mask=mask)
    tl.store(words_ptr + LENGTH, length, mask=mask)
    tl.store(words_ptr + SCALE, scale, mask=mask)
    tl.store(words_ptr + LOW, low, mask=mask)
    tl.store(words_ptr + HIGH, high, mask=mask)
    tl.store(words_ptr + FIRST, first.to(tl.float32, bitcast=True), mask=mask)
    tl.store(words_ptr + PAST, past.to(tl.float32, bitcast=True), mask=mask)


@jit(do_not_specialize=VARYING)
def _table_kernel(
    # tensors
    rois_ptr,  # [K, 5]
    keys_ptr,  # [K] level * batch + image; LEVELS * batch for RoIs that do not count; sorted, unless COMPARED
    order_ptr,  # [K] which RoI each is, unless COMPARED
    lines_ptr,  # [LINES, columns] out
    words_ptr,  # [columns, WORDS] out, integers as their bits
    starts_ptr,  # [LEVELS * batch + 1] out: where each (level, image) begins
    # sizes
    num_rois,
    batch,
    columns,  # over num_rois: the columns beyond have no bins
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
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPARED: tl.constexpr,  # keys that are compared in a step where RoIs are counted; 0 where they are sorted
):
    offs_k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask_k, mask = offs_k < num_rois, offs_k < columns
    maps = LEVELS * batch
    # --- 1. find each RoI's column, and where each (level, image) begins
    key = tl.load(keys_ptr + offs_k, mask=mask_k, other=0).to(tl.int32)
    if COMPARED > 0:
        # a RoI stands behind those of lower keys and of its own before it; maps follow the columns, before their RoIs
        own = tl.where(mask_k, key * _NUMBERS + offs_k, (offs_k - columns) * _NUMBERS)
        ranks = tl.zeros([COMPARED, BLOCK], tl.int32)
        for begin in range(0, num_rois, COMPARED):
            offs = begin + tl.arange(0, COMPARED)
            others = tl.load(keys_ptr + offs, mask=offs < num_rois, other=0).to(tl.int32) * _NUMBERS + offs
            others = tl.where(offs < num_rois, others, 0x7FFFFFFF)
            ranks += (others[:, None] < own[None, :]).to(tl.int32)
        rank = tl.sum(ranks, 0)
        tl.store(starts_ptr + offs_k - columns, rank, mask=(offs_k >= columns) & (offs_k <= columns + maps))
        roi, offs_k = offs_k, tl.where(mask_k, rank, offs_k)
    else:
        before = tl.load(keys_ptr + offs_k - 1, mask=(offs_k > 0) & (offs_k <= num_rois), other=0).to(tl.int32)
        roi = tl.load(order_ptr + offs_k, mask=mask_k, other=0).to(tl.int32)
        # a map begins where the key changes, and so do the empty ones before it
        first = tl.where(offs_k > 0, before + 1, 0)
        past = tl.where(offs_k <= num_rois, tl.where(mask_k, key, maps) + 1, first)
        for i in range(tl.max(past - first, 0)):
            tl.store(starts_ptr + first + i, offs_k, mask=first + i < past)

    # --- 2. locate the RoIs
    _, level, x, y, width, height, _ = locate_exactly(
        rois_ptr, roi, mask_k, batch, scale0, scale1, scale2, scale3, scale4,
        limit0, limit1, limit2, limit3, LEVELS, ALIGNED,
    )
    map_height = of_level(level, height0, height1, height2, height3, height4, LEVELS)
    map_width = of_level(level, width0, width1, width2, width3, width4, LEVELS)
    # --- 3. write their axes
    lines, words = lines_ptr + offs_k, words_ptr + offs_k.to(tl.int64) * WORDS
    tl.store(words + ROI, roi.to(tl.float32, bitcast=True), mask=mask)
    _write_axis(lines, words, level, y, height, map_height, mask, columns, POOLED_H, RATIO, TILE_Y)
    lines, words = lines + 3 * columns, words + ALONG_X
    _write_axis(lines, words, level, x, width, map_width, mask, columns, POOLED_W, RATIO, TILE_X)


@triton.jit
def count_bins(tile_start, scale, low, high, BINS: tl.constexpr):
    """First of the bins along one axis that may reach the tile, and their number; floats."""
    first = tl.maximum(tl.ceil(tile_start * scale + low), 0.0)
    past = tl.minimum(tl.floor(tile_start * scale + high) + 1, BINS * 1.0)
    return first, tl.maximum(past - first, 0.0)


@triton.jit
def find_roi(ends, group_ends, wanted, GROUP: tl.constexpr):
    """RoI of each wanted bin [SLOTS], given running totals [ROIS] of RoIs' bins, and the bin's rank in that RoI.

    ``group_ends``: the totals at the end of each GROUP of RoIs. Both searches find the last total that is not above a
    bin's number, and the count of such totals: one maximum of both in one number, as totals only grow.
    """
    groups: tl.constexpr = group_ends.shape[0]
    slots: tl.constexpr = wanted.shape[0]
    keys = group_ends * (2 * GROUP) + tl.arange(1, groups + 1)
    found = tl.max(tl.where(group_ends[:, None] <= wanted[None, :], keys[:, None], 0), 0)
    first = tl.minimum(found % (2 * GROUP), groups - 1) * GROUP
    offs = first[:, None] + tl.arange(0, GROUP)[None, :]
    totals = tl.reshape(tl.gather(ends, tl.reshape(offs, [slots * GROUP]), 0), [slots, GROUP])
    keys = totals * (2 * GROUP) + tl.arange(1, GROUP + 1)[None, :]
    inside = tl.max(tl.where(totals <= wanted[:, None], keys, 0), 1)
    return first + inside % (2 * GROUP), wanted - tl.maximum(inside, found) // (2 * GROUP)


@triton.jit
def find_bin(words, rank, tile_y, tile_x, POOLED_H: tl.constexpr, POOLED_W: tl.constexpr):
    """Row and column of each RoI's bin of that rank, among those of its bins that reach the tile."""
    along_x = words + ALONG_X
    first_p, _num_p = count_bins(tile_y, tl.load(words + SCALE), tl.load(words + LOW), tl.load(words + HIGH), POOLED_H)
    first_q, num_q = count_bins(
        tile_x, tl.load(along_x + SCALE), tl.load(along_x + LOW), tl.load(along_x + HIGH), POOLED_W
    )
    down = tl.floor((rank.to(tl.float32) + 0.5) / tl.maximum(num_q, 1.0))
    return (first_p + down).to(tl.int32), (first_q + rank.to(tl.float32) - down * num_q).to(tl.int32)


# fmt: on


def table_by_map(
    rois: Tensor,
    batch: int,
    heights: Sequence[int],
    widths: Sequence[int],
    geometry: dict[str, Any],
    pooled: tuple[int, int],
    ratio: int,
    tile: tuple[int, int],
    spare: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Build the table of RoIs [K, 5], with ``spare`` columns beyond K -> its lines, its words, each map's start."""
    num_rois = rois.shape[0]
    columns = triton.cdiv(num_rois + max(spare, 1), COLUMNS) * COLUMNS
    maps = geometry["LEVELS"] * batch
    keys = keys_of(rois, batch, geometry)
    counted = num_rois <= COUNTED and maps <= COUNTED_MAPS
    keys, order = (keys, keys) if counted else keys.sort(stable=True)
    block, programs = COLUMNS, columns // COLUMNS
    if counted:
        block, programs = COUNTING, columns // COUNTING + triton.cdiv(maps + 1, COUNTING)
    lines = rois.new_empty((LINES, columns), dtype=torch.float32)
    words = rois.new_empty((columns, WORDS.value), dtype=torch.float32)
    starts = rois.new_empty(maps + 1, dtype=torch.int32)
    _table_kernel[(programs,)](
        # tensors
        rois_ptr=rois,
        keys_ptr=keys,
        order_ptr=order,
        lines_ptr=lines,
        words_ptr=words,
        starts_ptr=starts,
        # sizes
        num_rois=num_rois,
        batch=batch,
        columns=columns,
        **by_level("height{}", heights),
        **by_level("width{}", widths),
        # level geometry, constants
        **geometry,
        POOLED_H=pooled[0],
        POOLED_W=pooled[1],
        RATIO=ratio,
        TILE_Y=tile[0],
        TILE_X=tile[1],
        BLOCK=block,
        COMPARED=COMPARED if counted else 0,
        num_warps=4,
    )
    return lines, words, starts
