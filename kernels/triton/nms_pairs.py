"""Pair tests of NMS in Triton: whether IoUs exceed the threshold, 64 boxes against 64 inside a unit, as rows of bits.

A tile is a block of rows and a block of columns before it, or the same; bit j of a row: column j would remove it.
    words[block, distance, half, row]: 32 columns of the block ``distance`` before the row's own

    block of columns   0    1    2    3         a cell: 64 x 64 pairs, two words a row
    block of rows 3  | 3  | 2  | 1  |\0  |       its number: the distance; on the diagonal only
                     +----+----+----+----+       columns before the row count
    program (3, s)     distances s, s + SPLITS, ... as long as the unit goes back

A program has one block of rows and every SPLITS-th distance, and leaves where a block of columns ends in another unit.
It is one warp: a thread has two rows, so that a column's box is read once for both, and sums its bits alone.
The pair test has no division. With t the threshold and h half the gap to the float above it, inter / union, correctly
rounded, is above t just where fma(-t, union, inter) > h * union: the quotient is above t where inter > (t + h) * union,
for 25 bits times 24 are never a float; inter - t * union and h * union then differ by at least one ulp of the latter,
which survives the rounding of the first; and h is a power of two. All of it needs t * union of at least 2^-102:
a smaller SMALLEST_AREA compares in float64, and a threshold below SMALLEST_THRESHOLD divides.
Cost: 17 instructions a pair of 32 rows, 20 with groups; 8 bytes a row and block before it.
Predicted for 1000 boxes: 136 tiles in one CTA -> in 136 CTAs, because a tile needs nothing of another; a tile of
3800 (8400 on the division's slow path) -> 2180 warp instructions, because of the fma and of columns read once for two
rows. On an H200 (bc309f8): 8.4 us; 30 for eight images, of which starting 38,000 programs was the most.
"""

import itertools
from collections.abc import Iterator

import triton
import triton.language as tl

from fastmask.kernels.jit import jit
from fastmask.kernels.triton.nms_order import BLOCK, TYPES
from fastmask.kernels.variant import Variant

SPLITS = 16  # programs of a block of rows
MAX_PROGRAMS = 10_000  # beyond which there are fewer for a block of rows: a GPU starts about one a cycle
COLUMNS = 16  # that a program tests at once, two rows a thread
SMALLEST_THRESHOLD = 2.0**-20
SMALLEST_AREA = tl.constexpr(2.0**-80)


