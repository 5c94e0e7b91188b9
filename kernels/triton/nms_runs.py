"""Order of NMS in Triton by a merge sort: a program sorts a run of RUN boxes, then all runs of an image merge at once.

A box has two keys of 63 bits: score and index, and, with groups, its unit in front of these. No two are equal, so a
box's place is the number of smaller keys in each run: binary searches, in SEARCHED runs side by side.
    keys[image, 0, run]    score, index      the smaller ones: a box's rank
    keys[image, 1, run]    unit, score, index                : its position
Invalid boxes are left out of the runs, whose lengths say so, and searches are as short as that: for candidates that are
mostly padding the second launch does next to nothing.
Cost: two launches; a bitonic sort of RUN, and per box log2(RUN) + 1 dependent loads for every SEARCHED runs.
Predicted in place of two radix sorts, for 19,000 candidates of which 1000 take part: 92 -> 12 us; for 20,000 that all
do: 88 -> 15 us. Speed: not yet measured.
"""

import itertools
from collections.abc import Iterator

import triton.language as tl

from fastmask.kernels.jit import jit
from fastmask.kernels.triton.nms_order import (
    BLOCK,
    TYPES,
    _bucket,
    _fill_rest,
    _place,
    _score_key,
    _takes_part,
    group_modes,
)
from fastmask.kernels.variant import DTYPES, Variant, pointers

RUN = 1024  # boxes that a program sorts
SORT_WARPS = 16
SEARCHED = 8  # runs that binary searches go through side by side
MERGED = 32  # boxes of a program that merges
MAX_BOXES = 2**16  # of an image: an index takes 16 bits
LAST = tl.constexpr(0x7FFFFFFFFFFFFFFF)  # behind every valid box


@jit(do_not_specialize=["num", "runs", "buckets", "shift"])
def _sort_runs_kernel(
    # tensors
    scores_ptr,  # [B, N]
    groups_ptr,  # [B, N]
    valid_ptr,  # [B, N]
    keys_ptr,  # [B, 1 or 2, runs, RUN] out, ascending
    lengths_ptr,  # [B, runs] out: valid boxes of a run
    # sizes
    num,
    runs,
    buckets,
    shift,
    # constants
    GROUPED: tl.constexpr,
    HASHED: tl.constexpr,
    HAS_VALID: tl.constexpr,
    RUN: tl.constexpr,
):
    image = tl.program_id(0) // runs
    run = tl.program_id(0) % runs
    index = run * RUN + tl.arange(0, RUN)
    row = image.to(tl.int64) * num
    mask = index < num
    taking = _takes_part(valid_ptr, row + index, mask, HAS_VALID)
    length = tl.sum(taking.to(tl.int32), axis=0)
    kind = tl.program_id(1)
    if kind == 0:
        tl.store(lengths_ptr + tl.program_id(0), length)
    if length > 0:
        key = (_score_key(scores_ptr, row + index, taking, mask) << 16) | index
        if GROUPED:
            unit = _bucket(groups_ptr, row + index, taking, mask, buckets, shift, True, HASHED)
            key = tl.where(kind > 0, (unit.to(tl.int64) << 48) | key, key)
        key = tl.sort(tl.where(taking, key, LAST))
        sorted_run = (image.to(tl.int64) * (2 if GROUPED else 1) + kind) * runs + run
        tl.store(keys_ptr + sorted_run * RUN + tl.arange(0, RUN), key)


