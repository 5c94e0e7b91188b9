"""Mask paste-back in Triton: one launch for all masks of one image size.

Pixel model, source and differences: paste.py. Specification: reference.paste_masks.
A program writes BLOCK neighbouring pixels (or bytes of eight) of one mask's image; where they miss the box it only
writes zeros, else it samples the mask at each pixel, with the sigmoid and the threshold on the way.
Cost in bytes: traffic.least_bytes, nearly all of it the output. Speed: not yet measured.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels import cpu_masks
from fastmask.kernels.gpu_mask_geometry import is_mask, place_box, probability
from fastmask.kernels.launch import on_device
from fastmask.kernels.reference import compute_dtype

BLOCK = 2048  # output elements of a program, sixteen a thread; an eighth of it where they are bytes of eight pixels
NUM_WARPS = 4
LARGEST = 2**31 - BLOCK  # elements of one image: beyond it, plain PyTorch


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

    x1, y1, x2, y2, valid = place_box(boxes_ptr, number, growth, CONTINUOUS)
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
            value, inside = probability(
                base_mask, y, x, mask[:, None] & (x < width), x1, y1, x2, y2, SIDE, PADDING, CONTINUOUS, LOGITS
            )
            counts = is_mask(value, inside, threshold, CONTINUOUS)
            written = tl.sum(counts.to(tl.int32) << (7 - bits), axis=1)
        tl.store(base_out + offs, written.to(tl.uint8), mask=mask)
    else:
        value = tl.zeros([BLOCK], dtype=tl.float32)
        if reached:
            y = offs // columns
            value, inside = probability(
                base_mask, y, offs - y * columns, mask, x1, y1, x2, y2, SIDE, PADDING, CONTINUOUS, LOGITS
            )
            if OUTPUT == "bool":
                value = is_mask(value, inside, threshold, CONTINUOUS).to(tl.float32)
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
