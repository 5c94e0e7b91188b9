"""Mask paste-back in Triton: one launch for all masks of one image size.

Pixel model, source and differences: paste.py. Specification: reference.paste_masks.
A program writes BLOCK neighbouring pixels (or bytes of eight) of one mask's image; where they miss the box it only
writes zeros, else it samples the mask at each pixel, with the sigmoid and the threshold on the way.
Cost in bytes: the output once; the masks are read from the cache. Speed: not yet measured.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels import cpu_masks
from fastmask.kernels.launch import on_device
from fastmask.kernels.reference import COORDINATE_LIMIT, compute_dtype

BLOCK = 2048  # output elements of a program, sixteen a thread; an eighth of it where they are bytes of eight pixels
NUM_WARPS = 4
LARGEST = 2**31 - BLOCK  # elements of one image: beyond it, plain PyTorch

_LIMIT = tl.constexpr(COORDINATE_LIMIT)


@triton.jit
def _axis(pixel, low, high, SIDE: tl.constexpr, CONTINUOUS: tl.constexpr):
    """Pixels along one axis of a box -> whether they are inside, the lower of two mask cells, the upper one's share."""
    pixel = pixel.to(tl.float32)
    if CONTINUOUS:
        position = tl.div_rn(pixel + 0.5 - low, tl.where(high > low, high - low, 1.0)) * SIDE - 0.5
        position = tl.where(high > low, position, -1.0)
        inside = (position > -1) & (position < SIDE)
        position = tl.where(inside, position, 0.0)
    else:
        length = tl.maximum(high - low + 1, 1.0)
        position = (pixel - low + 0.5) * tl.div_rn(SIDE * 1.0, length) - 0.5
        inside = (pixel >= low) & (pixel <= high)
        position = tl.minimum(tl.maximum(tl.where(inside, position, 0.0), 0.0), SIDE - 1.0)
    cell = tl.floor(position)
    return inside, cell.to(tl.int32), position - cell


@triton.jit
def _cell(mask_ptr, row, column, counts, SIDE: tl.constexpr, PADDING: tl.constexpr, LOGITS: tl.constexpr):
    """The probability of padded mask cells; 0 in the padding and beyond it."""
    row, column = row - PADDING, column - PADDING
    counts = counts & (row >= 0) & (row < SIDE) & (column >= 0) & (column < SIDE)
    value = tl.load(mask_ptr + row * SIDE + column, mask=counts, other=0).to(tl.float32)
    if LOGITS:
        value = tl.where(counts, 1 / (1 + tl.exp(-value)), 0.0)
    return value


@triton.jit
def _probability(
    mask_ptr, y, x, counts, x1, y1, x2, y2,
    SIDE: tl.constexpr, PADDING: tl.constexpr, CONTINUOUS: tl.constexpr, LOGITS: tl.constexpr
):  # fmt: skip
    """The pasted mask at pixels (y, x), and which of them lie in the box."""
    padded: tl.constexpr = SIDE + 2 * PADDING
    inside_y, row, dy = _axis(y, y1, y2, padded, CONTINUOUS)
    inside_x, column, dx = _axis(x, x1, x2, padded, CONTINUOUS)
    inside = counts & inside_y & inside_x
    if CONTINUOUS:  # zeros beyond the mask
        below, beside = row + 1, column + 1
    else:  # its border repeated
        below, beside = tl.minimum(row + 1, padded - 1), tl.minimum(column + 1, padded - 1)
    top = (1 - dx) * _cell(mask_ptr, row, column, inside, SIDE, PADDING, LOGITS)
    top += dx * _cell(mask_ptr, row, beside, inside, SIDE, PADDING, LOGITS)
    bottom = (1 - dx) * _cell(mask_ptr, below, column, inside, SIDE, PADDING, LOGITS)
    bottom += dx * _cell(mask_ptr, below, beside, inside, SIDE, PADDING, LOGITS)
    return (1 - dy) * top + dy * bottom, inside


