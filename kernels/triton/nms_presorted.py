"""Order of presorted NMS in Triton: images whose boxes come in runs by descending score, as the top-k of RPN levels.

Positions are the input's. A box's rank is its place in its own run plus, by binary search in each other run, the number
of boxes before it there; of equal scores the earlier index is first. A score counts as the running minimum of its run
(NaN, which comes first, excepted), so that ranks are a permutation even if a run is not sorted.
Cost: two launches; 11 dependent loads a box and run of 1000. On an H200 (bc309f8): 3.7 and 9.3 us
for 4819 boxes in five runs; since then a program merges 32 boxes, not 128: not yet measured.
"""

import itertools
from collections.abc import Iterator

import triton
import triton.language as tl

from fastmask.kernels.jit import jit
from fastmask.kernels.triton.nms_order import BLOCK, MAX_RUNS, RUN, TYPES, _fill_rest, _place, _score_key, _takes_part
from fastmask.kernels.variant import DTYPES, Variant, pointers


@triton.jit
def _run_end(run, end0, end1, end2, end3, end4, end5, end6, end7):
    """The end of each run; of the last one for numbers beyond it, and 0 for those before the first."""
    end = tl.where(run < 0, 0, end0)
    end = tl.where(run >= 1, end1, end)
    end = tl.where(run >= 2, end2, end)
    end = tl.where(run >= 3, end3, end)
    end = tl.where(run >= 4, end4, end)
    end = tl.where(run >= 5, end5, end)
    end = tl.where(run >= 6, end6, end)
    return tl.where(run >= 7, end7, end)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


MERGED = 32  # boxes of a program: eight reads of eight runs at once would queue up in a multiprocessor
ENDS = [f"end{i}" for i in range(8)]


# the ends of all runs stand on one line
# fmt: off


@jit(do_not_specialize=["num", *ENDS])
def _run_keys_kernel(
    # tensors
    scores_ptr,  # [B, N]
    keys_ptr,  # [B, N] out, ascending in each run
    # sizes
    num,
    end0, end1, end2, end3, end4, end5, end6, end7,
    # constants
    RUN: tl.constexpr,
):
    run = tl.program_id(1)
    start = _run_end(run - 1, end0, end1, end2, end3, end4, end5, end6, end7)
    end = _run_end(run, end0, end1, end2, end3, end4, end5, end6, end7)
    row = tl.program_id(0).to(tl.int64) * num
    largest = tl.zeros([], tl.int64)
    for first in range(start, end, RUN):
        offs = first + tl.arange(0, RUN)
        mask = offs < end
        key = _score_key(scores_ptr, row + offs, mask, mask)
        key = tl.maximum(tl.associative_scan(key, 0, _larger), largest)
        tl.store(keys_ptr + row + offs, (key - 0x80000000).to(tl.int32), mask=mask)
        largest = tl.max(key, axis=0)


@jit(do_not_specialize=["num", "padded", "filled", "size", "keep_words", "runs", "steps", *ENDS])
def _merge_kernel(
    # tensors
    boxes_ptr,  # [B, N, 4]
    valid_ptr,  # [B, N]
    keys_ptr,  # [B, N] ascending in each run
    tiles_ptr,  # [size / BLOCK, 5, BLOCK] out
    units_ptr,  # [size] out
    ranks_ptr,  # [size] out
    order_ptr,  # [B, N] out: boxes, best score first
    keep_words_ptr,  # [B, padded / 8] out: zeros
    # sizes
    num,
    padded,
    filled,
    size,
    keep_words,
    runs,
    steps,
    end0, end1, end2, end3, end4, end5, end6, end7,
    # constants
    HAS_VALID: tl.constexpr,
    DIVIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    MERGED: tl.constexpr,
    MAX_RUNS: tl.constexpr,
):
    position = tl.program_id(0) * MERGED + tl.arange(0, MERGED)
    mask = position < filled
    image = position // num
    index = position - image * num
    every = tl.arange(0, MAX_RUNS)[:, None]
    start = _run_end(every - 1, end0, end1, end2, end3, end4, end5, end6, end7)
    end = _run_end(every, end0, end1, end2, end3, end4, end5, end6, end7)
    own = tl.sum((end <= index[None, :]).to(tl.int32), axis=0)  # the run that the box is in
    key = tl.load(keys_ptr + position, mask=mask, other=0)

    # in each run, the first box that does not stand before it: all at once, a step halves what is left
    low = start + index[None, :] * 0
    high = end + index[None, :] * 0
    ptrs_row = keys_ptr + (image * num)[None, :]
    for _ in range(steps):
        middle = (low + high) // 2
        open_ = (low < high) & mask[None, :]
        there = tl.load(ptrs_row + middle, mask=open_, other=0)
        before = (there < key[None, :]) | ((there == key[None, :]) & (every < own[None, :]))
        high = tl.where(open_ & (before == 0), middle, high)
        low = tl.where(open_ & before, middle + 1, low)
    low = tl.where(every == own[None, :], index[None, :], low)
    rank = tl.sum(low - start, axis=0)

    tl.store(order_ptr + image * num + rank, position.to(tl.int64), mask=mask)
    unit = 2 * (image * (runs + 1) + own)
    taking = _takes_part(valid_ptr, position, mask, HAS_VALID)
    place = image * padded + rank
    _place(
        boxes_ptr, valid_ptr, tiles_ptr, units_ptr, valid_ptr, ranks_ptr,
        position, position, place, unit, taking, mask, False, DIVIDE, BLOCK,
    )  # fmt: skip
    _fill_rest(
        tiles_ptr, units_ptr, valid_ptr, ranks_ptr, keep_words_ptr, filled, size, keep_words, False, BLOCK, MERGED
    )


# fmt: on


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: dtypes, padding, thresholds."""
    for dtype, padded, divide in itertools.product(DTYPES, (False, True), (False, True)):
        yield Variant(
            f"NMS, merged, {dtype}{', padding' if padded else ''}{', no positive threshold' if divide else ''}",
            _merge_kernel,
            TYPES | pointers(dtype, "boxes") | pointers("i32", "keys"),
            {"HAS_VALID": padded, "DIVIDE": divide, "BLOCK": BLOCK, "MERGED": MERGED, "MAX_RUNS": MAX_RUNS},
            {"num_warps": 4},
            default=padded,
        )
    for dtype in DTYPES:
        types = pointers(dtype, "scores") | pointers("i32", "keys")
        yield Variant(f"NMS, runs' keys, {dtype}", _run_keys_kernel, types, {"RUN": RUN}, {"num_warps": 4})
