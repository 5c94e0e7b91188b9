"""Box decoding in Triton: boxes from regression deltas, clipped and tested in one launch.

Formula, source: decode.py. Specification: reference_layers.decode_boxes.
A thread takes a box. Every step is rounded as fallback/decode.py's, but for the exponential: Triton's is off by 4e-7
of the box's size at most (2 in its last place, and what log2(e) times a growth of up to 4.1 is rounded by).
Cost in bytes: roofline.min_bytes. Predicted for 19,000 boxes of 91 classes: 69 us -> 3 us, because 27 launches of
2.5 us become one; for an RPN's 4819 boxes 22 launches become one. Speed on an H200 (bc309f8): 2.3 us for either.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels.fallback import decode as decode_fallback
from fastmask.kernels.jit import jit
from fastmask.kernels.launch import on_device
from fastmask.kernels.reference import compute_dtype
from fastmask.kernels.variant import DTYPES, Variant, pointers

BLOCK = 128  # boxes of a program
NUM_WARPS = 4
# of arguments that kernels of candidates share, for their variants
TYPES = {
    **pointers("fp32", "boxes", "scores"),
    **pointers("i64", "sizes", "count", "index", "labels"),
    **pointers("i8", "valid"),
    **dict.fromkeys(("weight_x", "weight_y", "weight_w", "weight_h", "xform_clip", "min_size", "min_score"), "fp32"),
}


@triton.jit
def decode_axis(ptrs_delta, ptrs_box, mask, weight, weight_size, xform_clip, limit):
    """One axis of each box: its first and last coordinate. NaN stays NaN."""
    low = tl.load(ptrs_box, mask=mask, other=0).to(tl.float32)
    size = tl.load(ptrs_box + 2, mask=mask, other=0).to(tl.float32) - low
    shift = tl.div_rn(tl.load(ptrs_delta, mask=mask, other=0).to(tl.float32), weight)
    growth = tl.div_rn(tl.load(ptrs_delta + 2, mask=mask, other=0).to(tl.float32), weight_size)
    growth = tl.where(growth > xform_clip, xform_clip, growth)
    center = shift * size + (low + 0.5 * size)
    half = 0.5 * (tl.exp(growth) * size)
    return _clip(center - half, limit), _clip(center + half, limit)


@triton.jit
def _clip(value, limit):
    value = tl.where(value < 0, 0.0, value)
    return tl.where(value > limit, limit, value)


@jit(do_not_specialize=["num", "references", "filled", "min_size", "min_score"])
def _decode_kernel(
    # tensors
    deltas_ptr,  # [B, N, 4] (dx, dy, dw, dh)
    references_ptr,  # [B, M, 4] (x1, y1, x2, y2)
    sizes_ptr,  # [B, 2] int64 (height, width)
    scores_ptr,  # [B, N]
    count_ptr,  # [B] int64 references that count; a placeholder without HAS_COUNT
    boxes_ptr,  # [B, N, 4] float32 out
    valid_ptr,  # [B, N] int8 out
    # sizes
    num,  # N
    references,  # M
    filled,  # B * N
    # what counts
    weight_x,
    weight_y,
    weight_w,
    weight_h,
    xform_clip,
    min_size,
    min_score,
    # constants
    ABOVE: tl.constexpr,  # a score must be above min_score, else at least it
    HAS_COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < filled
    image = offs // num
    reference = offs % num // (num // references)  # within its image
    ptrs_delta, ptrs_box = deltas_ptr + offs * 4, references_ptr + (image * references + reference) * 4
    height = tl.load(sizes_ptr + image * 2, mask=mask, other=0).to(tl.float32)
    width = tl.load(sizes_ptr + image * 2 + 1, mask=mask, other=0).to(tl.float32)
    x1, x2 = decode_axis(ptrs_delta, ptrs_box, mask, weight_x, weight_w, xform_clip, width)
    y1, y2 = decode_axis(ptrs_delta + 1, ptrs_box + 1, mask, weight_y, weight_h, xform_clip, height)

    score = tl.load(scores_ptr + offs, mask=mask, other=0).to(tl.float32)
    valid = (x2 - x1 >= min_size) & (y2 - y1 >= min_size)
    valid = valid & (score > min_score if ABOVE else score >= min_score)
    if HAS_COUNT:
        valid = valid & (reference < tl.load(count_ptr + image, mask=mask, other=0))
    ptrs_out = boxes_ptr + offs * 4
    tl.store(ptrs_out, x1, mask=mask)
    tl.store(ptrs_out + 1, y1, mask=mask)
    tl.store(ptrs_out + 2, x2, mask=mask)
    tl.store(ptrs_out + 3, y2, mask=mask)
    tl.store(valid_ptr + offs, valid.to(tl.int8), mask=mask)


def decode_boxes(
    deltas: Tensor,
    references: Tensor,
    sizes: Tensor,
    scores: Tensor,
    count: Tensor | None,
    weights: Sequence[float],
    xform_clip: float,
    min_size: float,
    min_score: float,
    above: bool,
) -> tuple[Tensor, Tensor]:
    """Shapes as in fallback.decode.decode_boxes. float64 takes the eager fallback."""
    if compute_dtype(deltas, references, scores) == torch.float64:
        return decode_fallback.decode_boxes(
            deltas, references, sizes, scores, count, weights, xform_clip, min_size, min_score, above
        )
    batch, num = deltas.shape[:2]
    boxes = deltas.new_empty((batch, num, 4), dtype=torch.float32)
    valid = deltas.new_empty((batch, num), dtype=torch.bool)
    if valid.numel() == 0:
        return boxes, valid
    with on_device(deltas):
        _decode_kernel[(triton.cdiv(batch * num, BLOCK),)](
            # tensors
            deltas_ptr=deltas.contiguous(),
            references_ptr=references.contiguous(),
            sizes_ptr=sizes.contiguous(),
            scores_ptr=scores.contiguous(),
            count_ptr=sizes if count is None else count.contiguous(),
            boxes_ptr=boxes,
            valid_ptr=valid.view(torch.int8),
            # sizes
            num=num,
            references=references.shape[1],
            filled=batch * num,
            # what counts
            **dict(zip(("weight_x", "weight_y", "weight_w", "weight_h"), map(float, weights), strict=True)),
            xform_clip=xform_clip,
            min_size=min_size,
            min_score=min_score,
            # constants
            ABOVE=above,
            HAS_COUNT=count is not None,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # each step is rounded as in eager PyTorch
        )
    return boxes, valid


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: dtypes; deltas of a box head and of an RPN."""
    for dtype, counted in itertools.product(DTYPES, (False, True)):
        yield Variant(
            f"decode, {'classes' if counted else 'levels'}, {dtype}",
            _decode_kernel,
            TYPES | pointers("fp32", "references") | pointers(dtype, "deltas"),
            {"ABOVE": counted, "HAS_COUNT": counted, "BLOCK": BLOCK},
            {"num_warps": NUM_WARPS, "enable_fp_fusion": False},
            default=True,
        )
