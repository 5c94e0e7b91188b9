"""Order of NMS in Triton: each box's *rank* by score in its image, and its *position* among the boxes of its *unit*.

Boxes that may remove each other form a unit, and stand side by side, by score. A unit is a group, a run of a presorted
image, the whole image where there are no groups, or, of arbitrary int64 groups, all that share a hash (the pair test
compares the groups themselves, so a collision costs time alone). Invalid boxes stand behind the others in a unit of
their own; a presorted image leaves them where they are. Four ways lead to the same arrays:
- up to COMPARISONS pairs: every box counts those before it, by score and by position, in one launch;
- up to MERGES pairs: runs of boxes are sorted in a program each and then merged (triton/nms_runs.py);
- beyond: one stable sort of the whole batch by score and one by the unit's number, in its fewest bytes;
- presorted: no sort; ranks are positions plus binary searches in the image's other runs.
Cost: 12 instructions a pair with groups, 7 without; 2 launches; 4 radix passes (8 for several images) and 1 or 2; 2
launches.
Predicted for 4819 presorted boxes of one image, with launches: 68 us of sorts and small kernels -> 13 us, because 25
launches become 2. On an H200 (bc309f8) 13 us; counting 23 million pairs took 43, which MERGES now leaves to runs.
"""

import itertools
from collections.abc import Iterator

import triton
import triton.language as tl

from fastmask.kernels.jit import jit
from fastmask.kernels.variant import DTYPES, Variant, pointers

BLOCK = 64  # positions of a tile
COUNTED, COMPARED = 32, 256  # boxes of a program that counts, and boxes of a step that they are compared with
COUNT_WARPS = 8
PLACED = 128  # boxes of a program of the small kernels
RUN = 1024  # scores of a step of a running minimum
MAX_RUNS = 8  # that binary searches go through side by side
# of pointers that kernels of NMS share, for their variants
TYPES = {
    **pointers("i64", "groups", "labels", "order", "sorted", "keep_words", "indices", "count"),
    **pointers("i32", "units", "ranks", "words", "kept", "num_kept", "lengths"),
    **pointers("i8", "valid", "keep", "struck"),
    **pointers("fp32", "tiles"),
}
HASH_MULTIPLIER = tl.constexpr(-7046029254386353131)  # 2^64 / golden ratio: neighbors fall far apart


@triton.jit
def _score_key(scores_ptr, offs, taking, mask):
    """The order of scores as integers in [0, 2^32): NaN, then descending, -0.0 as 0.0; invalid boxes last."""
    score = tl.load(scores_ptr + offs, mask=mask, other=0).to(tl.float32) + 0.0
    bits = score.to(tl.int32, bitcast=True)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    bits = ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))
    key = tl.where(nan, 0, bits.to(tl.int64) + 0x80000000)
    return tl.where(taking, key, 0xFFFFFFFF)


@triton.jit
def _takes_part(valid_ptr, offs, mask, HAS_VALID: tl.constexpr):
    taking = mask
    if HAS_VALID:
        taking = mask & (tl.load(valid_ptr + offs, mask=mask, other=0) != 0)
    return taking


@triton.jit
def _bucket(groups_ptr, offs, taking, mask, buckets, shift, GROUPED: tl.constexpr, HASHED: tl.constexpr):
    """A box's unit within its image, int32 in [0, buckets); ``buckets`` for invalid boxes."""
    bucket = offs.to(tl.int32) * 0
    if GROUPED:
        group = tl.load(groups_ptr + offs, mask=mask, other=0)
        if HASHED:
            bucket = ((group * HASH_MULTIPLIER) >> shift).to(tl.int32) & (buckets - 1)
        else:
            bucket = tl.minimum(tl.maximum(group, 0), buckets - 1).to(tl.int32)
    return tl.where(taking, bucket, buckets)


