"""Which box would remove which, in Triton: every pair inside a unit, 64 boxes against 64, as rows of bits.

A tile is a block of rows and a block of columns before it, or the same; bit j of a row: column j removes it.
    words[block, distance, half, row]: 32 columns of the block ``distance`` before the row's own
A program has one block of rows and every SPLITS-th distance, and leaves where a block of columns ends in another unit.
One warp: a thread has two rows, so that a column's box is read once for both, and bits are summed without a word to
other threads.
The pair test has no division. With t the threshold and h half the gap to the float above it, inter / union, correctly
rounded, is above t just where fma(-t, union, inter) > h * union: the quotient is above t where inter > (t + h) * union,
for 25 bits times 24 are never a float; inter - t * union and h * union then differ by at least one ulp of the latter,
which survives the rounding of the first; and h is a power of two. All of it needs t * union of at least 2^-102:
SMALLEST_THRESHOLD and SMALLEST_AREA; what is below divides.
Cost: 16 instructions a pair; 8 bytes a row and block before it. Predicted for 1000 boxes: 16 + 120 tiles in one CTA
-> in 136 of them; a tile from ~1700 to ~1100 instructions a warp, 8 warps to 1. Speed: not yet measured.
"""

import triton
import triton.language as tl

SPLITS = 16  # programs of a block of rows
SMALLEST_THRESHOLD = 2.0**-20
SMALLEST_AREA = tl.constexpr(2.0**-80)


