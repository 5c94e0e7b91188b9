"""Geometry of masks on an image, shared by the Triton kernels of mask pasting and RLE: both give the same pixels."""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels.jit import jit
from fastmask.kernels.reference import COORDINATE_LIMIT
from fastmask.kernels.variant import DTYPES, Variant, pointers

LOGITS = 1024  # of a program of the sigmoid

_LIMIT = tl.constexpr(COORDINATE_LIMIT)
# constants and argument types that variants of both share
MODES: dict[str, dict[str, Any]] = {
    "torchvision": {"SIDE": 28, "PADDING": 1, "CONTINUOUS": False},
    "torchvision, side 14": {"SIDE": 14, "PADDING": 1, "CONTINUOUS": False},  # a C4 model's
    "continuous": {"SIDE": 28, "PADDING": 0, "CONTINUOUS": True},
    "torchvision without padding, side 14": {"SIDE": 14, "PADDING": 0, "CONTINUOUS": False},
}
BOX_TYPES = pointers("fp32", "boxes") | {"threshold": "fp32", "growth": "fp32"}


@triton.jit
def place_box(boxes_ptr, number, growth, CONTINUOUS: tl.constexpr):
    """Box ``number`` of [N, 4], grown for the mask's padding -> its corners in pixels, whether it is valid."""
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
    return x1, y1, x2, y2, valid


@triton.jit
def sigmoid(value):
    """torch.sigmoid, to float32's rounding."""
    return 1 / (1 + tl.exp(-value))


@triton.jit
def reach(low, high, size, SIDE: tl.constexpr, CONTINUOUS: tl.constexpr):
    """First and one-past-last pixel of an image axis that a box can touch; torchvision's mode touches all of them."""
    if CONTINUOUS:
        fade = tl.maximum(high - low, 0.0) / SIDE + 2  # zeros beyond the mask blend in over one cell; 2 for rounding
        low, high = low - fade, high + fade
    first = tl.minimum(tl.maximum(low, 0.0).to(tl.int32), size)  # below 2^26: limit and fade
    past = tl.minimum(tl.maximum(high.to(tl.int32) + 1, first), size)
    return first, past


@triton.jit
def axis_cells(pixel, low, high, SIDE: tl.constexpr, CONTINUOUS: tl.constexpr):
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
def upper_cell(cell, SIDE: tl.constexpr, CONTINUOUS: tl.constexpr):
    """The cell after each: beyond the mask's last one in continuous mode, the last one again in torchvision's."""
    return cell + 1 if CONTINUOUS else tl.minimum(cell + 1, SIDE - 1)


@triton.jit
def _load_cell(mask_ptr, row, column, counts, SIDE: tl.constexpr, PADDING: tl.constexpr, CONTINUOUS: tl.constexpr):
    """The probability of padded mask cells; 0 in the padding and beyond it."""
    row, column = row - PADDING, column - PADDING
    if CONTINUOUS or PADDING > 0:
        counts = counts & (row >= 0) & (row < SIDE) & (column >= 0) & (column < SIDE)
    return tl.load(mask_ptr + row * SIDE + column, mask=counts, other=0).to(tl.float32)


@triton.jit
def blend_columns(
    mask_ptr, row, column, share, counts, SIDE: tl.constexpr, PADDING: tl.constexpr, CONTINUOUS: tl.constexpr
):
    """Interpolate a row of cells between a column and the next one, whose weight is ``share``."""
    beside = upper_cell(column, SIDE + 2 * PADDING, CONTINUOUS)
    value = (1 - share) * _load_cell(mask_ptr, row, column, counts, SIDE, PADDING, CONTINUOUS)
    return value + share * _load_cell(mask_ptr, row, beside, counts, SIDE, PADDING, CONTINUOUS)


@triton.jit
def is_mask(value, inside, threshold, CONTINUOUS: tl.constexpr):
    """Whether probabilities are above the threshold; see fallback.masks.exceeds."""
    return inside & ((value >= threshold) if CONTINUOUS else (value > threshold))


@jit
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


def probabilities(masks: Tensor) -> Tensor:
    """Contiguous logits -> their sigmoid in float32, on the current device: one for each cell instead of each pixel."""
    out = torch.empty_like(masks, dtype=torch.float32)
    _sigmoid_kernel[(triton.cdiv(masks.numel(), LOGITS),)](
        logits_ptr=masks, out_ptr=out, elements=masks.numel(), BLOCK=LOGITS
    )
    return out


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: dtypes of logits."""
    for dtype in DTYPES:
        types = pointers(dtype, "logits") | pointers("fp32", "out")
        name, constants = f"masks' sigmoid, {dtype}", {"BLOCK": LOGITS}
        yield Variant(name, _sigmoid_kernel, types, constants, {"num_warps": 4}, ("elements",), wide=("STG",))