@triton.jit
def _place(
    boxes_ptr,  # [B, N, 4]
    groups_ptr,  # [B, N]
    tiles_ptr,  # [size / BLOCK, 5, BLOCK] out
    units_ptr,  # [size] out
    labels_ptr,  # [size] out
    ranks_ptr,  # [size] out
    position,
    element,
    rank,
    unit,
    taking,
    mask,
    GROUPED: tl.constexpr,
    DIVIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write boxes to their positions: corners and area, unit, group and rank; NaN where no IoU exceeds a threshold."""
    nan = float("nan")
    ptrs_box = boxes_ptr + element.to(tl.int64) * 4
    x1 = tl.load(ptrs_box, mask=taking, other=nan).to(tl.float32)
    y1 = tl.load(ptrs_box + 1, mask=taking, other=nan).to(tl.float32)
    x2 = tl.load(ptrs_box + 2, mask=taking, other=nan).to(tl.float32)
    y2 = tl.load(ptrs_box + 3, mask=taking, other=nan).to(tl.float32)
    width = x2 - x1
    height = y2 - y1
    area = width * height
    if not DIVIDE:  # of an empty or inverted box, or one with NaN, no IoU is above a positive threshold
        x1 = tl.where((width > 0) & (height > 0), x1, nan)
    ptrs_tile = tiles_ptr + (position // BLOCK).to(tl.int64) * (5 * BLOCK) + position % BLOCK
    tl.store(ptrs_tile, x1, mask=mask)
    tl.store(ptrs_tile + BLOCK, y1, mask=mask)
    tl.store(ptrs_tile + 2 * BLOCK, x2, mask=mask)
    tl.store(ptrs_tile + 3 * BLOCK, y2, mask=mask)
    tl.store(ptrs_tile + 4 * BLOCK, area, mask=mask)
    tl.store(units_ptr + position, unit, mask=mask)
    if GROUPED:
        tl.store(labels_ptr + position, tl.load(groups_ptr + element, mask=taking, other=0), mask=mask)
    tl.store(ranks_ptr + position, tl.where(taking, rank, -1), mask=mask)


@triton.jit
def _fill_rest(
    tiles_ptr,
    units_ptr,
    labels_ptr,
    ranks_ptr,
    keep_words_ptr,
    filled,
    size,
    keep_words,
    GROUPED: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):
    """Zeros for this program's share of ``keep``; the first program fills the last tile's end, which has no boxes."""
    offs = tl.program_id(0) * LANES + tl.arange(0, LANES)
    tl.store(keep_words_ptr + offs, tl.zeros([LANES], tl.int64), mask=offs < keep_words)
    if tl.program_id(0) == 0:
        position = filled + tl.arange(0, BLOCK)
        mask = position < size
        ptrs_tile = tiles_ptr + (position // BLOCK).to(tl.int64) * (5 * BLOCK) + position % BLOCK
        for k in tl.static_range(5):
            tl.store(ptrs_tile + k * BLOCK, tl.full([BLOCK], float("nan"), tl.float32), mask=mask)
        tl.store(units_ptr + position, tl.full([BLOCK], -1, tl.int32), mask=mask)
        tl.store(ranks_ptr + position, tl.full([BLOCK], -1, tl.int32), mask=mask)
        if GROUPED:
            tl.store(labels_ptr + position, tl.zeros([BLOCK], tl.int64), mask=mask)


VARYING = ["num", "padded", "filled", "size", "keep_words", "buckets", "shift"]


@jit(do_not_specialize=VARYING)
def _count_kernel(
    # tensors
    boxes_ptr,  # [B, N, 4]
    scores_ptr,  # [B, N]
    groups_ptr,  # [B, N]
    valid_ptr,  # [B, N]
    tiles_ptr,  # [size / BLOCK, 5, BLOCK] out
    units_ptr,  # [size] out
    labels_ptr,  # [size] out
    ranks_ptr,  # [size] out
    order_ptr,  # [B, N] out: boxes, best score first
    keep_words_ptr,  # [B, padded / 8] out: zeros
    # sizes
    num,
    padded,
    filled,
    size,
    keep_words,
    buckets,
    shift,
    # constants
    GROUPED: tl.constexpr,
    HASHED: tl.constexpr,
    HAS_VALID: tl.constexpr,
    DIVIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    COUNTED: tl.constexpr,
    COMPARED: tl.constexpr,
):
    # --- 1. make the keys of this program's boxes
    programs = tl.cdiv(num, COUNTED)
    image = tl.program_id(0) // programs
    own = tl.program_id(0) % programs * COUNTED + tl.arange(0, COUNTED)
    mask = own < num
    row = image.to(tl.int64) * num
    taking = _takes_part(valid_ptr, row + own, mask, HAS_VALID)
    bucket = _bucket(groups_ptr, row + own, taking, mask, buckets, shift, GROUPED, HASHED)
    # 15 bits of the unit, 32 of the score and 16 of the index make one number that is compared
    by_score = (_score_key(scores_ptr, row + own, taking, mask) << 16) | own
    by_unit = (bucket.to(tl.int64) << 48) | by_score

    # --- 2. count the boxes before each: by score, and by unit and score
    rank = tl.zeros([COMPARED, COUNTED], tl.int32)
    place = tl.zeros([COMPARED, COUNTED], tl.int32)
    for first in range(0, num, COMPARED):
        offs = first + tl.arange(0, COMPARED)
        there = offs < num
        takes = _takes_part(valid_ptr, row + offs, there, HAS_VALID)
        unit = _bucket(groups_ptr, row + offs, takes, there, buckets, shift, GROUPED, HASHED)
        score = (_score_key(scores_ptr, row + offs, takes, there) << 16) | offs
        score = tl.where(there, score, 0x7FFFFFFFFFFFFFFF)
        rank += (score[:, None] < by_score[None, :]).to(tl.int32)
        if GROUPED:
            place += (((unit.to(tl.int64) << 48) | score)[:, None] < by_unit[None, :]).to(tl.int32)
    rank = tl.sum(rank, axis=0)
    place = tl.sum(place, axis=0) if GROUPED else rank  # invalid boxes have the last scores

    # --- 3. store the boxes at their places
    tl.store(order_ptr + row + rank, row + own, mask=mask)
    unit = 2 * (image * (buckets + 1) + bucket) + (bucket == buckets).to(tl.int32)
    _place(
        boxes_ptr, groups_ptr, tiles_ptr, units_ptr, labels_ptr, ranks_ptr,
        image * num + place, row + own, image * padded + rank, unit, taking, mask, GROUPED, DIVIDE, BLOCK,
    )  # fmt: skip
    _fill_rest(
        tiles_ptr, units_ptr, labels_ptr, ranks_ptr, keep_words_ptr, filled, size, keep_words, GROUPED, BLOCK, COUNTED
    )


@jit(do_not_specialize=["num", "filled"])
def _score_keys_kernel(
    # tensors
    scores_ptr,  # [B, N]
    valid_ptr,  # [B, N]
    keys_ptr,  # [B, N] out, int32 of one image or int64 of several, ascending as the order is
    # sizes
    num,
    filled,
    # constants
    HAS_VALID: tl.constexpr,
    ONE_IMAGE: tl.constexpr,
    PLACED: tl.constexpr,
):
    offs = tl.program_id(0) * PLACED + tl.arange(0, PLACED)
    mask = offs < filled
    taking = _takes_part(valid_ptr, offs, mask, HAS_VALID)
    key = _score_key(scores_ptr, offs, taking, mask)
    if ONE_IMAGE:
        tl.store(keys_ptr + offs, (key - 0x80000000).to(tl.int32), mask=mask)
    else:
        tl.store(keys_ptr + offs, ((offs // num).to(tl.int64) << 32) | key, mask=mask)


@jit(do_not_specialize=["num", "filled", "buckets", "shift"])
def _unit_keys_kernel(
    # tensors
    groups_ptr,  # [B, N]
    valid_ptr,  # [B, N]
    order_ptr,  # [B, N] boxes, best score first
    keys_ptr,  # [B, N] out: the number of each one's unit through the batch, in few bits
    # sizes
    num,
    filled,
    buckets,
    shift,
    # constants
    HASHED: tl.constexpr,
    HAS_VALID: tl.constexpr,
    PLACED: tl.constexpr,
):
    offs = tl.program_id(0) * PLACED + tl.arange(0, PLACED)
    mask = offs < filled
    element = tl.load(order_ptr + offs, mask=mask, other=0)
    taking = _takes_part(valid_ptr, element, mask, HAS_VALID)
    bucket = _bucket(groups_ptr, element, taking, mask, buckets, shift, True, HASHED)
    tl.store(keys_ptr + offs, offs // num * (buckets + 1) + bucket, mask=mask)


@jit(do_not_specialize=VARYING)
def _place_kernel(
    # tensors
    boxes_ptr,  # [B, N, 4]
    groups_ptr,  # [B, N]
    valid_ptr,  # [B, N]
    order_ptr,  # [B, N] boxes, best score first
    sorted_ptr,  # [B, N] place in the order of each position's box
    tiles_ptr,  # [size / BLOCK, 5, BLOCK] out
    units_ptr,  # [size] out
    labels_ptr,  # [size] out
    ranks_ptr,  # [size] out
    keep_words_ptr,  # [B, padded / 8] out: zeros
    # sizes
    num,
    padded,
    filled,
    size,
    keep_words,
    buckets,
    shift,
    # constants
    GROUPED: tl.constexpr,
    HASHED: tl.constexpr,
    HAS_VALID: tl.constexpr,
    DIVIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    PLACED: tl.constexpr,
):
    position = tl.program_id(0) * PLACED + tl.arange(0, PLACED)
    mask = position < filled
    place = position
    if GROUPED:
        place = tl.load(sorted_ptr + position, mask=mask, other=0).to(tl.int32)
    element = tl.load(order_ptr + place, mask=mask, other=0)
    image = place // num
    taking = _takes_part(valid_ptr, element, mask, HAS_VALID)
    bucket = _bucket(groups_ptr, element, taking, mask, buckets, shift, GROUPED, HASHED)
    unit = 2 * (image * (buckets + 1) + bucket) + (bucket == buckets).to(tl.int32)
    rank = image * padded + place - image * num
    _place(
        boxes_ptr, groups_ptr, tiles_ptr, units_ptr, labels_ptr, ranks_ptr,
        position, element, rank, unit, taking, mask, GROUPED, DIVIDE, BLOCK,
    )  # fmt: skip
    _fill_rest(
        tiles_ptr, units_ptr, labels_ptr, ranks_ptr, keep_words_ptr, filled, size, keep_words, GROUPED, BLOCK, PLACED
    )


def group_modes() -> Iterator[tuple[str, dict[str, bool]]]:
    """Yield names and constants of the kinds of groups, for variants."""
    for name, grouped, hashed in (("groups", True, False), ("any groups", True, True), ("one group", False, False)):
        yield name, {"GROUPED": grouped, "HASHED": hashed}


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: dtypes, padding, groups, thresholds; keys of one image and of several."""
    flags = (False, True)
    for dtype, padded, divide, (groups, mode) in itertools.product(DTYPES, flags, flags, group_modes()):
        types = TYPES | pointers(dtype, "boxes", "scores")
        suffix = f"{groups}, {dtype}{', padding' if padded else ''}{', no positive threshold' if divide else ''}"
        constants = {"HAS_VALID": padded, "DIVIDE": divide, **mode, "BLOCK": BLOCK}
        default = groups == "groups" and padded and not divide
        counted, options = {"COUNTED": COUNTED, "COMPARED": COMPARED}, {"num_warps": COUNT_WARPS}
        name = f"NMS, counted, {suffix}"
        yield Variant(name, _count_kernel, types, constants | counted, options, default=default)
        placed = {"PLACED": PLACED}
        name = f"NMS, placed, {suffix}"
        yield Variant(name, _place_kernel, types, constants | placed, {"num_warps": 4}, default=default)
    for dtype, padded, alone in itertools.product(DTYPES, flags, flags):
        name = f"NMS, scores' keys, {dtype}, {'one image' if alone else 'a batch'}{', padding' if padded else ''}"
        types = TYPES | pointers(dtype, "scores") | pointers("i32" if alone else "i64", "keys")
        constants = {"HAS_VALID": padded, "ONE_IMAGE": alone, "PLACED": PLACED}
        yield Variant(name, _score_keys_kernel, types, constants, {"num_warps": 4})
    for bits, padded, hashed in itertools.product(("u8", "i16", "i32"), flags, flags):
        name = f"NMS, units' keys, {bits}, {'any groups' if hashed else 'groups'}{', padding' if padded else ''}"
        constants = {"HAS_VALID": padded, "HASHED": hashed, "PLACED": PLACED}
        yield Variant(name, _unit_keys_kernel, TYPES | pointers(bits, "keys"), constants, {"num_warps": 4})
