"""Soft-NMS in Triton: a program an image, a pass over the image's candidates for each output, without a host sync.

Source and rules: soft_nms.py. Specification: reference.soft_nms.
1. The boxes that take part are packed side by side, in the input's order, with the first pick's key.
2. Each pick is written, and one pass decays the others of its group and finds the next pick.

    key: the score's bits, which ascend as scores of at least 0 do; then the place from the end, so that the largest key
    is the first of the best scores; -1 of a box that is picked or dropped

Picks follow one another: at most max_output passes over the packed boxes, which stay in the caches (24 bytes each, 32
with groups). Cost in bytes: scores once, and the boxes that take part. Time: neither predicted nor measured yet.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels import reference
from fastmask.kernels.fallback import nms as nms_fallback, soft_nms as soft_nms_fallback
from fastmask.kernels.jit import jit
from fastmask.kernels.launch import on_device
from fastmask.kernels.reference import compute_dtype
from fastmask.kernels.variant import DTYPES, Variant, pointers

CHUNK = 1024  # boxes of a step
NUM_WARPS = 8
_LIMIT = tl.constexpr(reference.EXP_LIMIT)
_LOG2_E = tl.constexpr(reference.LOG2_E)
_LN_2_HIGH, _LN_2_LOW = tl.constexpr(reference.LN_2_HIGH), tl.constexpr(reference.LN_2_LOW)
_TERM0, _TERM1, _TERM2, _TERM3, _TERM4, _TERM5, _TERM6, _TERM7 = map(tl.constexpr, reference.EXP_TERMS)


@triton.jit
def _exp_of_negative(x):
    """Step by step as reference.exp_of_negative."""
    near = tl.minimum(x, _LIMIT)
    n = tl.floor(near * _LOG2_E + 0.5)
    rest = (n * _LN_2_HIGH - near) + n * _LN_2_LOW
    total = rest * _TERM0 + _TERM1
    total = total * rest + _TERM2
    total = total * rest + _TERM3
    total = total * rest + _TERM4
    total = total * rest + _TERM5
    total = total * rest + _TERM6
    total = total * rest + _TERM7
    power = ((127 - n.to(tl.int32)) << 23).to(tl.float32, bitcast=True)
    return tl.where(x <= _LIMIT, total * power, 0.0)


@triton.jit
def _make_key(score, place, taking):
    """int64, larger for a better score and for an earlier place; -1 of what takes no part."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)  # of -0.0 as of 0.0
    return tl.where(taking, (bits.to(tl.int64) << 32) | (0x7FFFFFFF - place).to(tl.int64), -1)


