"""Gathering after NMS in Triton: kept rows, and boxes in pixels of the original images, in a launch each.

Semantics: take.py. A thread takes a row. Both are bitwise equal to eager PyTorch: they copy, divide and multiply alike.
Cost in bytes: 8 for each row's number, 28 read and 48 written; and of scaling, 16 read and 32 written for each box.
Speed: not yet measured.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels.fallback import take as take_fallback
from fastmask.kernels.jit import jit
from fastmask.kernels.launch import on_device
from fastmask.kernels.variant import Variant, pointers

BLOCK = 64  # rows of a program
NUM_WARPS = 2


@jit(do_not_specialize=["num", "most", "filled"])
def _take_kernel(
    # tensors
    kept_ptr,  # [B, M] int64 rows of their image; -1 for none
    boxes_ptr,  # [B, N, 4]
    scores_ptr,  # [B, N]
    labels_ptr,  # [B, N] int64; a placeholder without HAS_LABELS
    boxes_out_ptr,  # [B, M, 4] out
    scores_out_ptr,  # [B, M] out
    labels_out_ptr,  # [B, M] out; a placeholder without HAS_LABELS
    rois_ptr,  # [B, M, 5] out
    # sizes
    num,  # N
    most,  # M
    filled,  # B * M
    # constants
    HAS_LABELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < filled
    image = offs // most
    kept = tl.load(kept_ptr + offs, mask=mask, other=-1)
    valid = kept >= 0
    row = image * num + kept
    ptrs_roi = rois_ptr + offs * 5
    tl.store(ptrs_roi, image.to(tl.float32), mask=mask)
    for corner in tl.static_range(4):
        value = tl.load(boxes_ptr + row * 4 + corner, mask=valid, other=0)
        tl.store(boxes_out_ptr + offs * 4 + corner, value, mask=mask)
        tl.store(ptrs_roi + 1 + corner, value, mask=mask)
    tl.store(scores_out_ptr + offs, tl.load(scores_ptr + row, mask=valid, other=0), mask=mask)
    if HAS_LABELS:
        tl.store(labels_out_ptr + offs, tl.load(labels_ptr + row, mask=valid, other=0), mask=mask)


def take_kept(
    kept: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shapes as in fallback.take.take_kept. Other types than float32 take the eager fallback."""
    if boxes.dtype != torch.float32 or scores.dtype != torch.float32:
        return take_fallback.take_kept(kept, boxes, scores, labels)
    batch, most = kept.shape
    boxes_out, rois = (boxes.new_empty(batch, most, side) for side in (4, 5))
    scores_out = scores.new_empty(batch, most)
    labels_out = kept.new_empty(0 if labels is None else kept.shape)
    if kept.numel() == 0:
        return boxes_out, scores_out, labels_out, rois
    with on_device(kept):
        _take_kernel[(triton.cdiv(kept.numel(), BLOCK),)](
            # tensors
            kept_ptr=kept.contiguous(),
            boxes_ptr=boxes.contiguous(),
            scores_ptr=scores.contiguous(),
            labels_ptr=kept if labels is None else labels.contiguous(),
            boxes_out_ptr=boxes_out,
            scores_out_ptr=scores_out,
            labels_out_ptr=kept if labels is None else labels_out,
            rois_ptr=rois,
            # sizes
            num=boxes.shape[1],
            most=most,
            filled=kept.numel(),
            # constants
            HAS_LABELS=labels is not None,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
        )
    return boxes_out, scores_out, labels_out, rois


@jit(do_not_specialize=["each", "filled"])
def _scale_kernel(
    # tensors
    boxes_ptr,  # [B, D, 4] float32
    originals_ptr,  # [B, 2] int64 (height, width)
    sizes_ptr,  # [B, 2] int64
    boxes_out_ptr,  # [B, D, 4] float32 out
    sizes_out_ptr,  # [B, D, 2] int64 out: the originals
    # sizes
    each,  # D
    filled,  # B * D
    # constants
    BLOCK: tl.constexpr,
):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < filled
    image = offs // each
    for axis in tl.static_range(2):
        original = tl.load(originals_ptr + image * 2 + axis, mask=mask, other=0)
        size = tl.load(sizes_ptr + image * 2 + axis, mask=mask, other=1)
        ratio = tl.div_rn(original.to(tl.float32), size.to(tl.float32))
        tl.store(sizes_out_ptr + offs * 2 + axis, original, mask=mask)
        for end in tl.static_range(2):
            corner = offs * 4 + 2 * end + 1 - axis
            tl.store(boxes_out_ptr + corner, tl.load(boxes_ptr + corner, mask=mask, other=0) * ratio, mask=mask)


def scale_boxes(boxes: Tensor, originals: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes as in fallback.take.scale_boxes. Other types than float32 take the eager fallback."""
    if boxes.dtype != torch.float32:
        return take_fallback.scale_boxes(boxes, originals, sizes)
    filled = boxes.shape[0] * boxes.shape[1]
    boxes_out, sizes_out = boxes.new_empty(boxes.shape), originals.new_empty(filled, 2)
    if filled == 0:
        return boxes_out, sizes_out
    with on_device(boxes):
        _scale_kernel[(triton.cdiv(filled, BLOCK),)](
            # tensors
            boxes_ptr=boxes.contiguous(),
            originals_ptr=originals.contiguous(),
            sizes_ptr=sizes.contiguous(),
            boxes_out_ptr=boxes_out,
            sizes_out_ptr=sizes_out,
            # sizes
            each=boxes.shape[1],
            filled=filled,
            # constants
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
        )
    return boxes_out, sizes_out


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: rows with labels and without, and scaling."""
    floats = pointers("fp32", "boxes", "scores", "boxes_out", "scores_out", "rois")
    integers = pointers("i64", "kept", "labels", "labels_out", "originals", "sizes", "sizes_out")
    options = {"num_warps": NUM_WARPS}
    for labels in (False, True):
        constants = {"HAS_LABELS": labels, "BLOCK": BLOCK}
        name = f"what NMS keeps{', labels' if labels else ''}"
        yield Variant(name, _take_kernel, floats | integers, constants, options, default=True)
    yield Variant("boxes scaled", _scale_kernel, floats | integers, {"BLOCK": BLOCK}, options, default=True)