@triton.jit(do_not_specialize=["height", "threshold", "growth"])
def _paste_kernel(
    # tensors
    masks_ptr,  # [N, SIDE, SIDE]
    boxes_ptr,  # [N, 4] (x1, y1, x2, y2), pixels
    out_ptr,  # [N, height, columns] out
    # sizes
    height,
    width,
    columns,  # the width, or bytes a row
    elements,  # height * columns
    # what counts
    threshold,
    growth,  # of the box, for the padding
    # constants
    OUTPUT: tl.constexpr,  # "float", "bool" or "packed"
    SIDE: tl.constexpr,
    PADDING: tl.constexpr,
    CONTINUOUS: tl.constexpr,
    LOGITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(elements, BLOCK)
    number = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.program_id(0) % blocks * BLOCK
    offs = first + tl.arange(0, BLOCK)
    mask = offs < elements

    ptrs_box = boxes_ptr + number * 4
    x1, y1 = tl.load(ptrs_box).to(tl.float32), tl.load(ptrs_box + 1).to(tl.float32)
    x2, y2 = tl.load(ptrs_box + 2).to(tl.float32), tl.load(ptrs_box + 3).to(tl.float32)
    if not CONTINUOUS:
        half_w, half_h = (x2 - x1) * 0.5 * growth, (y2 - y1) * 0.5 * growth
        center_x, center_y = (x2 + x1) * 0.5, (y2 + y1) * 0.5
        x1, y1, x2, y2 = center_x - half_w, center_y - half_h, center_x + half_w, center_y + half_h
    valid = (tl.abs(x1) <= _LIMIT) & (tl.abs(y1) <= _LIMIT) & (tl.abs(x2) <= _LIMIT) & (tl.abs(y2) <= _LIMIT)
    x1, y1, x2, y2 = tl.where(valid, x1, 0), tl.where(valid, y1, 0), tl.where(valid, x2, 0), tl.where(valid, y2, 0)
    if not CONTINUOUS:
        x1, y1 = x1.to(tl.int32).to(tl.float32), y1.to(tl.int32).to(tl.float32)
        x2, y2 = x2.to(tl.int32).to(tl.float32), y2.to(tl.int32).to(tl.float32)
    last_row = tl.minimum((first + BLOCK - 1) // columns, height - 1)
    # two pixels more than the box: the continuous mode fades out beyond it, and rounding costs one at most
    reached = valid & (last_row >= y1 - 2 - (y2 - y1)) & (first // columns <= y2 + 2 + (y2 - y1))

    base_mask, base_out = masks_ptr + number * (SIDE * SIDE), out_ptr + number * elements
    if OUTPUT == "packed":
        written = tl.zeros([BLOCK], dtype=tl.int32)
        if reached:
            bits = tl.arange(0, 8)[None, :]
            y = (offs // columns)[:, None] + tl.zeros_like(bits)
            x = (offs % columns)[:, None] * 8 + bits
            value, inside = _probability(
                base_mask, y, x, mask[:, None] & (x < width), x1, y1, x2, y2, SIDE, PADDING, CONTINUOUS, LOGITS
            )
            counts = inside & ((value >= threshold) if CONTINUOUS else (value > threshold))
            written = tl.sum(counts.to(tl.int32) << (7 - bits), axis=1)
        tl.store(base_out + offs, written.to(tl.uint8), mask=mask)
    else:
        value = tl.zeros([BLOCK], dtype=tl.float32)
        if reached:
            y = offs // columns
            value, inside = _probability(
                base_mask, y, offs - y * columns, mask, x1, y1, x2, y2, SIDE, PADDING, CONTINUOUS, LOGITS
            )
            if OUTPUT == "bool":
                value = (inside & ((value >= threshold) if CONTINUOUS else (value > threshold))).to(tl.float32)
        tl.store(base_out + offs, value.to(out_ptr.dtype.element_ty), mask=mask)


def paste_masks(
    masks: Tensor,
    boxes: Tensor,
    height: int,
    width: int,
    output: str,
    threshold: float,
    continuous: bool,
    logits: bool,
    padding: int,
) -> Tensor:
    """Shapes as in cpu_masks.paste_masks. float64 and images of over 2^31 elements are plain PyTorch's."""
    number, side = masks.shape[0], masks.shape[1]
    columns = triton.cdiv(width, 8) if output == "packed" else width
    if compute_dtype(masks, boxes) == torch.float64 or height * columns > LARGEST:
        return cpu_masks.paste_masks(masks, boxes, height, width, output, threshold, continuous, logits, padding)
    dtype = {"float": masks.dtype, "bool": torch.bool, "packed": torch.uint8}[output]
    out = masks.new_empty((number, height, columns), dtype=dtype)
    if out.numel() == 0:
        return out
    padding = 0 if continuous else padding
    block = BLOCK // 8 if output == "packed" else BLOCK
    with on_device(masks):
        _paste_kernel[(number * triton.cdiv(height * columns, block),)](
            # tensors
            masks_ptr=masks.contiguous(),
            boxes_ptr=boxes.contiguous(),
            out_ptr=out.view(torch.uint8) if output == "bool" else out,
            # sizes
            height=height,
            width=width,
            columns=columns,
            elements=height * columns,
            # what counts
            threshold=threshold,
            growth=(side + 2 * padding) / side,
            # constants
            OUTPUT=output,
            SIDE=side,
            PADDING=padding,
            CONTINUOUS=continuous,
            LOGITS=logits,
            BLOCK=block,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # a box is truncated to whole pixels: it must be rounded as torchvision's is
        )
    return out
