"""Mask-to-RLE in Triton: M x M masks to COCO RLE bytes on the device; full-size masks never exist.

Order, source and differences: rle.py. Specification: reference.encode_mask of reference.paste_masks.
CHUNKS programs a mask read the pixels of its box down the columns and count where they change; after a scan they read
them again and write these positions. One program a mask then turns positions into runs and counts their characters;
after a second scan it writes them. A pixel is decided by gpu_paste's own code, so the bytes are those of its masks.
Positions are kept for as many changes as the buffer has bytes: a run is at least one character.
Cost in bytes: traffic.least_bytes, and 8 a change, written once and read eight times (from the cache). What should bind
is arithmetic: four samples for each pixel of a box. Speed: not yet measured.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels import cpu_masks
from fastmask.kernels.gpu_mask_geometry import is_mask, place_box, probability, reach, sigmoid
from fastmask.kernels.launch import on_device
from fastmask.kernels.reference import compute_dtype

CHUNKS = 16  # programs a mask
BLOCK = 512  # pixels, or runs, of a step
LONGEST = 13  # characters of five bits for any int64


@triton.jit
def _sigmoid_kernel(
    # tensors
    logits_ptr,  # [elements]
    out_ptr,  # [elements] float32 out
    # sizes
    elements,
    # constants
    BLOCK: tl.constexpr,
):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(logits_ptr + offs, mask=offs < elements, other=0).to(tl.float32)
    tl.store(out_ptr + offs, sigmoid(value), mask=offs < elements)


@triton.jit(do_not_specialize=["capacity", "threshold", "growth"])
def _changes_kernel(
    # tensors
    masks_ptr,  # [N, SIDE, SIDE] probabilities
    boxes_ptr,  # [N, 4] (x1, y1, x2, y2), pixels
    sizes_ptr,  # [N, 2] (height, width) of each image
    counts_ptr,  # [N, CHUNKS] changes in each chunk: out, or, where they are written, the running total of these
    positions_ptr,  # [capacity] out: where the changes are, pixels down the columns
    # sizes
    capacity,
    # what counts
    threshold,
    growth,  # of the box, for the padding
    # constants
    WRITE: tl.constexpr,
    SIDE: tl.constexpr,
    PADDING: tl.constexpr,
    CONTINUOUS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    number = (pid // CHUNKS).to(tl.int64)
    mask_ptr = masks_ptr + number * (SIDE * SIDE)
    height = tl.maximum(tl.load(sizes_ptr + number * 2), 0)
    width = tl.maximum(tl.load(sizes_ptr + number * 2 + 1), 0)
    x1, y1, x2, y2, valid = place_box(boxes_ptr, number, growth, CONTINUOUS)
    left, right = reach(x1, x2, width, SIDE, CONTINUOUS)
    top, bottom = reach(y1, y2, height, SIDE, CONTINUOUS)
    columns, rows = (right - left).to(tl.int32), (bottom - top).to(tl.int32)
    # a column of the box is its pixels and the one below it, where it may end
    total = columns.to(tl.int64) * (rows + 1)
    total = tl.where(valid & (rows > 0), total, 0)
    share = tl.cdiv(tl.cdiv(total, CHUNKS), BLOCK) * BLOCK
    first = tl.minimum(pid % CHUNKS * share, total)
    num = tl.minimum(first + share, total) - first
    # columns as high as the image run on into each other: what is below one is the top of the next
    joined = (top == 0) & (bottom == height)

    lanes = tl.arange(0, BLOCK)
    found = tl.zeros([BLOCK], dtype=tl.int32)
    start_column, start_row = (first // (rows + 1)).to(tl.int32), (first % (rows + 1)).to(tl.int32)
    base = tl.load(counts_ptr + pid - 1, mask=pid > 0, other=0) if WRITE else first * 0
    for step in range(0, num, BLOCK):
        inside_chunk = step + lanes < num
        line = start_row + lanes
        column, row = start_column + line // (rows + 1), line % (rows + 1)
        x, y = left.to(tl.int32) + column, top.to(tl.int32) + row
        value, inside = probability(
            mask_ptr, y, x, inside_chunk & (row < rows), x1, y1, x2, y2, SIDE, PADDING, CONTINUOUS, False
        )
        here = is_mask(value, inside, threshold, CONTINUOUS)
        from_above = row > tl.where(joined, -1, 0)  # -1: also the first row, from the column before
        from_above = inside_chunk & from_above & ((row > 0) | (column > 0))
        value, inside = probability(
            mask_ptr,
            tl.where(row > 0, y - 1, (bottom - 1).to(tl.int32)),
            tl.where(row > 0, x, x - 1),
            from_above, x1, y1, x2, y2, SIDE, PADDING, CONTINUOUS, False,
        )  # fmt: skip
        before = is_mask(value, inside, threshold, CONTINUOUS)
        position = x.to(tl.int64) * height + y
        doubled = (row == rows) & (column + 1 < tl.where(joined, columns, 0))  # the next column's top, which counts it
        change = inside_chunk & (here != before) & (position < height * width) & (doubled == 0)
        if WRITE:
            ranks = tl.cumsum(change.to(tl.int32), axis=0)
            place = base + ranks - 1
            tl.store(positions_ptr + place, position, mask=change & (place < capacity))
            base += tl.sum(change.to(tl.int32), axis=0)
        else:
            found += change.to(tl.int32)
        start_column += (start_row + BLOCK) // (rows + 1)
        start_row = (start_row + BLOCK) % (rows + 1)
    if not WRITE:
        tl.store(counts_ptr + pid, tl.sum(found.to(tl.int64), axis=0))


@triton.jit
def _change(positions_ptr, i, number, area):
    """Where run i ends: at a mask's i-th change, the last run at the end of the image, run -1 at its beginning."""
    position = tl.load(positions_ptr + i, mask=(i >= 0) & (i < number), other=0)
    return tl.where(i == number, area, position)


