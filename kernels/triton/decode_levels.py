"""Candidates of an RPN in Triton: sigmoid, gathering of anchors and deltas, decoding, clipping and tests in one launch.

Semantics, source: decode.py. Specification: reference_layers.decode_levels.
A thread takes a candidate, a program candidates of one level, whose deltas are read where the head left them, without
concatenating the levels first. Boxes are those of triton/decode.py.
Cost in bytes: 59 for each candidate and 32 for each sector of deltas: 0.4 MB for the 4819 of an image. Speed: not yet
measured.
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
from fastmask.kernels.triton.decode import TYPES, decode_axis
from fastmask.kernels.triton.mask_geometry import sigmoid
from fastmask.kernels.triton.roi_geometry import MAX_LEVELS, by_level, of_level
from fastmask.kernels.variant import DTYPES, Variant, pointers

BLOCK = 64  # candidates of a program
NUM_WARPS = 2
VARYING = [f"{name}{level}" for name in ("length", "anchors") for level in range(MAX_LEVELS)]


# the values of all levels stand on one line
# fmt: off


@jit(do_not_specialize=["num", "min_size", "min_score", *VARYING])
def _decode_levels_kernel(
    # tensors
    logits_ptr,  # [B, N]
    index_ptr,  # [B, N] int64 places among the anchors of all levels
    deltas0_ptr, deltas1_ptr, deltas2_ptr, deltas3_ptr, deltas4_ptr,  # [B, anchors0, 4] (dx, dy, dw, dh)
    anchors_ptr,  # [all levels' anchors, 4] (x1, y1, x2, y2)
    sizes_ptr,  # [B, 2] int64 (height, width)
    boxes_ptr,  # [B, N, 4] float32 out
    scores_ptr,  # [B, N] float32 out
    valid_ptr,  # [B, N] int8 out
    # sizes
    num,  # N
    length0, length1, length2, length3, length4,  # candidates of each level, of an image
    anchors0, anchors1, anchors2, anchors3, anchors4,  # of each level, of an image
    # what counts
    weight_x,
    weight_y,
    weight_w,
    weight_h,
    xform_clip,
    min_size,
    min_score,
    # constants
    LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # which candidates of which level
    level = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    before, first_anchor = level * 0, level * 0  # candidates and anchors of the levels before this one
    for i in tl.static_range(LEVELS - 1):
        beyond = level > i
        before += tl.where(beyond, of_level(i, length0, length1, length2, length3, length4, LEVELS), 0)
        first_anchor += tl.where(beyond, of_level(i, anchors0, anchors1, anchors2, anchors3, anchors4, LEVELS), 0)
    length = of_level(level, length0, length1, length2, length3, length4, LEVELS)
    anchors = of_level(level, anchors0, anchors1, anchors2, anchors3, anchors4, LEVELS)
    deltas_ptr = of_level(level, deltas0_ptr, deltas1_ptr, deltas2_ptr, deltas3_ptr, deltas4_ptr, LEVELS)
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < length
    row = image * num + before + offs

    # their boxes
    place = tl.load(index_ptr + row, mask=mask, other=0) - first_anchor
    place = tl.minimum(tl.maximum(place, 0), anchors - 1)
    ptrs_delta = deltas_ptr + (image * anchors + place) * 4
    ptrs_box = anchors_ptr + (first_anchor + place) * 4
    height = tl.load(sizes_ptr + image * 2).to(tl.float32)
    width = tl.load(sizes_ptr + image * 2 + 1).to(tl.float32)
    x1, x2 = decode_axis(ptrs_delta, ptrs_box, mask, weight_x, weight_w, xform_clip, width)
    y1, y2 = decode_axis(ptrs_delta + 1, ptrs_box + 1, mask, weight_y, weight_h, xform_clip, height)
    score = sigmoid(tl.load(logits_ptr + row, mask=mask, other=0).to(tl.float32))
    valid = (x2 - x1 >= min_size) & (y2 - y1 >= min_size) & (score >= min_score)
    ptrs_out = boxes_ptr + row * 4
    tl.store(ptrs_out, x1, mask=mask)
    tl.store(ptrs_out + 1, y1, mask=mask)
    tl.store(ptrs_out + 2, x2, mask=mask)
    tl.store(ptrs_out + 3, y2, mask=mask)
    tl.store(scores_ptr + row, score, mask=mask)
    tl.store(valid_ptr + row, valid.to(tl.int8), mask=mask)


# fmt: on


def decode_levels(
    logits: Tensor,
    index: Tensor,
    lengths: Sequence[int],
    deltas: Sequence[Tensor],
    anchors: Tensor,
    sizes: Tensor,
    weights: Sequence[float],
    xform_clip: float,
    min_size: float,
    min_score: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes as in fallback.decode.decode_levels. float64, and over MAX_LEVELS levels, take the eager fallback."""
    if compute_dtype(logits, *deltas, anchors) == torch.float64 or len(deltas) > MAX_LEVELS:
        return decode_fallback.decode_levels(
            logits, index, lengths, deltas, anchors, sizes, weights, xform_clip, min_size, min_score
        )
    batch, num = logits.shape
    boxes, scores = (logits.new_empty((batch, num, *shape), dtype=torch.float32) for shape in ((4,), ()))
    valid = logits.new_empty((batch, num), dtype=torch.bool)
    if valid.numel() == 0:
        return boxes, scores, valid
    numbers = [delta.shape[1] * delta.shape[2] * delta.shape[3] // 4 for delta in deltas]
    with on_device(logits):
        _decode_levels_kernel[(triton.cdiv(max(lengths), BLOCK), len(deltas), batch)](
            # tensors
            logits_ptr=logits.contiguous(),
            index_ptr=index.contiguous(),
            **by_level("deltas{}_ptr", [delta.permute(0, 2, 3, 1).contiguous() for delta in deltas]),
            anchors_ptr=anchors.contiguous(),
            sizes_ptr=sizes.contiguous(),
            boxes_ptr=boxes,
            scores_ptr=scores,
            valid_ptr=valid.view(torch.int8),
            # sizes
            num=num,
            **by_level("length{}", lengths),
            **by_level("anchors{}", numbers),
            # what counts
            **dict(zip(("weight_x", "weight_y", "weight_w", "weight_h"), map(float, weights), strict=True)),
            xform_clip=xform_clip,
            min_size=min_size,
            min_score=min_score,
            # constants
            LEVELS=len(deltas),
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # each step is rounded as in eager PyTorch
        )
    return boxes, scores, valid


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: dtypes, numbers of levels."""
    for dtype, levels in itertools.product(DTYPES, (1, MAX_LEVELS)):
        yield Variant(
            f"RPN's candidates, {dtype}, {levels} level{'s' if levels > 1 else ''}",
            _decode_levels_kernel,
            TYPES
            | pointers("fp32", "anchors")
            | pointers(dtype, "logits", *(f"deltas{level}" for level in range(MAX_LEVELS))),
            {"LEVELS": levels, "BLOCK": BLOCK},
            {"num_warps": NUM_WARPS, "enable_fp_fusion": False},
            default=levels > 1,
        )
