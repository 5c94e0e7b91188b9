"""Resolution of NMS in Triton: the boxes that are kept, from the bits of triton/nms_pairs.py, and their list by score.

A program, one warp, owns the units that begin in its block of 64 positions. It resolves all of them within the block at
once ("no kept box removes this one", until nothing changes: as many rounds as the longest chain of removals), then
walks the last one, if that goes on, block after block:
    block      0   1   2   3   4
    words of 4     [far   ]  n   d      far: blocks two and more before it, read while block 3 is being resolved
                                        n: the block before it; d: the block itself
It ends with the unit, when max_output boxes are kept, or with its window, after which the next launch goes on.
For the list, each program counts the kept boxes before its own, eight to a word, and writes its own and a share of -1.
Cost: 8 bytes a row and block before it; 383 instructions of one warp a block of the longest unit and 25 a round, and
291 for every 16 blocks beyond 17 before it.
Predicted for 1000 boxes: 317 us -> 17 blocks in 12 us, because no pair is tested here. On an H200
(bc309f8): 15.4 us, and 3.3 for the list.
"""

from collections.abc import Iterator

import triton
import triton.language as tl

from fastmask.kernels.jit import jit
from fastmask.kernels.triton.nms_order import BLOCK, TYPES
from fastmask.kernels.variant import Variant

FAR = 16  # earlier blocks whose words are read at once
LISTED = 1024  # boxes that a program of the list writes
COUNTED_WORDS = 2048  # words of eight that it counts at once


@triton.jit
def _pack(alive):
    """Flags [2, BLOCK / 2] as two words, the bits of either half."""
    bits = alive << tl.arange(0, alive.shape[1])[None, :]
    halves = tl.arange(0, 2)[:, None]
    return tl.sum(tl.where(halves == 0, bits, 0)), tl.sum(tl.where(halves == 1, bits, 0))  # of all lanes: one REDUX


@triton.jit
def _unpack(low, high, LANES: tl.constexpr):
    """Flags [2, LANES] of two words."""
    words = tl.where(tl.arange(0, 2)[:, None] == 0, low, high)
    return (words >> tl.arange(0, LANES)[None, :]) & 1


@triton.jit
def _resolve_block(candidate, low, high):
    """Resolve candidates [2, BLOCK / 2], given the bits of the boxes that would remove each -> flags, two words."""
    kept_low, kept_high = _pack(candidate)
    rounds = tl.where((kept_low | kept_high) != 0, 2 * candidate.shape[1], 0)
    while rounds > 0:  # counted: a loop condition that its body does not use breaks Triton 3.8's layouts
        alive = candidate * (((low & kept_low) | (high & kept_high)) == 0).to(tl.int32)
        still_low, still_high = _pack(alive)
        rounds = tl.where((still_low != kept_low) | (still_high != kept_high), rounds - 1, 0)
        kept_low = still_low
        kept_high = still_high
    return _unpack(kept_low, kept_high, candidate.shape[1]), kept_low, kept_high