@triton.jit(do_not_specialize=["capacity"])
def _text_kernel(
    # tensors
    positions_ptr,  # [capacity]
    totals_ptr,  # [N, CHUNKS] running total of the changes
    sizes_ptr,  # [N, 2]
    offsets_ptr,  # [N + 1] characters of each mask, from index 1 on: out; or, where they are written, where each begins
    buffer_ptr,  # [capacity] out
    # sizes
    capacity,
    # constants
    WRITE: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
    LONGEST: tl.constexpr,
):
    number = tl.program_id(0).to(tl.int64)
    begin = tl.load(totals_ptr + number * CHUNKS - 1, mask=number > 0, other=0)
    changes = tl.load(totals_ptr + number * CHUNKS + CHUNKS - 1) - begin
    area = tl.maximum(tl.load(sizes_ptr + number * 2), 0) * tl.maximum(tl.load(sizes_ptr + number * 2 + 1), 0)
    known = begin + changes <= capacity
    place = area * 0
    if WRITE:
        place = tl.load(offsets_ptr + number)
        known = known & (tl.load(offsets_ptr + number + 1) <= capacity)
    runs = tl.where(known, changes + 1, 0)
    ptrs = positions_ptr + begin
    lanes = tl.arange(0, BLOCK)
    for first in range(0, runs, BLOCK):
        run = first + lanes
        real = run < runs
        end, start = _change(ptrs, run, changes, area), _change(ptrs, run - 1, changes, area)
        earlier = _change(ptrs, run - 2, changes, area) - _change(ptrs, run - 3, changes, area)
        delta = end - start - tl.where(run > 2, earlier, 0)
        length = real.to(tl.int32)
        rest = tl.where(real, tl.where(delta < 0, -1 - delta, delta), 0) >> 4  # four bits and a sign in the last one
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
        # of a mask whose changes are not known: at least what it needs
        tl.store(offsets_ptr + number + 1, tl.where(known, place, (changes + 1) * LONGEST))


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
    """Shapes as in cpu_masks.encode_masks. float64 is plain PyTorch's."""
    if compute_dtype(masks, boxes) == torch.float64:
        return cpu_masks.encode_masks(masks, boxes, sizes, capacity, threshold, continuous, logits, padding)
    number, side = masks.shape[0], masks.shape[1]
    buffer = masks.new_zeros(capacity, dtype=torch.uint8)
    offsets = masks.new_zeros(number + 1, dtype=torch.int64)
    if number == 0:
        return buffer, offsets
    padding = 0 if continuous else padding
    masks, sizes = masks.contiguous(), sizes.contiguous()
    positions = masks.new_empty(capacity, dtype=torch.int64)
    counts = masks.new_empty(number * CHUNKS, dtype=torch.int64)
    with on_device(masks):
        if logits:
            probabilities = torch.empty_like(masks, dtype=torch.float32)
            elements = masks.numel()
            _sigmoid_kernel[(triton.cdiv(elements, BLOCK),)](
                logits_ptr=masks, out_ptr=probabilities, elements=elements, BLOCK=BLOCK
            )
            masks = probabilities

        def find_changes(counts: Tensor, write: bool) -> None:
            _changes_kernel[(number * CHUNKS,)](
                # tensors
                masks_ptr=masks,
                boxes_ptr=boxes.contiguous(),
                sizes_ptr=sizes,
                counts_ptr=counts,
                positions_ptr=positions,
                # sizes
                capacity=capacity,
                # what counts
                threshold=threshold,
                growth=(side + 2 * padding) / side,
                # constants
                WRITE=write,
                SIDE=side,
                PADDING=padding,
                CONTINUOUS=continuous,
                CHUNKS=CHUNKS,
                BLOCK=BLOCK,
                enable_fp_fusion=False,  # as gpu_paste, whose pixels these are
            )

        def make_text(offsets: Tensor, write: bool) -> None:
            _text_kernel[(number,)](
                # tensors
                positions_ptr=positions,
                totals_ptr=totals,
                sizes_ptr=sizes,
                offsets_ptr=offsets,
                buffer_ptr=buffer,
                # sizes
                capacity=capacity,
                # constants
                WRITE=write,
                CHUNKS=CHUNKS,
                BLOCK=BLOCK,
                LONGEST=LONGEST,
            )

        find_changes(counts, write=False)
        totals = counts.cumsum(0)
        find_changes(totals, write=True)
        make_text(offsets, write=False)
        offsets = offsets.cumsum(0)
        make_text(offsets, write=True)
    return buffer, offsets
