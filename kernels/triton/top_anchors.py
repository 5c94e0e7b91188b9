"""Top-k anchors of each level in Triton: a radix select by digits of their keys, then a sort by one program a level.

A key is 32 bits, ascending as logits descend (triton.nms_order._score_key); the last digits of 16-bit floats are equal.
All levels of all images go at once, a program a chunk of CHUNK logits, where the head left them:
1. DIGITS launches count each value of a digit in a chunk, over the keys that begin with the digits found so far; each
   program finds the digit before its own from the sums of all chunks of its level.
2. One launch writes the keys below the last one that is kept, in any order, and as many keys equal to it, by place, as
   are needed.
3. One launch sorts each level's keys and places, which fixes the order.
    sums of chunks    [.. 0 3 9 40 ..]    the digit where the sum reaches the wanted number is the last kept key's
Specification: fallback/top_anchors.py. Cost: the logits, read DIGITS + 1 times from the L2 cache, 1 KiB a chunk, digit.
Predicted for 268,569 logits of bfloat16 in five levels, 1000 of each: 19 launches in 87 us -> 4 in 24 us, because
nothing is concatenated and ties need no second selection. Speed: not yet measured.
"""

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels.fallback import top_anchors as top_anchors_fallback
from fastmask.kernels.jit import jit
from fastmask.kernels.launch import on_device
from fastmask.kernels.triton.nms_order import _score_key
from fastmask.kernels.triton.roi_geometry import MAX_LEVELS, by_level, of_level
from fastmask.kernels.variant import DTYPES, Variant, pointers

BINS = 256  # values of a digit
CHUNK = 4096  # logits of a program
SUMMED = 16  # chunks whose counts are read at once
NUM_WARPS, SORT_WARPS = 8, 16
MAX_KEPT = 4096  # of a level, sorted in one program
LARGEST = 2**31 - CHUNK  # logits of an image
# digits of a key that distinguish its dtype's values: sign, exponent and mantissa as in float32
DIGITS = {torch.bfloat16: 2, torch.float16: 3, torch.float32: 4}
VARYING = [f"{name}{level}" for name in ("pixels", "image", "pitch") for level in range(MAX_LEVELS)]


# the values of all levels stand on one line
# fmt: off