@triton.jit
def _load_far(words_ptr, kept_ptr, block, distance, window, first, reached, FAR: tl.constexpr, BLOCK: tl.constexpr):
    """A block's words [2 FAR, 2, BLOCK / 2] of FAR blocks, from ``distance`` before it on, and the boxes kept of these.

    ``reached`` says whether there are words; blocks before ``first`` are not the unit's.
    """
    offs = tl.arange(0, 2 * FAR)
    back = distance + offs // 2
    mask = reached & (block - back >= first)
    kept = tl.load(kept_ptr + (block - back) * 2 + offs % 2, mask=mask, other=0)
    rows = (tl.arange(0, 2) * (BLOCK // 2))[None, :, None] + tl.arange(0, BLOCK // 2)[None, None, :]
    ptrs = (
        words_ptr + block.to(tl.int64) * window * (2 * BLOCK) + (back * (2 * BLOCK) + offs % 2 * BLOCK)[:, None, None]
    )
    return tl.load(ptrs + rows, mask=mask[:, None, None], other=0), kept


@triton.jit
def _find_removed(words, kept):
    """Two words: rows that a kept box removes."""
    removed = tl.max((words & kept[:, None, None]).to(tl.uint32, bitcast=True), axis=0)
    return _pack((removed != 0).to(tl.int32))


@jit(do_not_specialize=["blocks", "window", "max_output", "step"])
def _resolve_kernel(
    # tensors
    units_ptr,  # [blocks * BLOCK]
    ranks_ptr,  # [blocks * BLOCK] places in keep, -1 for invalid boxes
    words_ptr,  # [blocks, window, 2, BLOCK]
    struck_ptr,  # [blocks * BLOCK] 1 for boxes that earlier windows removed
    kept_ptr,  # [blocks, 2] out: bits of the boxes kept of a unit that goes on
    num_kept_ptr,  # [blocks] out: number kept of the unit that goes on from there, until its window's end
    keep_ptr,  # [B, padded] out: 1 for kept boxes
    # sizes
    blocks,
    window,
    max_output,
    step,
    # constants
    LATER: tl.constexpr,
    FAR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0)
    inner = (tl.arange(0, 2) * (BLOCK // 2))[:, None] + tl.arange(0, BLOCK // 2)[None, :]
    # --- 1. find the units that begin in this block, and the one that goes on beyond it
    first = block  # where the unit that goes on begins
    if LATER:
        block = block + step * window
    unit = tl.load(units_ptr + first * BLOCK + BLOCK - 1)
    before = tl.load(units_ptr + first * BLOCK - 1, mask=first > 0, other=-3)
    goes_on = (unit != before) & (unit % 2 == 0)
    if LATER:
        goes_on = goes_on & (tl.load(units_ptr + block * BLOCK) == unit)
        num_kept = tl.load(num_kept_ptr + first, mask=goes_on, other=0)
        active = goes_on & (num_kept < max_output)
    else:
        num_kept = first * 0
        top = tl.load(units_ptr + block * BLOCK)
        active = (unit != before) & ((top != unit) | (unit % 2 == 0))
    if active:
        # --- 2. resolve the block that the units, or the window, begin in
        units = tl.load(units_ptr + block * BLOCK + inner)
        rank = tl.load(ranks_ptr + block * BLOCK + inner)
        ptrs_word = words_ptr + block.to(tl.int64) * window * (2 * BLOCK) + inner
        low = tl.load(ptrs_word)
        high = tl.load(ptrs_word + BLOCK)
        if LATER:
            candidate = (units == unit) & (rank >= 0)
            candidate = candidate & (tl.load(struck_ptr + block * BLOCK + inner) == 0)
        else:
            candidate = (units != before) & (rank >= 0)
        alive, kept_low, kept_high = _resolve_block(candidate.to(tl.int32), low, high)
        tl.store(keep_ptr + rank, alive.to(tl.int8), mask=alive > 0)
        num_kept += tl.sum(alive * (units == unit).to(tl.int32))

        # --- 3. walk the blocks after it: words are loaded a block ahead
        current = block
        following = tl.load(units_ptr + (current + 1) * BLOCK, mask=goes_on & (current + 1 < blocks), other=-1)
        going = goes_on & (following == unit)
        if going:
            tl.store(kept_ptr + current * 2, kept_low)
            tl.store(kept_ptr + current * 2 + 1, kept_high)
            tl.debug_barrier()  # other threads read these words two blocks on
        going = going & (num_kept < max_output) & (window > 1)
        ptrs_word += window.to(tl.int64) * (2 * BLOCK)
        units = tl.load(units_ptr + (current + 1) * BLOCK + inner, mask=going, other=-1)
        rank = tl.load(ranks_ptr + (current + 1) * BLOCK + inner, mask=going, other=-1)
        low = tl.load(ptrs_word, mask=going, other=0)
        high = tl.load(ptrs_word + BLOCK, mask=going, other=0)
        near_low = tl.load(ptrs_word + 2 * BLOCK, mask=going, other=0)
        near_high = tl.load(ptrs_word + 3 * BLOCK, mask=going, other=0)
        removed_low = kept_low * 0
        removed_high = kept_low * 0
        following = tl.load(units_ptr + (current + 2) * BLOCK, mask=going & (current + 2 < blocks), other=-1)
        end = tl.where(going, block + window, block)  # one behind the last block that can be walked
        while current + 1 < end:
            current += 1
            # --- 4. load what the next block needs, whatever is kept of this one
            fills_block = following == unit
            going = fills_block & (current + 1 < end)
            following = tl.load(units_ptr + (current + 2) * BLOCK, mask=going & (current + 2 < blocks), other=-1)
            ptrs_word += window.to(tl.int64) * (2 * BLOCK)
            next_units = tl.load(units_ptr + (current + 1) * BLOCK + inner, mask=going, other=-1)
            next_rank = tl.load(ranks_ptr + (current + 1) * BLOCK + inner, mask=going, other=-1)
            next_low = tl.load(ptrs_word, mask=going, other=0)
            next_high = tl.load(ptrs_word + BLOCK, mask=going, other=0)
            next_near_low = tl.load(ptrs_word + 2 * BLOCK, mask=going, other=0)
            next_near_high = tl.load(ptrs_word + 3 * BLOCK, mask=going, other=0)
            far_words, far_kept = _load_far(
                words_ptr, kept_ptr, current + 1, 2, window, block, going, FAR, BLOCK
            )  # fmt: skip

            # --- 5. resolve this block
            candidate = (units == unit) & (rank >= 0)
            candidate = candidate & (_unpack(removed_low, removed_high, BLOCK // 2) == 0)
            candidate = candidate & (((near_low & kept_low) | (near_high & kept_high)) == 0)
            if LATER:
                candidate = candidate & (tl.load(struck_ptr + current * BLOCK + inner) == 0)
            alive, kept_low, kept_high = _resolve_block(candidate.to(tl.int32), low, high)
            tl.store(keep_ptr + rank, alive.to(tl.int8), mask=alive > 0)
            num_kept += tl.sum(alive)
            tl.store(kept_ptr + current * 2, kept_low, mask=fills_block)
            tl.store(kept_ptr + current * 2 + 1, kept_high, mask=fills_block)
            tl.debug_barrier()

            # --- 6. collect what far blocks remove of the next one
            next_removed_low, next_removed_high = _find_removed(far_words, far_kept)
            for distance in range(2 + FAR, current + 2 - block, FAR):
                far_words, far_kept = _load_far(
                    words_ptr, kept_ptr, current + 1, distance, window, block, going, FAR, BLOCK
                )  # fmt: skip
                more_low, more_high = _find_removed(far_words, far_kept)
                next_removed_low = next_removed_low | more_low
                next_removed_high = next_removed_high | more_high
            end = tl.where(going & (num_kept < max_output), end, current)
            units = next_units
            rank = next_rank
            low = next_low
            high = next_high
            near_low = next_near_low
            near_high = next_near_high
            removed_low = next_removed_low
            removed_high = next_removed_high
        tl.store(num_kept_ptr + first, num_kept)


@jit(do_not_specialize=["num", "padded", "max_output", "programs"])
def _list_kernel(
    # tensors
    keep_ptr,  # [B, padded]
    keep_words_ptr,  # [B, padded / 8], the same
    order_ptr,  # [B, N] boxes of the whole batch, best score first
    indices_ptr,  # [B, max_output] out
    count_ptr,  # [B] out
    # sizes
    num,
    padded,
    max_output,
    programs,
    # constants
    LISTED: tl.constexpr,
    WORDS: tl.constexpr,
):
    image = (tl.program_id(0) // programs).to(tl.int64)
    part = tl.program_id(0) % programs
    # boxes kept before this program's, and in all: bytes of 1, summed in a word's highest byte
    before = tl.zeros([WORDS], tl.int64)
    total = tl.zeros([WORDS], tl.int64)
    for first in range(0, padded // 8, WORDS):
        offs = first + tl.arange(0, WORDS)
        word = tl.load(keep_words_ptr + image * (padded // 8) + offs, mask=offs < padded // 8, other=0)
        kept = (word * 0x0101010101010101) >> 56
        total += kept
        before += tl.where(offs < part * (LISTED // 8), kept, 0)
    before = tl.sum(before.to(tl.int32), axis=0)
    total = tl.minimum(tl.sum(total.to(tl.int32), axis=0), max_output)

    lanes = tl.arange(0, LISTED)
    offs = part * LISTED + lanes
    mask = offs < num
    keep = tl.load(keep_ptr + image * padded + offs, mask=mask, other=0).to(tl.int32)
    place = before + tl.cumsum(keep, axis=0) - 1
    mask = mask & (keep > 0) & (place < max_output)
    index = tl.load(order_ptr + image * num + offs, mask=mask, other=0)
    tl.store(indices_ptr + image * max_output + place, index - image * num, mask=mask)
    for first in range(part * LISTED, max_output, programs * LISTED):
        rest = first + lanes
        empty = tl.full([LISTED], -1, tl.int64)
        tl.store(indices_ptr + image * max_output + rest, empty, mask=(rest >= total) & (rest < max_output))
    if part == 0:
        tl.store(count_ptr + image, total.to(tl.int64))


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: the first window and later ones; the list."""
    for later in (False, True):
        name = f"NMS, what stays, {'later windows' if later else 'first window'}"
        constants = {"LATER": later, "FAR": FAR, "BLOCK": BLOCK}
        yield Variant(name, _resolve_kernel, TYPES, constants, {"num_warps": 1}, default=True)
    constants = {"LISTED": LISTED, "WORDS": COUNTED_WORDS}
    yield Variant("NMS, list", _list_kernel, TYPES, constants, {"num_warps": 4}, default=True)
