"""How a mask lies on an image, shared by the Triton kernels of paste-back and RLE: both mean the same pixels."""

import triton
import triton.language as tl

from fastmask.kernels.reference import COORDINATE_LIMIT

_LIMIT = tl.constexpr(COORDINATE_LIMIT)


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
    """First and one-past-last pixel of an image axis that a box can touch, whole pixels."""
    if CONTINUOUS:
        fade = tl.maximum(high - low, 0.0) / SIDE + 2  # zeros beyond the mask blend in over one cell; 2 for rounding
        low, high = low - fade, high + fade
    first = tl.minimum(tl.maximum(low, 0.0).to(tl.int64), size)
    past = tl.minimum(tl.maximum(high.to(tl.int64) + 1, first), size)
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
def _cell(mask_ptr, row, column, counts, SIDE: tl.constexpr, PADDING: tl.constexpr, LOGITS: tl.constexpr):
    """The probability of padded mask cells; 0 in the padding and beyond it."""
    row, column = row - PADDING, column - PADDING
    counts = counts & (row >= 0) & (row < SIDE) & (column >= 0) & (column < SIDE)
    value = tl.load(mask_ptr + row * SIDE + column, mask=counts, other=0).to(tl.float32)
    if LOGITS:
        value = tl.where(counts, sigmoid(value), 0.0)
    return value


@triton.jit
def probability(
    mask_ptr, y, x, counts, x1, y1, x2, y2,
    SIDE: tl.constexpr, PADDING: tl.constexpr, CONTINUOUS: tl.constexpr, LOGITS: tl.constexpr
):  # fmt: skip
    """The pasted mask at pixels (y, x), and which of them lie in the box."""
    padded: tl.constexpr = SIDE + 2 * PADDING
    inside_y, row, dy = axis_cells(y, y1, y2, padded, CONTINUOUS)
    inside_x, column, dx = axis_cells(x, x1, x2, padded, CONTINUOUS)
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


@triton.jit
def is_mask(value, inside, threshold, CONTINUOUS: tl.constexpr):
    """Which probabilities count as mask; see cpu_masks.exceeds."""
    return inside & ((value >= threshold) if CONTINUOUS else (value > threshold))