@triton.jit
def _exceeds(ax1, ay1, ax2, ay2, a_area, bx1, by1, bx2, by2, b_area, threshold, half_gap, DIVIDE, EXACT):
    """IoU > threshold of boxes that broadcast to each other; NaN, from whatever coordinate, exceeds nothing."""
    right = tl.minimum(ax2, bx2, propagate_nan=tl.PropagateNan.ALL)
    width = right - tl.maximum(ax1, bx1, propagate_nan=tl.PropagateNan.ALL)
    below = tl.minimum(ay2, by2, propagate_nan=tl.PropagateNan.ALL)
    height = below - tl.maximum(ay1, by1, propagate_nan=tl.PropagateNan.ALL)
    width = tl.maximum(width, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if DIVIDE:
        height = tl.maximum(height, 0.0, propagate_nan=tl.PropagateNan.ALL)
    inter = width * height  # of apart boxes 0 or less, which exceeds no positive threshold
    union = (a_area + b_area) - inter
    if DIVIDE:
        exceeds = tl.div_rn(inter, union) > threshold
    elif EXACT:  # the interpreter's fma rounds twice; 25 bits times 24 fit into float64
        exceeds = inter.to(tl.float64) > threshold * union.to(tl.float64) + half_gap * union.to(tl.float64)
    else:
        exceeds = tl.fma(-threshold, union, inter) > half_gap * union
    return exceeds


@triton.jit
def _half_tile(
    tiles_ptr,
    units_ptr,
    labels_ptr,
    block,
    column,
    half,
    threshold,
    half_gap,
    GROUPED: tl.constexpr,
    MIXED: tl.constexpr,
    DIVIDE: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Bits [BLOCK] of 32 columns, half a block, for a block's rows."""
    rows = tl.arange(0, BLOCK)
    lanes = tl.arange(0, BLOCK // 2)
    ptrs_row = tiles_ptr + block.to(tl.int64) * (5 * BLOCK) + rows
    ptrs_column = tiles_ptr + column.to(tl.int64) * (5 * BLOCK) + half * (BLOCK // 2) + lanes
    removes = _exceeds(
        tl.load(ptrs_column)[:, None],
        tl.load(ptrs_column + BLOCK)[:, None],
        tl.load(ptrs_column + 2 * BLOCK)[:, None],
        tl.load(ptrs_column + 3 * BLOCK)[:, None],
        tl.load(ptrs_column + 4 * BLOCK)[:, None],
        tl.load(ptrs_row)[None, :],
        tl.load(ptrs_row + BLOCK)[None, :],
        tl.load(ptrs_row + 2 * BLOCK)[None, :],
        tl.load(ptrs_row + 3 * BLOCK)[None, :],
        tl.load(ptrs_row + 4 * BLOCK)[None, :],
        threshold,
        half_gap,
        DIVIDE,
        EXACT,
    )
    offs_row = block * BLOCK + rows
    offs_column = column * BLOCK + half * (BLOCK // 2) + lanes
    if MIXED:
        removes = removes & (tl.load(units_ptr + offs_column)[:, None] == tl.load(units_ptr + offs_row)[None, :])
        removes = removes & (offs_column[:, None] < offs_row[None, :])
    if GROUPED:
        removes = removes & (tl.load(labels_ptr + offs_column)[:, None] == tl.load(labels_ptr + offs_row)[None, :])
    bit = tl.full([BLOCK // 2], 1, tl.int32) << lanes
    return tl.sum(tl.where(removes, bit[:, None], 0), axis=0)


@triton.jit
def _half_tile_of(
    tiles_ptr, units_ptr, labels_ptr, block, column, half, threshold, half_gap, mixed, tiny,
    GROUPED: tl.constexpr, DIVIDE: tl.constexpr, EXACT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """:func:`_half_tile` at the least cost."""
    if DIVIDE:
        bits = _half_tile(
            tiles_ptr, units_ptr, labels_ptr, block, column, half, threshold, half_gap, GROUPED, True, True, EXACT, BLOCK
        )  # fmt: skip
    elif tiny:
        bits = _half_tile(
            tiles_ptr, units_ptr, labels_ptr, block, column, half, threshold, half_gap, GROUPED, True, True, EXACT, BLOCK
        )  # fmt: skip
    elif mixed:
        bits = _half_tile(
            tiles_ptr, units_ptr, labels_ptr, block, column, half, threshold, half_gap, GROUPED, True, False, EXACT, BLOCK
        )  # fmt: skip
    else:
        bits = _half_tile(
            tiles_ptr, units_ptr, labels_ptr, block, column, half, threshold, half_gap, GROUPED, False, False, EXACT, BLOCK
        )  # fmt: skip
    return bits


@triton.jit
def _has_tiny(tiles_ptr, block, BLOCK: tl.constexpr):
    """Whether a union of one of the block's boxes and another can be too small for the test without division."""
    area = tl.load(tiles_ptr + block.to(tl.int64) * (5 * BLOCK) + 4 * BLOCK + tl.arange(0, BLOCK))
    return tl.max((area < SMALLEST_AREA).to(tl.int32), axis=0) > 0


@triton.jit(do_not_specialize=["window", "splits", "threshold", "half_gap"])
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
    DIVIDE: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0) // splits
    distance = tl.program_id(0) % splits
    first = tl.load(units_ptr + block * BLOCK)
    last = tl.load(units_ptr + block * BLOCK + BLOCK - 1)
    near = tl.load(units_ptr + (block - distance) * BLOCK + BLOCK - 1, mask=distance <= block, other=-1)
    tiny = _has_tiny(tiles_ptr, block, BLOCK)
    idle = (first == last) & (first % 2 != 0)  # nothing in here takes part
    going = (distance <= block) & (distance < window) & ((distance == 0) | ((near == first) & (first % 2 == 0)))
    going = going & (idle == 0)
    while going:
        column = block - distance
        ptrs_word = words_ptr + (block.to(tl.int64) * window + distance) * (2 * BLOCK) + tl.arange(0, BLOCK)
        mixed = (distance == 0) | (tl.load(units_ptr + column * BLOCK) != last)
        for half in range(2):
            bits = _half_tile_of(
                tiles_ptr, units_ptr, labels_ptr, block, column, half, threshold, half_gap, mixed, tiny,
                GROUPED, DIVIDE, EXACT, BLOCK,
            )  # fmt: skip
            tl.store(ptrs_word + half * BLOCK, bits)
        distance += splits
        near = tl.load(units_ptr + (block - distance) * BLOCK + BLOCK - 1, mask=distance <= block, other=-1)
        going = (distance <= block) & (distance < window) & (near == first) & (first % 2 == 0)


@triton.jit(do_not_specialize=["window", "splits", "step", "threshold", "half_gap"])
def _strike_kernel(
    # tensors
    tiles_ptr,  # [blocks, 5, BLOCK]
    units_ptr,  # [blocks * BLOCK]
    labels_ptr,  # [blocks * BLOCK]
    kept_ptr,  # [blocks, 2] bits of what is kept of each block
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
    DIVIDE: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What is kept in window ``step`` of a unit removes boxes of all its later windows."""
    block = (step + 1) * window + tl.program_id(0) // splits
    unit = tl.load(units_ptr + block * BLOCK)
    before = block - (step + 1) * window
    if (tl.load(units_ptr + before * BLOCK + BLOCK - 1) == unit) & (unit % 2 == 0):
        # the unit's first block
        first = before * 0
        while first < before:
            middle = (first + before) // 2
            if tl.load(units_ptr + middle * BLOCK + BLOCK - 1) >= unit:
                before = middle
            else:
                first = middle + 1

        tiny = _has_tiny(tiles_ptr, block, BLOCK)
        removed = tl.zeros([BLOCK], tl.int32)
        first += step * window
        for column in range(first + tl.program_id(0) % splits, first + window, splits):
            for half in range(2):
                kept = tl.load(kept_ptr + column * 2 + half)
                if kept != 0:
                    bits = _half_tile_of(
                        tiles_ptr, units_ptr, labels_ptr, block, column, half, threshold, half_gap, True, tiny,
                        GROUPED, DIVIDE, EXACT, BLOCK,
                    )  # fmt: skip
                    removed = removed | (bits & kept)
        offs = block * BLOCK + tl.arange(0, BLOCK)
        tl.store(struck_ptr + offs, tl.full([BLOCK], 1, tl.int8), mask=removed != 0)