@jit(do_not_specialize=["num", "padded", "filled", "size", "keep_words", "buckets", "runs"])
def _merge_runs_kernel(
    # tensors
    boxes_ptr,  # [B, N, 4]
    groups_ptr,  # [B, N]
    keys_ptr,  # [B, 1 or 2, runs, RUN] ascending as far as lengths say, and nothing behind it
    lengths_ptr,  # [B, runs]
    tiles_ptr,  # [size / BLOCK, 5, BLOCK] out
    units_ptr,  # [size] out
    labels_ptr,  # [size] out
    ranks_ptr,  # [size] out
    order_ptr,  # [B, N] out: valid boxes, best score first
    keep_words_ptr,  # [B, padded / 8] out: zeros
    # sizes
    num,
    padded,
    filled,
    size,
    keep_words,
    buckets,
    runs,
    # constants
    GROUPED: tl.constexpr,
    DIVIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    RUN: tl.constexpr,
    SEARCHED: tl.constexpr,
    MERGED: tl.constexpr,
):
    # --- 1. load this program's boxes of one sorted run
    part = tl.program_id(0) % (RUN // MERGED)
    image = tl.program_id(0) // (RUN // MERGED) // runs
    run = tl.program_id(0) // (RUN // MERGED) % runs
    slot = part * MERGED + tl.arange(0, MERGED)
    mask = run * RUN + slot < num
    length = tl.load(lengths_ptr + image * runs + run)
    taking = mask & (slot < length)
    ptrs_image = keys_ptr + image.to(tl.int64) * runs * ((2 if GROUPED else 1) * RUN)
    ptrs_own = ptrs_image
    if GROUPED:
        ptrs_own += runs * RUN
    key = tl.load(ptrs_own + run * RUN + slot, mask=taking, other=0)
    by_score = key & 0xFFFFFFFFFFFF

    # --- 2. search all runs of the image for what stands before each, SEARCHED runs at once
    before_score = tl.zeros([SEARCHED, MERGED], tl.int32)
    before_unit = tl.zeros([SEARCHED, MERGED], tl.int32)
    count = tl.zeros([SEARCHED], tl.int32)
    absent = tl.zeros([SEARCHED], tl.int32)  # invalid boxes of earlier runs
    for first in range(0, runs, SEARCHED):
        other = first + tl.arange(0, SEARCHED)
        lengths = tl.load(lengths_ptr + image * runs + other, mask=other < runs, other=0)
        count += lengths
        absent += tl.where(other < run, RUN - lengths, 0)
        most = tl.max(lengths, axis=0)
        step = tl.where(part * MERGED < length, RUN, 0)
        while step > most:
            step = step // 2
        lengths = tl.where(taking[None, :], lengths[:, None], 0)
        ptrs_run = ptrs_image + (other * RUN)[:, None] - 1
        found_score = tl.zeros([SEARCHED, MERGED], tl.int32)
        found_unit = tl.zeros([SEARCHED, MERGED], tl.int32)
        while step > 0:  # a power of two: keys to skip at once
            probed = found_score + step
            there = tl.load(ptrs_run + probed, mask=probed <= lengths, other=LAST)
            found_score = tl.where(there < by_score[None, :], probed, found_score)
            if GROUPED:
                probed = found_unit + step
                there = tl.load(ptrs_run + runs * RUN + probed, mask=probed <= lengths, other=LAST)
                found_unit = tl.where(there < key[None, :], probed, found_unit)
            step = step // 2
        before_score += found_score
        before_unit += found_unit
    rank = tl.sum(before_score, axis=0)
    place = tl.sum(before_unit, axis=0) if GROUPED else rank
    place = tl.where(taking, place, tl.sum(count, axis=0) + tl.sum(absent, axis=0) + slot - length)

    # --- 3. store the boxes at their places
    element = image.to(tl.int64) * num + (key & 0xFFFF)
    tl.store(order_ptr + image.to(tl.int64) * num + rank, element, mask=taking)
    bucket = tl.where(taking, (key >> 48).to(tl.int32), buckets) if GROUPED else tl.where(taking, 0, buckets)
    unit = 2 * (image * (buckets + 1) + bucket) + (bucket == buckets).to(tl.int32)
    _place(
        boxes_ptr, groups_ptr, tiles_ptr, units_ptr, labels_ptr, ranks_ptr,
        image * num + place, element, image * padded + rank, unit, taking, mask, GROUPED, DIVIDE, BLOCK,
    )  # fmt: skip
    _fill_rest(
        tiles_ptr, units_ptr, labels_ptr, ranks_ptr, keep_words_ptr, filled, size, keep_words, GROUPED, BLOCK, MERGED
    )


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: dtypes, padding, groups; thresholds of the merges, which read no ``valid``."""
    flags = (False, True)
    types = TYPES | pointers("i64", "keys")
    for dtype, padded, (groups, mode) in itertools.product(DTYPES, flags, group_modes()):
        name = f"NMS, runs sorted, {groups}, {dtype}{', padding' if padded else ''}"
        constants = mode | {"HAS_VALID": padded, "RUN": RUN}
        default = padded and groups == "groups"
        own = types | pointers(dtype, "scores")
        yield Variant(name, _sort_runs_kernel, own, constants, {"num_warps": SORT_WARPS}, default=default)
    for dtype, grouped, divide in itertools.product(DTYPES, flags, flags):
        name = f"NMS, runs merged, {'groups' if grouped else 'one group'}, {dtype}"
        name += ", no positive threshold" if divide else ""
        constants = {"GROUPED": grouped, "DIVIDE": divide, "BLOCK": BLOCK, "RUN": RUN}
        constants |= {"SEARCHED": SEARCHED, "MERGED": MERGED}
        default = grouped and not divide
        own = types | pointers(dtype, "boxes")
        yield Variant(name, _merge_runs_kernel, own, constants, {"num_warps": 4}, default=default)