@triton.jit
def _level_of(
    tile, pixels0, pixels1, pixels2, pixels3, pixels4,
    LEVELS: tl.constexpr, ANCHORS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A chunk's level, and the first chunk of that level."""
    level = tl.full([], 0, tl.int32)
    past = tl.cdiv(pixels0 * ANCHORS, CHUNK)
    first = past * 0
    for i in tl.static_range(1, LEVELS):
        beyond = tile >= past
        level += beyond.to(tl.int32)
        first = tl.where(beyond, past, first)
        past += tl.cdiv(of_level(i, pixels0, pixels1, pixels2, pixels3, pixels4, LEVELS) * ANCHORS, CHUNK)
    return level, first


@triton.jit
def _anchor_offsets(index, pitch, ANCHORS: tl.constexpr):
    """Offsets of anchors in an image's logits of a level."""
    return (index // ANCHORS).to(tl.int64) * pitch + index % ANCHORS


@triton.jit
def _find_digit(counts_ptr, chunks, wanted, SUMMED: tl.constexpr, BINS: tl.constexpr):
    """The digit of the last key that is kept, and how many keys with smaller ones there are; counts [chunks, BINS]."""
    bins = tl.arange(0, BINS)
    total = tl.zeros([SUMMED, BINS], tl.int32)
    for first in range(0, chunks, SUMMED):
        chunk = first + tl.arange(0, SUMMED)
        total += tl.load(counts_ptr + (chunk * BINS)[:, None] + bins[None, :], mask=(chunk < chunks)[:, None], other=0)
    total = tl.sum(total, axis=0)
    digit = tl.sum((tl.cumsum(total, axis=0) < wanted).to(tl.int32), axis=0)
    return digit, tl.sum(tl.where(bins < digit, total, 0), axis=0)


@jit(do_not_specialize=[*VARYING, "number", "chunks"])
def _count_digits_kernel(
    # tensors
    logits0_ptr, logits1_ptr, logits2_ptr, logits3_ptr, logits4_ptr,  # [B, pixels0, ANCHORS]
    counts_ptr,  # [B, chunks, BINS] out: of this digit
    earlier_ptr,  # [B, chunks, BINS] of the digit before it
    state_ptr,  # [B, LEVELS, 3] prefix of the last key kept, number wanted with it, keys written; read
    next_ptr,  # [B, LEVELS, 3] out: with the digit before this one
    # sizes
    number,
    chunks,
    pixels0, pixels1, pixels2, pixels3, pixels4,
    image0, image1, image2, image3, image4,  # strides of an image and of a pixel
    pitch0, pitch1, pitch2, pitch3, pitch4,
    # constants
    DIGIT: tl.constexpr,
    LEVELS: tl.constexpr,
    ANCHORS: tl.constexpr,
    CHUNK: tl.constexpr,
    SUMMED: tl.constexpr,
    BINS: tl.constexpr,
):
    # --- 1. read the keys of this program's chunk
    tile = tl.program_id(0)
    image = tl.program_id(1)
    level, first = _level_of(tile, pixels0, pixels1, pixels2, pixels3, pixels4, LEVELS, ANCHORS, CHUNK)
    num = of_level(level, pixels0, pixels1, pixels2, pixels3, pixels4, LEVELS) * ANCHORS
    index = (tile - first) * CHUNK + tl.arange(0, CHUNK)
    mask = index < num
    ptrs_logit = of_level(level, logits0_ptr, logits1_ptr, logits2_ptr, logits3_ptr, logits4_ptr, LEVELS)
    ptrs_logit += image.to(tl.int64) * of_level(level, image0, image1, image2, image3, image4, LEVELS)
    pitch = of_level(level, pitch0, pitch1, pitch2, pitch3, pitch4, LEVELS)
    key = _score_key(ptrs_logit, _anchor_offsets(index, pitch, ANCHORS), mask, mask).to(tl.uint32)

    # --- 2. select the keys that begin with the digits found so far
    state = (image * LEVELS + level) * 3
    matching = mask
    prefix = level * 0
    wanted = tl.minimum(number, num)
    if DIGIT > 0:
        if DIGIT > 1:
            prefix = tl.load(state_ptr + state)
            wanted = tl.load(state_ptr + state + 1)
        ptrs_earlier = earlier_ptr + (image * chunks + first).to(tl.int64) * BINS
        digit, smaller = _find_digit(ptrs_earlier, tl.cdiv(num, CHUNK), wanted, SUMMED, BINS)
        prefix = prefix * BINS + digit
        wanted -= smaller
        matching = mask & ((key >> (32 - 8 * DIGIT)).to(tl.int32) == prefix)
    if tile == first:
        tl.store(next_ptr + state, prefix)
        tl.store(next_ptr + state + 1, wanted)
        tl.store(next_ptr + state + 2, 0)
    # --- 3. count the values of this digit
    digits = ((key >> (24 - 8 * DIGIT)) & (BINS - 1)).to(tl.int32)
    counts = tl.histogram(digits, BINS, mask=matching)
    tl.store(counts_ptr + (image * chunks + tile).to(tl.int64) * BINS + tl.arange(0, BINS), counts)


@jit(do_not_specialize=[*VARYING, "number", "chunks"])
def _keep_kernel(
    # tensors
    logits0_ptr, logits1_ptr, logits2_ptr, logits3_ptr, logits4_ptr,  # [B, pixels0, ANCHORS]
    counts_ptr,  # [B, chunks, BINS] of the last digit
    state_ptr,  # [B, LEVELS, 3]; keys written is counted up
    kept_ptr,  # [B, LEVELS, KEPT] out: key << 31 | place in the level, in any order
    # sizes
    number,
    chunks,
    pixels0, pixels1, pixels2, pixels3, pixels4,
    image0, image1, image2, image3, image4,
    pitch0, pitch1, pitch2, pitch3, pitch4,
    # constants
    DIGITS: tl.constexpr,
    LEVELS: tl.constexpr,
    ANCHORS: tl.constexpr,
    CHUNK: tl.constexpr,
    SUMMED: tl.constexpr,
    BINS: tl.constexpr,
    KEPT: tl.constexpr,
):
    # --- 1. read the keys of this program's chunk
    tile = tl.program_id(0)
    image = tl.program_id(1)
    level, first = _level_of(tile, pixels0, pixels1, pixels2, pixels3, pixels4, LEVELS, ANCHORS, CHUNK)
    num = of_level(level, pixels0, pixels1, pixels2, pixels3, pixels4, LEVELS) * ANCHORS
    index = (tile - first) * CHUNK + tl.arange(0, CHUNK)
    mask = index < num
    ptrs_logit = of_level(level, logits0_ptr, logits1_ptr, logits2_ptr, logits3_ptr, logits4_ptr, LEVELS)
    ptrs_logit += image.to(tl.int64) * of_level(level, image0, image1, image2, image3, image4, LEVELS)
    pitch = of_level(level, pitch0, pitch1, pitch2, pitch3, pitch4, LEVELS)
    key = _score_key(ptrs_logit, _anchor_offsets(index, pitch, ANCHORS), mask, mask).to(tl.uint32)

    # --- 2. find the last key that is kept, and how many like it
    ptrs_state = state_ptr + (image * LEVELS + level) * 3
    prefix = tl.load(ptrs_state)
    wanted = tl.load(ptrs_state + 1)
    ptrs_counts = counts_ptr + (image * chunks + first).to(tl.int64) * BINS
    digit, smaller = _find_digit(ptrs_counts, tl.cdiv(num, CHUNK), wanted, SUMMED, BINS)
    wanted -= smaller
    last = (prefix * BINS + digit).to(tl.int64) & ((1 << (8 * DIGITS)) - 1)
    leading = (key >> (32 - 8 * DIGITS)).to(tl.int64)
    better = mask & (leading < last)
    equal = mask & (leading == last)
    ties = tl.zeros([CHUNK], tl.int32)  # in the level's chunks before this one
    for start in range(0, tile - first, CHUNK):
        chunk = start + tl.arange(0, CHUNK)
        ties += tl.load(ptrs_counts + chunk.to(tl.int64) * BINS + digit, mask=chunk < tile - first, other=0)
    ties = tl.sum(ties, axis=0)

    # --- 3. store better keys wherever there is room, equal ones behind all of these by place
    position = tl.cumsum(better.to(tl.int32) + (equal.to(tl.int32) << 16), axis=0)
    num_better = tl.sum(better.to(tl.int32), axis=0)
    begin = tl.atomic_add(ptrs_state + 2, num_better, sem="relaxed")
    tie = ties + (position >> 16) - 1
    slot = tl.where(better, begin + (position & 0xFFFF) - 1, tl.minimum(number, num) - wanted + tie)
    kept = better | (equal & (tie < wanted))
    value = (key.to(tl.int64) << 31) | index
    tl.store(kept_ptr + (image * LEVELS + level).to(tl.int64) * KEPT + slot, value, mask=kept)


@jit(do_not_specialize=[*VARYING, "number", "columns"])
def _sort_kept_kernel(
    # tensors
    logits0_ptr, logits1_ptr, logits2_ptr, logits3_ptr, logits4_ptr,  # [B, pixels0, ANCHORS]
    kept_ptr,  # [B, LEVELS, KEPT]
    best_ptr,  # [B, columns] out
    places_ptr,  # [B, columns] out
    # sizes
    number,
    columns,
    pixels0, pixels1, pixels2, pixels3, pixels4,
    image0, image1, image2, image3, image4,
    pitch0, pitch1, pitch2, pitch3, pitch4,
    # constants
    LEVELS: tl.constexpr,
    ANCHORS: tl.constexpr,
    KEPT: tl.constexpr,
):
    level = tl.program_id(0)
    image = tl.program_id(1)
    # how many the levels before it have, and how many of them are kept
    before = level.to(tl.int64) * 0
    column = level * 0
    for i in tl.static_range(LEVELS - 1):
        other = of_level(i, pixels0, pixels1, pixels2, pixels3, pixels4, LEVELS) * ANCHORS
        before += tl.where(i < level, other, 0)
        column += tl.where(i < level, tl.minimum(other, number), 0)
    num = of_level(level, pixels0, pixels1, pixels2, pixels3, pixels4, LEVELS) * ANCHORS
    lanes = tl.arange(0, KEPT)
    mask = lanes < tl.minimum(number, num)
    key = tl.load(kept_ptr + (image * LEVELS + level).to(tl.int64) * KEPT + lanes, mask=mask, other=0x7FFFFFFFFFFFFFFF)
    index = (tl.sort(key) & 0x7FFFFFFF).to(tl.int32)
    ptrs_logit = of_level(level, logits0_ptr, logits1_ptr, logits2_ptr, logits3_ptr, logits4_ptr, LEVELS)
    ptrs_logit += image.to(tl.int64) * of_level(level, image0, image1, image2, image3, image4, LEVELS)
    pitch = of_level(level, pitch0, pitch1, pitch2, pitch3, pitch4, LEVELS)
    out = image.to(tl.int64) * columns + column + lanes
    tl.store(best_ptr + out, tl.load(ptrs_logit + _anchor_offsets(index, pitch, ANCHORS), mask=mask), mask=mask)
    tl.store(places_ptr + out, before + index, mask=mask)


# fmt: on


def top_anchors(logits: Sequence[Tensor], number: int) -> tuple[Tensor, Tensor]:
    """Shapes as in fallback.top_anchors.top_anchors. float64, many levels, many kept ones: the eager fallback."""
    batch, anchors = logits[0].shape[:2]
    pixels = [level.shape[2] * level.shape[3] for level in logits]
    digits = DIGITS.get(logits[0].dtype)
    kept = min(number, max(pixels) * anchors)
    columns = sum(min(number, side * anchors) for side in pixels)
    plain = len(logits) > MAX_LEVELS or kept > MAX_KEPT or sum(pixels) * anchors > LARGEST or batch >= 2**16
    if digits is None or plain or batch * columns == 0:
        return top_anchors_fallback.top_anchors(logits, number)
    rows = [level.permute(0, 2, 3, 1).flatten(1, 2) for level in logits]  # [B, pixels, anchors]
    rows = [row if row.stride(2) == 1 or anchors == 1 else row.contiguous() for row in rows]
    chunks = sum(triton.cdiv(side * anchors, CHUNK) for side in pixels)
    levels = {
        **by_level("logits{}_ptr", rows),
        **by_level("pixels{}", pixels),
        **by_level("image{}", [row.stride(0) for row in rows]),
        **by_level("pitch{}", [row.stride(1) for row in rows]),
        "number": number,
        "LEVELS": len(logits),
        "ANCHORS": anchors,
    }
    counting = {"chunks": chunks, "CHUNK": CHUNK, "SUMMED": SUMMED, "BINS": BINS, "num_warps": NUM_WARPS}
    counts = rows[0].new_empty((digits, batch, chunks, BINS), dtype=torch.int32)
    states = rows[0].new_empty((digits, batch, len(logits), 3), dtype=torch.int32)
    slots = max(triton.next_power_of_2(kept), 16)
    keys = rows[0].new_empty((batch, len(logits), slots), dtype=torch.int64)
    best = rows[0].new_empty((batch, columns))
    places = rows[0].new_empty((batch, columns), dtype=torch.int64)
    with on_device(best):
        for digit in range(digits):
            _count_digits_kernel[(chunks, batch)](
                **levels,
                **counting,
                counts_ptr=counts[digit],
                earlier_ptr=counts[max(digit - 1, 0)],
                state_ptr=states[max(digit - 1, 0)],
                next_ptr=states[digit],
                DIGIT=digit,
            )
        _keep_kernel[(chunks, batch)](
            **levels, **counting, counts_ptr=counts[-1], state_ptr=states[-1], kept_ptr=keys, DIGITS=digits, KEPT=slots
        )
        _sort_kept_kernel[(len(logits), batch)](
            **levels,
            kept_ptr=keys,
            best_ptr=best,
            places_ptr=places,
            columns=columns,
            KEPT=slots,
            num_warps=SORT_WARPS,
        )
    return best, places


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: dtypes, each digit of their keys, numbers kept."""
    chunks = {"CHUNK": CHUNK, "SUMMED": SUMMED, "BINS": BINS}
    common = {"LEVELS": MAX_LEVELS, "ANCHORS": 3}
    integers = pointers("i32", "counts", "earlier", "state", "next") | pointers("i64", "kept", "places")
    options, sorting = {"num_warps": NUM_WARPS}, {"num_warps": SORT_WARPS}
    for dtype in DTYPES:
        types = integers | pointers(dtype, "best", *(f"logits{level}" for level in range(MAX_LEVELS)))
        digits = DIGITS[DTYPES[dtype]]
        for digit in range(digits):
            name, constants = f"top anchors, {dtype}, digit {digit}", common | chunks | {"DIGIT": digit}
            yield Variant(name, _count_digits_kernel, types, constants, options, default=digit == 1)
        for kept in (16, 1024, 2048, MAX_KEPT):  # few, an RPN's in use and in training, and the most
            name, default, constants = f"top anchors, {dtype}, {kept}", kept == 1024, common | {"KEPT": kept}
            every = constants | chunks | {"DIGITS": digits}
            yield Variant(f"{name} kept", _keep_kernel, types, every, options, default=default)
            yield Variant(f"{name} sorted", _sort_kept_kernel, types, constants, sorting, default=default)