@jit(do_not_specialize=["num", "max_output", "iou_threshold", "sigma", "score_threshold"])
def _soft_nms_kernel(
    # tensors
    boxes_ptr,  # [B, N, 4] (x1, y1, x2, y2)
    scores_ptr,  # [B, N]
    groups_ptr,  # [B, N]
    valid_ptr,  # [B, N]
    packed_ptr,  # [B, 5, N] float32 scratch: corners and score of the boxes that take part
    labels_ptr,  # [B, N] int64 scratch: their groups
    places_ptr,  # [B, N] int32 scratch: their places in the input
    indices_ptr,  # [B, max_output] int64 out
    decayed_ptr,  # [B, max_output] out
    count_ptr,  # [B] int64 out
    # sizes
    num,
    max_output,
    # numbers
    iou_threshold,
    sigma,
    score_threshold,
    # constants
    GAUSSIAN: tl.constexpr,
    GROUPED: tl.constexpr,
    HAS_VALID: tl.constexpr,
    CHUNK: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    row = image * num
    lanes = tl.arange(0, CHUNK)
    ptrs_x1 = packed_ptr + row * 5
    ptrs_y1 = ptrs_x1 + num
    ptrs_x2 = ptrs_y1 + num
    ptrs_y2 = ptrs_x2 + num
    ptrs_score = ptrs_y2 + num

    # --- 1. pack the boxes that take part
    packed = tl.program_id(0) * 0
    keys = tl.full([CHUNK], -1, tl.int64)
    for first in range(0, num, CHUNK):
        offs = first + lanes
        mask = offs < num
        score = tl.load(scores_ptr + row + offs, mask=mask, other=0).to(tl.float32)
        taking = mask & (score >= score_threshold)
        if HAS_VALID:
            taking = taking & (tl.load(valid_ptr + row + offs, mask=mask, other=0) != 0)
        place = packed + tl.cumsum(taking.to(tl.int32), axis=0) - 1
        ptrs_box = boxes_ptr + (row + offs) * 4
        tl.store(ptrs_x1 + place, tl.load(ptrs_box, mask=taking, other=0).to(tl.float32), mask=taking)
        tl.store(ptrs_y1 + place, tl.load(ptrs_box + 1, mask=taking, other=0).to(tl.float32), mask=taking)
        tl.store(ptrs_x2 + place, tl.load(ptrs_box + 2, mask=taking, other=0).to(tl.float32), mask=taking)
        tl.store(ptrs_y2 + place, tl.load(ptrs_box + 3, mask=taking, other=0).to(tl.float32), mask=taking)
        tl.store(ptrs_score + place, score, mask=taking)
        tl.store(places_ptr + row + place, offs, mask=taking)
        if GROUPED:
            label = tl.load(groups_ptr + row + offs, mask=taking, other=0)
            tl.store(labels_ptr + row + place, label, mask=taking)
        keys = tl.maximum(keys, _make_key(score, place, taking))
        packed += tl.sum(taking.to(tl.int32), axis=0)
    tl.debug_barrier()  # other threads read them

    # --- 2. pick, decay, find the next pick
    best = tl.max(keys, axis=0)
    kept = packed * 0
    while (best >= 0) & (kept < max_output):
        pick = 0x7FFFFFFF - (best & 0x7FFFFFFF).to(tl.int32)
        value = (best >> 32).to(tl.int32).to(tl.float32, bitcast=True)
        tl.store(indices_ptr + image * max_output + kept, tl.load(places_ptr + row + pick).to(tl.int64))
        tl.store(decayed_ptr + image * max_output + kept, value)
        pick_x1, pick_y1 = tl.load(ptrs_x1 + pick), tl.load(ptrs_y1 + pick)
        pick_x2, pick_y2 = tl.load(ptrs_x2 + pick), tl.load(ptrs_y2 + pick)
        pick_area = (pick_x2 - pick_x1) * (pick_y2 - pick_y1)
        if GROUPED:
            pick_label = tl.load(labels_ptr + row + pick)
        keys = tl.full([CHUNK], -1, tl.int64)
        for first in range(0, packed, CHUNK):
            offs = first + lanes
            mask = offs < packed
            score = tl.load(ptrs_score + offs, mask=mask, other=-1)
            x1, y1 = tl.load(ptrs_x1 + offs, mask=mask, other=0), tl.load(ptrs_y1 + offs, mask=mask, other=0)
            x2, y2 = tl.load(ptrs_x2 + offs, mask=mask, other=0), tl.load(ptrs_y2 + offs, mask=mask, other=0)
            width = tl.maximum(tl.minimum(x2, pick_x2) - tl.maximum(x1, pick_x1), 0.0)
            height = tl.maximum(tl.minimum(y2, pick_y2) - tl.maximum(y1, pick_y1), 0.0)
            inter = width * height
            overlap = tl.div_rn(inter, pick_area + (x2 - x1) * (y2 - y1) - inter)
            if GAUSSIAN:
                decays = overlap == overlap
                decay = _exp_of_negative(tl.div_rn(overlap * overlap, sigma))
            else:
                decays = overlap > iou_threshold
                decay = 1.0 - overlap
            if GROUPED:
                label = tl.load(labels_ptr + row + offs, mask=mask, other=0)
                decays = decays & (label == pick_label)
            taking = (score >= 0) & (offs != pick)
            score = tl.where(decays, score * decay, score)
            taking = taking & (score >= score_threshold)
            tl.store(ptrs_score + offs, tl.where(taking, score, -1.0), mask=mask)
            keys = tl.maximum(keys, _make_key(score, offs, taking))
        best = tl.max(keys, axis=0)
        kept += 1
        tl.debug_barrier()
    # --- 3. fill the rest
    for first in range(kept, max_output, CHUNK):
        offs = first + lanes
        mask = offs < max_output
        tl.store(indices_ptr + image * max_output + offs, tl.full([CHUNK], -1, tl.int64), mask=mask)
        tl.store(decayed_ptr + image * max_output + offs, tl.zeros([CHUNK], tl.float32), mask=mask)
    tl.store(count_ptr + image, kept.to(tl.int64))


def soft_nms_padded(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    valid: Tensor | None,
    iou_threshold: float,
    sigma: float,
    gaussian: bool,
    score_threshold: float,
    max_output: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes as in fallback.soft_nms.soft_nms_padded. float64 boxes or scores take the eager fallback."""
    batch, num = boxes.shape[:2]
    if compute_dtype(boxes, scores) == torch.float64 or num >= 2**31 - CHUNK:
        return soft_nms_fallback.soft_nms_padded(
            boxes, scores, groups, valid, iou_threshold, sigma, gaussian, score_threshold, max_output
        )
    indices = boxes.new_empty((batch, max_output), dtype=torch.int64)
    decayed, count = scores.new_empty((batch, max_output)), boxes.new_zeros(batch, dtype=torch.int64)
    if batch * num * max_output == 0:
        return indices.fill_(-1), decayed.zero_(), count
    kind = np.dtype(np.float32)
    places = boxes.new_empty((batch, num), dtype=torch.int32)
    with on_device(boxes):
        _soft_nms_kernel[(batch,)](
            # tensors
            boxes_ptr=boxes.contiguous(),
            scores_ptr=scores.contiguous(),
            groups_ptr=indices if groups is None else groups.contiguous(),
            valid_ptr=places.view(torch.int8) if valid is None else valid.contiguous().view(torch.int8),
            packed_ptr=boxes.new_empty((batch, 5, num), dtype=torch.float32),
            labels_ptr=indices if groups is None else torch.empty_like(groups, memory_format=torch.contiguous_format),
            places_ptr=places,
            indices_ptr=indices,
            decayed_ptr=decayed,
            count_ptr=count,
            # sizes
            num=num,
            max_output=max_output,
            # numbers
            iou_threshold=float(nms_fallback.largest_not_above(iou_threshold, kind)),
            sigma=float(np.float32(sigma)),
            score_threshold=float(soft_nms_fallback.smallest_not_below(score_threshold, kind)),
            # constants
            GAUSSIAN=gaussian,
            GROUPED=groups is not None,
            HAS_VALID=valid is not None,
            CHUNK=CHUNK,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # each step is rounded as the specification's is
        )
    return indices, decayed, count


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: dtypes, kinds of decay, groups, padding."""
    numbers = dict.fromkeys(("iou_threshold", "sigma", "score_threshold"), "fp32")
    integers = pointers("i64", "groups", "labels", "indices", "count") | pointers("i32", "places")
    for dtype in DTYPES:
        types = numbers | integers | pointers("i8", "valid") | pointers("fp32", "packed")
        for gaussian, grouped, padded in itertools.product((False, True), repeat=3):
            kind = f"{'gaussian' if gaussian else 'linear'}, {dtype}"
            yield Variant(
                f"soft-NMS, {kind}{', groups' if grouped else ''}{', padding' if padded else ''}",
                _soft_nms_kernel,
                types | pointers(dtype, "boxes", "scores", "decayed"),
                {"GAUSSIAN": gaussian, "GROUPED": grouped, "HAS_VALID": padded, "CHUNK": CHUNK},
                {"num_warps": NUM_WARPS, "enable_fp_fusion": False},
                default=grouped and padded,
            )
