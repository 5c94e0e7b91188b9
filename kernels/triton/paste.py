"""Mask pasting in Triton, forward: zeros, then one launch that writes the pixels of the boxes only.

Pixel model, source and differences: paste.py. Specification: reference.paste_masks.
A warp owns TILE columns of a box and walks down its rows. It keeps two rows of mask cells, interpolated along x, in
registers until a pixel row lies between two others: a pixel costs one interpolation along y and its store.

         TILE columns
        +----------------+----------
    ^   | pixel row  ->  |              lines: the rows of the first tile, then those of the second, ...
    |   | pixel row  ->  |              A program walks an equal share of them, but at least LINES.
   rows +----------------+----------

Cost in bytes: roofline.min_bytes, nearly all of it the zeros. Speed on an H200 (bc309f8): 43 us for 100 masks,
of which zeros take 32 and the pixels of the boxes 10; 1.33 x zero_().
Predicted (README.md) for 100 masks, 800 x 1333, bool: 386 us before -> 50, or 1.33 x zero_() where 1.3 is the target (a
launch of 2.5 us and its longest program of 7), because
- 52,100 programs of the whole image, half of them sampling every pixel, became 4,000 of the boxes' 2.4 % of it;
- what depends on a row or a column is computed once for it, and a row of cells once for all pixels below it;
- so 2.97 million warp instructions (of PTX, executed) are left of 192 million, in 80 registers instead of 216.
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
from fastmask.kernels.triton.mask_geometry import (
    BOX_TYPES,
    MODES,
    axis_cells,
    blend_columns,
    is_mask,
    place_box,
    probabilities,
    reach,
    upper_cell,
)
from fastmask.kernels.tuning import tuned_value
from fastmask.kernels.variant import DTYPES, Variant, pointers

TILE = 128  # columns of a tile; four a thread
LINES = 8  # rows of a tile, the least for a program
PROGRAMS = 4096  # of all masks together: about as many warps as an H100 holds at once
NUM_WARPS = 1
LARGEST = 2**31 - 8 * TILE  # elements of one image and pixels of its width: beyond it, the eager fallback


@jit(do_not_specialize=["programs", "height", "width", "columns", "threshold", "growth"])
def _paste_kernel(
    # tensors
    masks_ptr,  # [N, SIDE, SIDE]
    boxes_ptr,  # [N, 4] (x1, y1, x2, y2), pixels
    out_ptr,  # [N, height, columns] zeros: out
    # sizes
    programs,  # a mask
    height,
    width,
    columns,  # the width, or bytes a row
    # what counts
    threshold,
    growth,  # of the box, for the padding
    # constants
    OUTPUT: tl.constexpr,  # "float", "bool" or "packed"
    SIDE: tl.constexpr,
    PADDING: tl.constexpr,
    CONTINUOUS: tl.constexpr,
    TILE: tl.constexpr,
    LINES: tl.constexpr,
):
    padded: tl.constexpr = SIDE + 2 * PADDING
    PIXELS: tl.constexpr = 8 if OUTPUT == "packed" else 1  # of an output element

    # --- 1. place the box, and find this program's share of its lines
    number = (tl.program_id(0) // programs).to(tl.int64)
    x1, y1, x2, y2, valid = place_box(boxes_ptr, number, growth, CONTINUOUS)
    left, right = reach(x1, x2, width, padded, CONTINUOUS)
    top, bottom = reach(y1, y2, height, padded, CONTINUOUS)
    rows = tl.where(valid, bottom - top, 0)
    left_element, past_element = left // PIXELS, tl.cdiv(right, PIXELS)
    total = rows * tl.cdiv(past_element - left_element, TILE // PIXELS)
    share = tl.maximum(tl.cdiv(total, programs), LINES)
    first = tl.program_id(0) % programs * share
    last = tl.minimum(first + share, total)

    mask_ptr, image_ptr = masks_ptr + number * (SIDE * SIDE), out_ptr + number * height * columns
    while first < last:
        # --- 2. find the tile's columns of mask cells
        tile = first // rows
        offs_element = left_element + tile * (TILE // PIXELS) + tl.arange(0, TILE // PIXELS)
        x = offs_element
        if OUTPUT == "packed":
            x = offs_element[:, None] * 8 + tl.arange(0, 8)[None, :]
        inside, column, share_x = axis_cells(x, x1, x2, padded, CONTINUOUS)
        inside = inside & (x < right)

        # --- 3. walk down its rows: blend along x once a row of cells, along y once a pixel
        stop = tl.minimum(last, (tile + 1) * rows)
        cell = top * 0 - 3  # none, and not the one before the first
        above, below = tl.zeros_like(share_x), tl.zeros_like(share_x)
        for line in range(first, stop):
            y = top + line - tile * rows
            inside_y, row, share_y = axis_cells(y, y1, y2, padded, CONTINUOUS)
            visible = inside_y if CONTINUOUS else True
            if visible:
                if row != cell:
                    above = below
                    if row != cell + 1:
                        above = blend_columns(mask_ptr, row, column, share_x, inside, SIDE, PADDING, CONTINUOUS)
                    next_row = upper_cell(row, padded, CONTINUOUS)
                    below = blend_columns(mask_ptr, next_row, column, share_x, inside, SIDE, PADDING, CONTINUOUS)
                    cell = row
                value = (1 - share_y) * above + share_y * below
                ptrs_out = image_ptr + y * columns + offs_element
                if OUTPUT == "float":
                    tl.store(ptrs_out, value.to(out_ptr.dtype.element_ty), mask=inside)
                elif OUTPUT == "bool":
                    tl.store(ptrs_out, 1, mask=is_mask(value, inside, threshold, CONTINUOUS))
                else:
                    bits = is_mask(value, inside, threshold, CONTINUOUS).to(tl.int32) << (7 - x % 8)
                    tl.store(ptrs_out, tl.sum(bits, axis=1).to(tl.uint8), mask=offs_element < past_element)
        first = stop


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
    """Shapes as in fallback.masks.paste_masks. float64 and images of about 2^31 elements take the eager fallback."""
    number, side = masks.shape[0], masks.shape[1]
    columns = triton.cdiv(width, 8) if output == "packed" else width
    if compute_dtype(masks, boxes) == torch.float64 or max(height * columns, width) > LARGEST:
        return masks_fallback.paste_masks(masks, boxes, height, width, output, threshold, continuous, logits, padding)
    dtype = {"float": masks.dtype, "bool": torch.bool, "packed": torch.uint8}[output]
    out = masks.new_zeros((number, height, columns), dtype=dtype)
    if out.numel() == 0:
        return out
    padding = 0 if continuous else padding
    lines, least = height * triton.cdiv(width, TILE), tuned_value("paste.lines", LINES, masks.device)
    most = tuned_value("paste.programs", PROGRAMS, masks.device)
    programs = max(min(most // number, triton.cdiv(lines, least)), 1)
    masks = masks.contiguous()
    with on_device(masks):
        if logits:
            masks = probabilities(masks)
        _paste_kernel[(number * programs,)](
            # tensors
            masks_ptr=masks,
            boxes_ptr=boxes.contiguous(),
            out_ptr=out.view(torch.uint8) if output == "bool" else out,
            # sizes
            programs=programs,
            height=height,
            width=width,
            columns=columns,
            # what counts
            threshold=threshold,
            growth=(side + 2 * padding) / side,
            # constants
            OUTPUT=output,
            SIDE=side,
            PADDING=padding,
            CONTINUOUS=continuous,
            TILE=TILE,
            LINES=least,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # a box is truncated to whole pixels: it must be rounded as torchvision's is
        )
    return out


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: dtypes, outputs, modes."""
    for dtype, output, mode in itertools.product(DTYPES, ("float", "bool", "packed"), MODES):
        yield Variant(
            f"paste, {dtype} to {output}, {mode}",
            _paste_kernel,
            BOX_TYPES | pointers(dtype, "masks") | pointers(dtype if output == "float" else "u8", "out"),
            {"OUTPUT": output, **MODES[mode], "TILE": TILE, "LINES": LINES},
            {"num_warps": NUM_WARPS, "enable_fp_fusion": False},
            default=output == "bool" and mode == "torchvision",
        )
