"""Run-length encoding (RLE) of masks in Triton: M x M masks to COCO RLE bytes; full-size masks never exist.

Order, source and differences: rle.py. Specification: reference.encode_mask of reference.paste_masks.
    a box, read down its columns     word: up to WORD neighboring pixels of a column, the bits of one integer
        +---+---+---+--              changes: the word XOR itself one pixel later; the first bit is compared with the
        | 0 | 2 | 4 |                last one of the word before, which the neighboring lane has
        +---+---+---+--              chunk: an equal share of a mask's words, one program's
        | 1 | 3 | 5 |

1. Changes: each chunk samples its pixels once, counts the changes and keeps the first SLOTS positions.
2. Positions: each chunk sums the counts before its own and copies its positions behind theirs; a chunk of more than
   SLOTS changes samples its pixels again.
3. Text: the programs of a mask share its runs, made of positions, and count their characters.
4. Text again: they sum the characters before their own and write theirs.
Sums before a program's own have two levels: masks before its own, whose totals the launch before added up by integer
atomics (their order changes nothing), then chunks or parts of its own mask.
A pixel is decided as triton/paste.py does it, so the bytes are those of its masks. A run is at least one character:
positions are kept for as many changes as the buffer has bytes.
Cost in bytes: roofline.min_bytes, and 8 a change, written twice and read nine times (from the cache). It is bound by
arithmetic, 66 instructions a pixel of a box. On an H200 (bc309f8): 47 us for 100 masks, sums since then not measured.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels.fallback import masks as masks_fallback
from fastmask.kernels.jit import jit
from fastmask.kernels.launch import on_device
from fastmask.kernels.reference import compute_dtype
from fastmask.kernels.triton.mask_geometry import (
    axis_cells,
    blend_columns,
    is_mask,
    place_box,
    probabilities,
    reach,
    upper_cell,
)
from fastmask.kernels.tuning import tuned_value

PROGRAMS = 4096  # chunks of all masks together
CHUNKS = 256  # of one mask at most
SLOTS = 128  # positions that a chunk keeps
BLOCK = 64  # words of a step; the first one is the last of the step before
WORD = 28  # pixels of a word at most: a multiple of UNROLLED below 32
UNROLLED = 4  # pixels of a word that are sampled at once
NUM_WARPS = 2
SUMMED = 256  # counts of a step
RUNS = 512  # of a step
TEXT_PROGRAMS = 1024  # parts of all masks' texts together
PARTS = 8  # of one mask's at most
TEXT_WARPS = 8
LONGEST = 13  # characters of five bits for any int64


@triton.jit
def _sum(values_ptr, begin, end, BLOCK: tl.constexpr):
    """The sum of int64 values [begin, end)."""
    acc = tl.zeros([BLOCK], dtype=tl.int64)
    for start in range(begin, end, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        acc += tl.load(values_ptr + offs, mask=offs < end, other=0)
    return tl.sum(acc, axis=0)


@triton.jit
def _count_bits(word):
    """Number of set bits of a non-negative int32."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    word += word >> 8
    return (word + (word >> 16)) & 0x3F


