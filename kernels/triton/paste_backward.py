"""Mask pasting in Triton, backward: a gather without atomics, bitwise reproducible.

Pixel model, source and differences: paste.py. Specification: the transpose of reference.paste_masks.
A program owns one row of one mask's cells. It weights the pixel rows that this row reaches, sums them column by column,
and spreads each column over the row's cells; one store.
Cost in bytes: roofline.min_bytes at best; each pixel row of a box is read for the two rows of cells beside it.
Speed: not yet measured.
"""

import itertools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels.fallback import masks as masks_fallback
from fastmask.kernels.jit import jit
from fastmask.kernels.launch import on_device
from fastmask.kernels.reference import compute_dtype
from fastmask.kernels.triton.mask_geometry import BOX_TYPES, MODES, axis_cells, place_box, reach, sigmoid
from fastmask.kernels.variant import DTYPES, Variant, pointers

BLOCK = 128  # pixel columns of a step


@triton.jit
def _share(pixel, cell, counts, low, high, SIDE: tl.constexpr, CONTINUOUS: tl.constexpr):
    """Weight of each pixel for a cell along one axis of a box."""
    inside, lower, share = axis_cells(pixel, low, high, SIDE, CONTINUOUS)
    upper = lower + 1 if CONTINUOUS else tl.minimum(lower + 1, SIDE - 1)
    weight = tl.where(lower == cell, 1 - share, 0.0) + tl.where(upper == cell, share, 0.0)
    return tl.where(inside & counts, weight, 0.0)


@jit(do_not_specialize=["height", "width", "growth"])
def _backward_kernel(
    # tensors
    grad_ptr,  # [N, height, width]
    masks_ptr,  # [N, SIDE, SIDE]
    boxes_ptr,  # [N, 4] (x1, y1, x2, y2), pixels
    out_ptr,  # [N, SIDE, SIDE] out
    # sizes
    height,
    width,
    # what counts
    growth,  # of the box, for the padding
    # constants
    SIDE: tl.constexpr,
    PADDING: tl.constexpr,
    CONTINUOUS: tl.constexpr,
    LOGITS: tl.constexpr,
    CELLS: tl.constexpr,  # power of two from SIDE on
    BLOCK: tl.constexpr,
):
    padded: tl.constexpr = SIDE + 2 * PADDING
    number = (tl.program_id(0) // SIDE).to(tl.int64)
    row = tl.program_id(0) % SIDE
    x1, y1, x2, y2, valid = place_box(boxes_ptr, number, growth, CONTINUOUS)
    left, right = reach(x1, x2, width, padded, CONTINUOUS)
    top, bottom = reach(y1, y2, height, padded, CONTINUOUS)
    # pixels less than a cell away, and one more on either side for rounding
    size = tl.maximum(y2 - y1 + (0.0 if CONTINUOUS else 1.0), 0.0) / padded
    first = y1 + (row + PADDING - 0.5) * size - 2
    top = tl.maximum(top, first.to(tl.int64))
    bottom = tl.where(valid, tl.minimum(bottom, (first + 2 * size + 5).to(tl.int64)), top)

    cells = tl.arange(0, CELLS)
    acc = tl.zeros([CELLS], dtype=tl.float32)
    for start in range(left, right, BLOCK):
        x = start + tl.arange(0, BLOCK)
        column = tl.zeros([BLOCK], dtype=tl.float32)
        for y in range(top, bottom):
            weight = _share(y + tl.zeros([1], tl.int64), row + PADDING, True, y1, y2, padded, CONTINUOUS)
            grad = tl.load(grad_ptr + (number * height + y) * width + x, mask=x < right, other=0).to(tl.float32)
            column += tl.where(weight > 0, weight * grad, 0.0)
        weight = _share(x[:, None], cells[None, :] + PADDING, (x < right)[:, None], x1, x2, padded, CONTINUOUS)
        acc += tl.sum(weight * column[:, None], axis=0)
    offs = number * (SIDE * SIDE) + row * SIDE + cells
    if LOGITS:
        probability = sigmoid(tl.load(masks_ptr + offs, mask=cells < SIDE, other=0).to(tl.float32))
        acc = acc * probability * (1 - probability)
    tl.store(out_ptr + offs, acc.to(out_ptr.dtype.element_ty), mask=cells < SIDE)


def paste_masks_backward(
    grad: Tensor, masks: Tensor, boxes: Tensor, continuous: bool, logits: bool, padding: int
) -> Tensor:
    """Gradient [N, H, W] of pasted probabilities -> gradient of masks [N, M, M]. float64 takes the eager fallback."""
    if compute_dtype(grad, masks, boxes) == torch.float64:
        return masks_fallback.paste_masks_backward(grad, masks, boxes, continuous, logits, padding)
    number, side = masks.shape[0], masks.shape[1]
    out = masks.new_empty(masks.shape)
    if number == 0:
        return out
    padding = 0 if continuous else padding
    with on_device(masks):
        _backward_kernel[(number * side,)](
            # tensors
            grad_ptr=grad.contiguous(),
            masks_ptr=masks.contiguous(),
            boxes_ptr=boxes.contiguous(),
            out_ptr=out,
            # sizes
            height=grad.shape[1],
            width=grad.shape[2],
            # what counts
            growth=(side + 2 * padding) / side,
            # constants
            SIDE=side,
            PADDING=padding,
            CONTINUOUS=continuous,
            LOGITS=logits,
            CELLS=triton.next_power_of_2(side),
            BLOCK=BLOCK,
            enable_fp_fusion=False,  # a box is truncated to whole pixels: it must be rounded as in the forward
        )
    return out


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: dtypes, modes, logits and probabilities."""
    for dtype, mode, logits in itertools.product(DTYPES, MODES, (True, False)):
        yield Variant(
            f"paste backward, {dtype}, {mode}{', logits' if logits else ''}",
            _backward_kernel,
            BOX_TYPES | pointers(dtype, "grad", "masks", "out"),
            {**MODES[mode], "LOGITS": logits, "CELLS": triton.next_power_of_2(MODES[mode]["SIDE"]), "BLOCK": BLOCK},
            {"num_warps": 4, "enable_fp_fusion": False},
            default=logits and mode == "torchvision",
        )