def splits_of(blocks: int, window: int, splits: int) -> int:
    """Number of programs of a block of rows, at most ``splits``."""
    return min(splits, window, max(MAX_PROGRAMS // blocks, 1))


def columns_of(few: bool, test: str) -> int:
    """COLUMNS as registers allow: fewer with groups, strikes and divisions."""
    return COLUMNS // (2 if few else 1) // (2 if test == "divide" else 1)


@triton.jit
def _exceeds(ax1, ay1, ax2, ay2, a_area, bx1, by1, bx2, by2, b_area, threshold, half_gap, TEST):
    """IoU > threshold of boxes that broadcast to each other; NaN, from whatever coordinate, exceeds nothing."""
    right = tl.minimum(ax2, bx2, propagate_nan=tl.PropagateNan.ALL)
    width = right - tl.maximum(ax1, bx1, propagate_nan=tl.PropagateNan.ALL)
    below = tl.minimum(ay2, by2, propagate_nan=tl.PropagateNan.ALL)
    height = below - tl.maximum(ay1, by1, propagate_nan=tl.PropagateNan.ALL)
    width = tl.maximum(width, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if TEST == "divide":
        height = tl.maximum(height, 0.0, propagate_nan=tl.PropagateNan.ALL)
    inter = width * height  # of apart boxes 0 or less, which exceeds no positive threshold
    union = (a_area + b_area) - inter
    if TEST == "divide":
        exceeds = tl.div_rn(inter, union) > threshold
    elif TEST == "float64":  # which holds 25 bits times 24
        exceeds = inter.to(tl.float64) > threshold * union.to(tl.float64) + half_gap * union.to(tl.float64)
    else:
        exceeds = tl.fma(-threshold, union, inter) > half_gap * union
    return exceeds


@triton.jit
def _rows(tiles_ptr, labels_ptr, block, GROUPED: tl.constexpr, BLOCK: tl.constexpr):
    """Load a block of boxes as rows: corners, area, group; each thread has the same rows of all of these."""
    rows = tl.arange(0, BLOCK)
    ptrs_row = tiles_ptr + block.to(tl.int64) * (5 * BLOCK) + rows
    x1 = tl.load(ptrs_row)
    y1 = tl.load(ptrs_row + BLOCK)
    x2 = tl.load(ptrs_row + 2 * BLOCK)
    y2 = tl.load(ptrs_row + 3 * BLOCK)
    area = tl.load(ptrs_row + 4 * BLOCK)
    label = rows.to(tl.int64)
    if GROUPED:
        label = tl.load(labels_ptr + block * BLOCK + rows)
    return x1, y1, x2, y2, area, label


@triton.jit
def _bits(
    tiles_ptr, labels_ptr, x1, y1, x2, y2, area, label, column, half, threshold, half_gap,
    GROUPED: tl.constexpr, TEST: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One word a row: the boxes of half a block of columns whose IoU with it exceeds the threshold."""
    lanes = tl.arange(0, COLUMNS)
    bit = (tl.full([COLUMNS], 1, tl.int32) << lanes)[:, None]
    bits = tl.zeros([BLOCK], tl.int32)
    for part in range(BLOCK // 2 // COLUMNS):
        first = half * (BLOCK // 2) + part * COLUMNS
        ptrs_column = tiles_ptr + column.to(tl.int64) * (5 * BLOCK) + first + lanes
        exceeds = _exceeds(
            tl.load(ptrs_column)[:, None],
            tl.load(ptrs_column + BLOCK)[:, None],
            tl.load(ptrs_column + 2 * BLOCK)[:, None],
            tl.load(ptrs_column + 3 * BLOCK)[:, None],
            tl.load(ptrs_column + 4 * BLOCK)[:, None],
            x1[None, :],
            y1[None, :],
            x2[None, :],
            y2[None, :],
            area[None, :],
            threshold,
            half_gap,
            TEST,
        )
        if GROUPED:
            same = tl.load(labels_ptr + column * BLOCK + first + lanes)[:, None] == label[None, :]
            exceeds = exceeds & same
        bits = bits | (tl.sum(tl.where(exceeds, bit, 0), axis=0) << (part * COLUMNS))
    return bits


@triton.jit
def _same_unit(units_ptr, column, half, unit, BLOCK: tl.constexpr):
    """One word for half a block of columns: its boxes of the unit."""
    lanes = tl.arange(0, BLOCK // 2)
    same = tl.load(units_ptr + column * BLOCK + half * (BLOCK // 2) + lanes) == unit
    return tl.sum(same.to(tl.int32) << lanes, axis=0)


@triton.jit
def _earlier_in_unit(units_ptr, units, block, half, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    """One word a row of a block: the boxes of half of the same block that are before it and of its unit."""
    lanes = tl.arange(0, COLUMNS)
    bits = tl.zeros([BLOCK], tl.int32)
    for part in range(BLOCK // 2 // COLUMNS):
        inner = half * (BLOCK // 2) + part * COLUMNS + lanes
        same = tl.load(units_ptr + block * BLOCK + inner)[:, None] == units[None, :]
        same = same & (inner[:, None] < tl.arange(0, BLOCK)[None, :])
        bits = bits | (tl.sum(same.to(tl.int32) << lanes[:, None], axis=0) << (part * COLUMNS))
    return bits


@triton.jit
def _row_tiles(
    tiles_ptr, units_ptr, labels_ptr, words_ptr, block, distance, window, splits, threshold, half_gap,
    GROUPED: tl.constexpr, TEST: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Every SPLITS-th tile of a block of rows, from ``distance`` on."""
    rows = tl.arange(0, BLOCK)
    units = tl.load(units_ptr + block * BLOCK + rows)
    unit = tl.load(units_ptr + block * BLOCK)
    ptrs_word = words_ptr + block.to(tl.int64) * window * (2 * BLOCK) + rows
    x1, y1, x2, y2, area, label = _rows(tiles_ptr, labels_ptr, block, GROUPED, BLOCK)
    end = tl.minimum(block + 1, window)
    while distance < end:
        column = block - distance
        for half in range(2):
            bits = _bits(
                tiles_ptr, labels_ptr, x1, y1, x2, y2, area, label, column, half, threshold, half_gap,
                GROUPED, TEST, BLOCK, COLUMNS,
            )  # fmt: skip
            if distance == 0:  # the block itself: earlier boxes of the same unit
                bits = bits & _earlier_in_unit(units_ptr, units, block, half, BLOCK, 16)
            else:  # blocks before it can only have its first unit
                bits = bits & tl.where(units == unit, _same_unit(units_ptr, column, half, unit, BLOCK), 0)
            tl.store(ptrs_word + distance * (2 * BLOCK) + half * BLOCK, bits)
        distance += splits
        last = tl.load(units_ptr + (block - distance) * BLOCK + BLOCK - 1, mask=distance <= block, other=-1)
        end = tl.where((last == unit) & (unit % 2 == 0), end, distance)


@triton.jit
def _has_tiny(tiles_ptr, block, BLOCK: tl.constexpr):
    """Whether a union of one of the block's boxes and another can be too small for the test without division."""
    area = tl.load(tiles_ptr + block.to(tl.int64) * (5 * BLOCK) + 4 * BLOCK + tl.arange(0, BLOCK))
    return tl.max((area < SMALLEST_AREA).to(tl.int32), axis=0) > 0


@jit(do_not_specialize=["window", "splits", "threshold", "half_gap"])
def _pairs_kernel(
    # tensors
    tiles_ptr,  # [blocks, 5, BLOCK] x1, y1, x2, y2, area
    units_ptr,  # [blocks * BLOCK]
    labels_ptr,  # [blocks * BLOCK]
    words_ptr,  # [blocks, window, 2, BLOCK] out
    # sizes
    window,
    splits,
    # what counts
    threshold,
    half_gap,
    # constants
    GROUPED: tl.constexpr,
    TEST: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    block = tl.program_id(0) // splits
    distance = tl.program_id(0) % splits
    first = tl.load(units_ptr + block * BLOCK)
    last = tl.load(units_ptr + block * BLOCK + BLOCK - 1)
    near = tl.load(units_ptr + (block - distance) * BLOCK + BLOCK - 1, mask=distance <= block, other=-1)
    # a block of invalid boxes only has no tiles, and one of another unit is not reached
    active = ((distance == 0) & ((first != last) | (first % 2 == 0))) | ((near == first) & (first % 2 == 0))
    if active:
        if TEST == "divide":
            _row_tiles(
                tiles_ptr, units_ptr, labels_ptr, words_ptr, block, distance, window, splits, threshold, half_gap,
                GROUPED, "divide", BLOCK, COLUMNS,
            )  # fmt: skip
        elif _has_tiny(tiles_ptr, block, BLOCK):
            _row_tiles(
                tiles_ptr, units_ptr, labels_ptr, words_ptr, block, distance, window, splits, threshold, half_gap,
                GROUPED, "float64", BLOCK, COLUMNS,
            )  # fmt: skip
        else:
            _row_tiles(
                tiles_ptr, units_ptr, labels_ptr, words_ptr, block, distance, window, splits, threshold, half_gap,
                GROUPED, TEST, BLOCK, COLUMNS,
            )  # fmt: skip


@triton.jit
def _find_removed(
    tiles_ptr, units_ptr, labels_ptr, kept_ptr, block, unit, first, window, splits, threshold, half_gap,
    GROUPED: tl.constexpr, TEST: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Non-zero for the unit's rows that the boxes kept in this program's share of a window remove."""
    x1, y1, x2, y2, area, label = _rows(tiles_ptr, labels_ptr, block, GROUPED, BLOCK)
    mine = tl.load(units_ptr + block * BLOCK + tl.arange(0, BLOCK)) == unit
    removed = tl.zeros([BLOCK], tl.int32)
    for inside in range(tl.program_id(0) % splits, window, splits):
        column = first + inside
        for half in range(2):
            bits = _bits(
                tiles_ptr, labels_ptr, x1, y1, x2, y2, area, label, column, half, threshold, half_gap,
                GROUPED, TEST, BLOCK, COLUMNS,
            )  # fmt: skip
            kept = tl.load(kept_ptr + column * 2 + half)
            removed = removed | (bits & kept & _same_unit(units_ptr, column, half, unit, BLOCK))
    return tl.where(mine, removed, 0)


@jit(do_not_specialize=["window", "splits", "step", "threshold", "half_gap"])
def _strike_kernel(
    # tensors
    tiles_ptr,  # [blocks, 5, BLOCK]
    units_ptr,  # [blocks * BLOCK]
    labels_ptr,  # [blocks * BLOCK]
    kept_ptr,  # [blocks, 2] bits of the boxes kept of each block
    struck_ptr,  # [blocks * BLOCK] out: 1 where a box is removed
    # sizes
    window,
    splits,
    step,
    # what counts
    threshold,
    half_gap,
    # constants
    GROUPED: tl.constexpr,
    TEST: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Strike boxes of a unit's later windows that the boxes kept in window ``step`` remove."""
    block = (step + 1) * window + tl.program_id(0) // splits
    unit = tl.load(units_ptr + block * BLOCK)
    before = block - (step + 1) * window
    if (tl.load(units_ptr + before * BLOCK + BLOCK - 1) == unit) & (unit % 2 == 0):
        # find the unit's first block
        first = before * 0
        while first < before:
            middle = (first + before) // 2
            if tl.load(units_ptr + middle * BLOCK + BLOCK - 1) >= unit:
                before = middle
            else:
                first = middle + 1

        first += step * window
        if TEST == "divide":
            removed = _find_removed(
                tiles_ptr, units_ptr, labels_ptr, kept_ptr, block, unit, first, window, splits, threshold, half_gap,
                GROUPED, "divide", BLOCK, COLUMNS,
            )  # fmt: skip
        elif _has_tiny(tiles_ptr, block, BLOCK):
            removed = _find_removed(
                tiles_ptr, units_ptr, labels_ptr, kept_ptr, block, unit, first, window, splits, threshold, half_gap,
                GROUPED, "float64", BLOCK, COLUMNS,
            )  # fmt: skip
        else:
            removed = _find_removed(
                tiles_ptr, units_ptr, labels_ptr, kept_ptr, block, unit, first, window, splits, threshold, half_gap,
                GROUPED, TEST, BLOCK, COLUMNS,
            )  # fmt: skip
        offs = block * BLOCK + tl.arange(0, BLOCK)
        tl.store(struck_ptr + offs, tl.full([BLOCK], 1, tl.int8), mask=removed != 0)


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: groups and none, the two tests."""
    types = TYPES | {"threshold": "fp32", "half_gap": "fp32"}
    options = {"num_warps": 1, "enable_fp_fusion": False}
    for grouped, test in itertools.product((False, True), ("fma", "divide")):
        suffix = f"{'groups' if grouped else 'one group'}{', no positive threshold' if test == 'divide' else ''}"
        for name, kernel, few in (("pairs", _pairs_kernel, grouped), ("strikes", _strike_kernel, True)):
            constants = {"GROUPED": grouped, "TEST": test, "BLOCK": BLOCK, "COLUMNS": columns_of(few, test)}
            yield Variant(f"NMS, {name}, {suffix}", kernel, types, constants, options, default=test == "fma")
