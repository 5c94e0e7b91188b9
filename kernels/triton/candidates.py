"""Candidates of a box head in Triton: softmax, selection of classes, decoding, clipping and tests in one launch.

Semantics, source: decode.py. Specification: reference_layers.select_candidates.
A program takes a RoI, a lane some of its classes. The softmax is float32's in torch's steps (maximum, exponentials of
the differences, their sum, quotients), but for the exponential, which is Triton's. Classes above the threshold take
their slots by a running sum; each lane decodes its own, without a sort or a gather.
Cost in bytes: the logits, the deltas of the selected classes, and 29 for each slot: 0.8 MB for 1000 RoIs of 91 classes,
19 slots each. Speed: not yet measured.
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
from fastmask.kernels.variant import DTYPES, Variant, pointers

MAX_CLASSES = 2048  # beyond it, the eager fallback
OF_WARP = 256  # classes, eight a lane
STRIDES = ("stride_logits", "stride_deltas")


@jit(do_not_specialize=["classes", "references", "slots", "min_size", "min_score", *STRIDES])
def _select_kernel(
    # tensors
    logits_ptr,  # [B * P, C]
    deltas_ptr,  # [B * P, C, 4] (dx, dy, dw, dh)
    references_ptr,  # [B, P, 4] (x1, y1, x2, y2)
    sizes_ptr,  # [B, 2] int64 (height, width)
    count_ptr,  # [B] int64 references that count
    boxes_ptr,  # [B, P * slots, 4] float32 out
    labels_ptr,  # [B, P * slots] int64 out
    scores_ptr,  # [B, P * slots] float32 out
    valid_ptr,  # [B, P * slots] int8 out
    # sizes
    classes,  # C
    references,  # P
    slots,
    stride_logits,  # of a RoI
    stride_deltas,
    # what counts
    weight_x,
    weight_y,
    weight_w,
    weight_h,
    xform_clip,
    min_size,
    min_score,
    # constants
    CLASSES: tl.constexpr,  # a power of two, at least C
    SLOTS: tl.constexpr,  # a power of two, at least slots
):
    roi = tl.program_id(0).to(tl.int64)
    image = roi // references
    label = tl.arange(0, CLASSES)

    # --- 1. softmax over the RoI's classes
    logit = tl.load(logits_ptr + roi * stride_logits + label, mask=label < classes, other=float("-inf")).to(tl.float32)
    power = tl.exp(logit - tl.max(logit, axis=0))
    score = tl.div_rn(power, tl.sum(power, axis=0))

    # --- 2. assign the classes above the threshold to slots
    counted = roi % references < tl.load(count_ptr + image)
    fills = (score > min_score) & (label > 0) & (label < tl.where(counted, classes, 0))
    slot = tl.cumsum(fills.to(tl.int32), axis=0) - 1
    fills = fills & (slot < slots)

    # --- 3. decode, clip and store their boxes
    ptrs_delta = deltas_ptr + roi * stride_deltas + label * 4
    ptrs_box = references_ptr + roi * 4 + label * 0
    height = tl.load(sizes_ptr + image * 2).to(tl.float32)
    width = tl.load(sizes_ptr + image * 2 + 1).to(tl.float32)
    x1, x2 = decode_axis(ptrs_delta, ptrs_box, fills, weight_x, weight_w, xform_clip, width)
    y1, y2 = decode_axis(ptrs_delta + 1, ptrs_box + 1, fills, weight_y, weight_h, xform_clip, height)
    valid = fills & (x2 - x1 >= min_size) & (y2 - y1 >= min_size)
    place = roi * slots + slot
    ptrs_out = boxes_ptr + place * 4
    tl.store(ptrs_out, tl.where(valid, x1, 0), mask=fills)
    tl.store(ptrs_out + 1, tl.where(valid, y1, 0), mask=fills)
    tl.store(ptrs_out + 2, tl.where(valid, x2, 0), mask=fills)
    tl.store(ptrs_out + 3, tl.where(valid, y2, 0), mask=fills)
    tl.store(labels_ptr + place, tl.where(valid, label, 0).to(tl.int64), mask=fills)
    tl.store(scores_ptr + place, tl.where(valid, score, 0), mask=fills)
    tl.store(valid_ptr + place, valid.to(tl.int8), mask=fills)

    # --- 4. zero the slots that are left over
    other = tl.arange(0, SLOTS)
    empty = (other >= tl.sum(fills.to(tl.int32), axis=0)) & (other < slots)
    place = roi * slots + other
    corners = place[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(boxes_ptr + corners, tl.zeros([SLOTS, 4], tl.float32), mask=empty[:, None])
    tl.store(labels_ptr + place, tl.zeros([SLOTS], tl.int64), mask=empty)
    tl.store(scores_ptr + place, tl.zeros([SLOTS], tl.float32), mask=empty)
    tl.store(valid_ptr + place, tl.zeros([SLOTS], tl.int8), mask=empty)


def select_candidates(
    logits: Tensor,
    deltas: Tensor,
    references: Tensor,
    sizes: Tensor,
    count: Tensor,
    slots: int,
    weights: Sequence[float],
    xform_clip: float,
    min_size: float,
    min_score: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shapes as in fallback.decode.select_candidates. float64, and more classes than MAX_CLASSES, take the
    eager fallback."""
    classes = logits.shape[1]
    if compute_dtype(logits, deltas, references) == torch.float64 or classes > MAX_CLASSES:
        return decode_fallback.select_candidates(
            logits, deltas, references, sizes, count, slots, weights, xform_clip, min_size, min_score
        )
    batch, each = references.shape[:2]
    boxes, scores = (logits.new_empty((batch, each * slots, *shape), dtype=torch.float32) for shape in ((4,), ()))
    labels, valid = (logits.new_empty((batch, each * slots), dtype=dtype) for dtype in (torch.int64, torch.bool))
    if valid.numel() == 0:
        return boxes, labels, scores, valid
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    if deltas.stride()[1:] != (4, 1):
        deltas = deltas.contiguous()
    width = triton.next_power_of_2(classes)
    with on_device(logits):
        _select_kernel[(batch * each,)](
            # tensors
            logits_ptr=logits,
            deltas_ptr=deltas,
            references_ptr=references.contiguous(),
            sizes_ptr=sizes.contiguous(),
            count_ptr=count.contiguous(),
            boxes_ptr=boxes,
            labels_ptr=labels,
            scores_ptr=scores,
            valid_ptr=valid.view(torch.int8),
            # sizes
            classes=classes,
            references=each,
            slots=slots,
            stride_logits=logits.stride(0),
            stride_deltas=deltas.stride(0),
            # what counts
            **dict(zip(("weight_x", "weight_y", "weight_w", "weight_h"), map(float, weights), strict=True)),
            xform_clip=xform_clip,
            min_size=min_size,
            min_score=min_score,
            # constants
            CLASSES=width,
            SLOTS=triton.next_power_of_2(slots),
            num_warps=warps_of(width),
            enable_fp_fusion=False,  # each step is rounded as in eager PyTorch
        )
    return boxes, labels, scores, valid


def warps_of(width: int) -> int:
    """Number of warps for so many classes, padded."""
    return max(width // OF_WARP, 1)


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: dtypes, numbers of classes and slots."""
    sizes = {"": (128, 32), ", LVIS": (2048, 32), ", few": (2, 1), ", all kept": (2048, 2048)}
    for dtype, (name, (classes, slots)) in itertools.product(DTYPES, sizes.items()):
        yield Variant(
            f"box head's candidates, {dtype}{name}",
            _select_kernel,
            TYPES | pointers("fp32", "references") | pointers(dtype, "logits", "deltas"),
            {"CLASSES": classes, "SLOTS": slots},
            {"num_warps": warps_of(classes), "enable_fp_fusion": False},
            default=name == "",
        )