@jit(do_not_specialize=["chunks", "capacity", "threshold", "growth"])
def _changes_kernel(
    # tensors
    masks_ptr,  # [N, SIDE, SIDE] probabilities
    boxes_ptr,  # [N, 4] (x1, y1, x2, y2), pixels
    sizes_ptr,  # [N, 2] (height, width) of each image
    counts_ptr,  # [N, chunks] changes in each chunk: out, or, where positions are, in
    totals_ptr,  # [N] changes of each mask: out, of zeros, or, where positions are, in
    slots_ptr,  # [N, chunks, SLOTS] the first changes of each chunk, pixels down the columns: out, or in
    positions_ptr,  # [capacity] out: where all changes are
    # sizes
    chunks,  # a mask
    capacity,
    # what counts
    threshold,
    growth,  # of the box, for the padding
    # constants
    POSITIONS: tl.constexpr,
    SIDE: tl.constexpr,
    PADDING: tl.constexpr,
    CONTINUOUS: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
    WORD: tl.constexpr,
    UNROLLED: tl.constexpr,
    SUMMED: tl.constexpr,
):
    padded: tl.constexpr = SIDE + 2 * PADDING
    pid = tl.program_id(0)
    number = (pid // chunks).to(tl.int64)

    # --- 1. find where this chunk's positions go; done if the first launch kept all of them
    ptrs_out = slots_ptr + pid.to(tl.int64) * SLOTS
    limit = tl.full([], SLOTS, tl.int64)
    if POSITIONS:
        known = tl.load(counts_ptr + pid)
        if known == 0:
            return
        base = _sum(totals_ptr, number * 0, number, SUMMED)
        base += _sum(counts_ptr, number * chunks, pid.to(tl.int64), SUMMED)
        limit = capacity - base
        slots = tl.arange(0, SLOTS)
        kept = tl.load(ptrs_out + slots, mask=slots < known, other=0)
        ptrs_out = positions_ptr + base
        if known <= SLOTS:
            tl.store(ptrs_out + slots, kept, mask=slots < tl.minimum(known, limit))
            return

    # --- 2. place the box, and find this chunk's words
    height = tl.maximum(tl.load(sizes_ptr + number * 2), 0)
    width = tl.maximum(tl.load(sizes_ptr + number * 2 + 1), 0)
    x1, y1, x2, y2, valid = place_box(boxes_ptr, number, growth, CONTINUOUS)
    # no box reaches beyond a side of 2^30
    left, right = reach(x1, x2, tl.minimum(width, 2**30).to(tl.int32), padded, CONTINUOUS)
    top, bottom = reach(y1, y2, tl.minimum(height, 2**30).to(tl.int32), padded, CONTINUOUS)
    num_columns, rows = right - left, bottom - top
    # a column of the box is its pixels and the one below it, where it may end; columns as high as the image run on
    # into each other instead, and only the last one has a pixel after it
    joined = ((top == 0) & (bottom == height)).to(tl.int32)
    pixels = rows + 1 - joined
    words = tl.cdiv(pixels, WORD)
    length = tl.cdiv(tl.cdiv(pixels, words), UNROLLED) * UNROLLED
    total = tl.where(valid & (rows > 0) & (num_columns > 0), (num_columns + joined).to(tl.int64) * words, 0)
    share = tl.cdiv(tl.cdiv(total, chunks), BLOCK - 1) * (BLOCK - 1)
    first = tl.minimum(pid % chunks * share, total)
    num = tl.minimum(first + share, total) - first

    mask_ptr = masks_ptr + number * (SIDE * SIDE)
    lanes = tl.arange(0, BLOCK)
    start_column = ((first + words - 1) // words).to(tl.int32) - 1
    start_word = ((first + words - 1) % words).to(tl.int32)
    found = first * 0
    for step in range(0, num, BLOCK - 1):
        # --- 3. sample the pixels of a word a lane; the first lane's word is the step before's last
        column = start_column + (start_word + lanes) // words
        start_row = (start_word + lanes) % words * length
        x = left + column
        inside_x, cell, share_x = axis_cells(x, x1, x2, padded, CONTINUOUS)
        inside_x = inside_x & (column >= 0) & (column < num_columns) & (lanes <= num - step)
        bits = tl.zeros([BLOCK], dtype=tl.int32)
        for start in range(0, length, UNROLLED):
            for i in tl.static_range(UNROLLED):
                row = start_row + start + i
                inside, row_cell, share_y = axis_cells(top + row, y1, y2, padded, CONTINUOUS)
                inside = inside & inside_x & (row < rows)
                next_cell = upper_cell(row_cell, padded, CONTINUOUS)
                above = blend_columns(mask_ptr, row_cell, cell, share_x, inside, SIDE, PADDING, CONTINUOUS)
                below = blend_columns(mask_ptr, next_cell, cell, share_x, inside, SIDE, PADDING, CONTINUOUS)
                value = (1 - share_y) * above + share_y * below
                bits |= is_mask(value, inside, threshold, CONTINUOUS).to(tl.int32) << (start + i)

        # --- 4. find its changes: bits that differ from the one before
        num_pixels = tl.minimum(length, pixels - start_row)
        before = tl.gather((bits >> (num_pixels - 1)) & 1, tl.maximum(lanes - 1, 0), axis=0)
        position = x.to(tl.int64) * height + (top + start_row)
        in_image = tl.minimum(tl.maximum(height * width - position, 0), num_pixels).to(tl.int32)
        in_image = tl.where((lanes > 0) & (lanes <= num - step), in_image, 0)
        changes = (bits ^ ((bits << 1) | before)) & ((1 << in_image) - 1)
        num_changes = _count_bits(changes)
        rank = found + (tl.cumsum(num_changes, axis=0) - num_changes)
        found += tl.sum(num_changes, axis=0)
        while tl.max(changes, axis=0) > 0:
            lowest = changes & -changes
            ptrs = ptrs_out + rank
            tl.store(ptrs, position + _count_bits(lowest - 1), mask=(changes > 0) & (rank < limit))
            changes = changes ^ lowest
            rank += 1

        start_column += (start_word + BLOCK - 1) // words
        start_word = (start_word + BLOCK - 1) % words
    if not POSITIONS:
        tl.store(counts_ptr + pid, found)
        tl.atomic_add(totals_ptr + number, found, mask=found > 0, sem="relaxed")


@triton.jit
def _change(positions_ptr, i, number, area):
    """End of run i: a mask's i-th change, the image's end for the last run, its beginning for run -1."""
    position = tl.load(positions_ptr + i, mask=(i >= 0) & (i < number), other=0)
    return tl.where(i == number, area, position)


@jit(do_not_specialize=["parts", "capacity"])
def _text_kernel(
    # tensors
    positions_ptr,  # [capacity]
    changes_ptr,  # [N] of each mask
    sizes_ptr,  # [N, 2]
    lengths_ptr,  # [N, parts] characters of each part: out, of zeros; or, where they are written, in
    totals_ptr,  # [N] characters of each mask: out, of zeros; or, where they are written, in
    offsets_ptr,  # [N + 1] where each mask's characters begin: out
    buffer_ptr,  # [capacity] out
    # sizes
    parts,  # of a mask
    capacity,
    # constants
    WRITE: tl.constexpr,
    SUMMED: tl.constexpr,
    BLOCK: tl.constexpr,
    LONGEST: tl.constexpr,
):
    pid = tl.program_id(0)
    number, part = (pid // parts).to(tl.int64), pid % parts

    # --- 1. find this part's share of the runs, in whole blocks
    changes = tl.load(changes_ptr + number)
    share = tl.cdiv(tl.cdiv(changes + 1, parts), BLOCK) * BLOCK
    first_run = part * share
    if first_run > changes:
        return

    # --- 2. find where its text goes
    begin = _sum(changes_ptr, number * 0, number, SUMMED)
    area = tl.maximum(tl.load(sizes_ptr + number * 2), 0) * tl.maximum(tl.load(sizes_ptr + number * 2 + 1), 0)
    known = begin + changes <= capacity
    place = area * 0
    if WRITE:
        start_text = _sum(totals_ptr, number * 0, number, SUMMED)
        end_text = start_text + tl.load(totals_ptr + number)
        known = known & (end_text <= capacity)
        place = start_text + _sum(lengths_ptr, number * parts, pid.to(tl.int64), SUMMED)
        if part == 0:
            tl.store(offsets_ptr + number, start_text)
            tl.store(offsets_ptr + number + 1, end_text)
    last_run = tl.where(known, tl.minimum(first_run + share, changes + 1), first_run)
    ptrs = positions_ptr + begin
    # --- 3. encode the runs, BLOCK at a time, five bits a character
    for first in range(first_run, last_run, BLOCK):
        run = first + tl.arange(0, BLOCK)
        inside = run < last_run
        end, start = _change(ptrs, run, changes, area), _change(ptrs, run - 1, changes, area)
        earlier = _change(ptrs, run - 2, changes, area) - _change(ptrs, run - 3, changes, area)
        delta = end - start - tl.where(run > 2, earlier, 0)
        length = inside.to(tl.int32)
        rest = tl.where(inside, tl.where(delta < 0, -1 - delta, delta), 0) >> 4  # the last has four bits and a sign
        while tl.max(rest, axis=0) > 0:
            length += (rest > 0).to(tl.int32)
            rest = rest >> 5
        if WRITE:
            ptrs_text = buffer_ptr + place + tl.cumsum(length, axis=0) - length
            for i in range(tl.max(length, axis=0)):
                character = (delta & 31) + tl.where(i + 1 < length, 32, 0) + 48
                tl.store(ptrs_text + i, character.to(tl.uint8), mask=i < length)
                delta = delta >> 5
        place += tl.sum(length, axis=0)
    if not WRITE:
        place = tl.where(known, place, tl.where(part == 0, (changes + 1) * LONGEST, 0))  # at least what it needs
        tl.store(lengths_ptr + pid, place)
        tl.atomic_add(totals_ptr + number, place, mask=place > 0, sem="relaxed")


def encode_masks(
    masks: Tensor,
    boxes: Tensor,
    sizes: Tensor,
    capacity: int,
    threshold: float,
    continuous: bool,
    logits: bool,
    padding: int,
) -> tuple[Tensor, Tensor]:
    """Shapes as in fallback.masks.encode_masks. float64 takes the eager fallback."""
    if compute_dtype(masks, boxes) == torch.float64:
        return masks_fallback.encode_masks(masks, boxes, sizes, capacity, threshold, continuous, logits, padding)
    number, side = masks.shape[0], masks.shape[1]
    if number == 0:
        return masks.new_zeros(capacity, dtype=torch.uint8), masks.new_zeros(1, dtype=torch.int64)
    padding = 0 if continuous else padding
    chunks = max(min(tuned_value("rle.programs", PROGRAMS, masks.device) // number, CHUNKS), 1)
    parts = max(min(TEXT_PROGRAMS // number, PARTS), 1)
    text_warps = tuned_value("rle.text_warps", TEXT_WARPS, masks.device)
    masks, sizes = masks.contiguous(), sizes.contiguous()
    words, padded = triton.cdiv(capacity, 16) * 2, triton.cdiv(number, 2) * 2  # so that all parts are aligned
    zeros = masks.new_zeros(words + 2 * padded + number * parts, dtype=torch.int64)  # in one launch
    buffer = zeros[:words].view(torch.uint8)[:capacity]
    changes, characters, lengths = zeros[words:].split([padded, padded, number * parts])
    counts, slots, positions, offsets = (
        masks.new_empty(size, dtype=torch.int64)
        for size in (number * chunks, number * chunks * SLOTS, capacity, number + 1)
    )
    with on_device(masks):
        if logits:
            masks = probabilities(masks)
        for find_positions in (False, True):
            _changes_kernel[(number * chunks,)](
                # tensors
                masks_ptr=masks,
                boxes_ptr=boxes.contiguous(),
                sizes_ptr=sizes,
                counts_ptr=counts,
                totals_ptr=changes,
                slots_ptr=slots,
                positions_ptr=positions,
                # sizes
                chunks=chunks,
                capacity=capacity,
                # what counts
                threshold=threshold,
                growth=(side + 2 * padding) / side,
                # constants
                POSITIONS=find_positions,
                SIDE=side,
                PADDING=padding,
                CONTINUOUS=continuous,
                SLOTS=SLOTS,
                BLOCK=BLOCK,
                WORD=WORD,
                UNROLLED=UNROLLED,
                SUMMED=SUMMED,
                num_warps=NUM_WARPS,
                enable_fp_fusion=False,  # as triton.paste, whose pixels these are
            )
        for write in (False, True):
            _text_kernel[(number * parts,)](
                # tensors
                positions_ptr=positions,
                changes_ptr=changes,
                sizes_ptr=sizes,
                lengths_ptr=lengths,
                totals_ptr=characters,
                offsets_ptr=offsets,
                buffer_ptr=buffer,
                # sizes
                parts=parts,
                capacity=capacity,
                # constants
                WRITE=write,
                SUMMED=SUMMED,
                BLOCK=RUNS,
                LONGEST=LONGEST,
                num_warps=text_warps,
            )
    return buffer, offsets
