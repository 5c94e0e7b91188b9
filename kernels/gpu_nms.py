"""Greedy NMS in Triton: a batch of images, each with its groups, without a word to the host.

Order, source and differences: nms.py. Specification: reference.nms.
Boxes are sorted by score and then, stably, by group. A program owns the groups that begin in its BLOCK positions and
walks each one BLOCK boxes at a time: against the boxes kept so far, then among themselves, repeating "nothing that is
kept removes me" until nothing changes, which takes as many rounds as the longest chain of removals. It stops where
max_output boxes are kept. A second launch lists what was kept by score.
Cost in bytes: traffic.least_bytes, two sorts, and 16 bytes a kept box for each BLOCK after it (from the cache); memory
is linear in N. What should bind is arithmetic: a group's N x kept IoUs in one program. Speed: not yet measured.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels import cpu_nms
from fastmask.kernels.launch import on_device
from fastmask.kernels.reference import compute_dtype

BLOCK = 64  # boxes of a step
NUM_WARPS = 8  # of 64 x 64 pairs, sixteen a thread
LISTED = 1024  # boxes that a program of the second launch lists


@triton.jit
def _exceeds(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, threshold):
    """IoU > threshold of boxes [n] and [m] -> [n, m]; NaN, from whatever coordinate, exceeds nothing."""
    right = tl.minimum(ax2[:, None], bx2[None, :], propagate_nan=tl.PropagateNan.ALL)
    width = right - tl.maximum(ax1[:, None], bx1[None, :], propagate_nan=tl.PropagateNan.ALL)
    below = tl.minimum(ay2[:, None], by2[None, :], propagate_nan=tl.PropagateNan.ALL)
    height = below - tl.maximum(ay1[:, None], by1[None, :], propagate_nan=tl.PropagateNan.ALL)
    width = tl.maximum(width, 0.0, propagate_nan=tl.PropagateNan.ALL)
    height = tl.maximum(height, 0.0, propagate_nan=tl.PropagateNan.ALL)
    inter = width * height
    union = ((ax2 - ax1) * (ay2 - ay1))[:, None] + ((bx2 - bx1) * (by2 - by1))[None, :] - inter
    return tl.div_rn(inter, union) > threshold


@triton.jit
def _suppress_group(
    boxes_ptr,  # [N, 4], of one image as everything here
    valid_ptr,  # [N]
    order_ptr,  # [N]
    groups_ptr,  # [N]
    ranks_ptr,  # [N]
    kept_ptr,  # [4, N] scratch: the group's kept boxes from its first position on
    keep_ptr,  # [N] out
    start,
    num,
    max_output,
    threshold,
    GROUPED: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Mark what is kept of the group that begins at position ``start``."""
    lanes = tl.arange(0, BLOCK)
    group = start.to(tl.int64)
    if GROUPED:
        group = tl.load(groups_ptr + start)
    first = start
    num_kept = start * 0
    unfinished = max_output > 0
    while unfinished:
        offs = first + lanes
        member = offs < num
        rank = offs
        if GROUPED:
            member = member & (tl.load(groups_ptr + offs, mask=member, other=0) == group)
            rank = tl.load(ranks_ptr + offs, mask=member, other=0)
        index = tl.load(order_ptr + rank, mask=member, other=0)
        ptrs_box = boxes_ptr + index * 4
        x1 = tl.load(ptrs_box, mask=member, other=0).to(tl.float32)
        y1 = tl.load(ptrs_box + 1, mask=member, other=0).to(tl.float32)
        x2 = tl.load(ptrs_box + 2, mask=member, other=0).to(tl.float32)
        y2 = tl.load(ptrs_box + 3, mask=member, other=0).to(tl.float32)
        candidate = member
        if HAS_VALID:
            candidate = member & (tl.load(valid_ptr + index, mask=member, other=0) != 0)

        removed = tl.zeros([BLOCK, BLOCK], dtype=tl.int1)
        for k in range(0, num_kept, BLOCK):
            ptrs_kept = kept_ptr + start + k + lanes
            real = k + lanes < num_kept
            kx1 = tl.load(ptrs_kept, mask=real, other=float("nan"))
            ky1 = tl.load(ptrs_kept + num, mask=real, other=float("nan"))
            kx2 = tl.load(ptrs_kept + 2 * num, mask=real, other=float("nan"))
            ky2 = tl.load(ptrs_kept + 3 * num, mask=real, other=float("nan"))
            removed = removed | _exceeds(x1, y1, x2, y2, kx1, ky1, kx2, ky2, threshold)
        alive = candidate.to(tl.int32) * (1 - tl.max(removed.to(tl.int32), axis=1))

        earlier = lanes[None, :] < lanes[:, None]
        removes = (_exceeds(x1, y1, x2, y2, x1, y1, x2, y2, threshold) & earlier).to(tl.int32)
        candidate = alive
        changed = tl.max(alive, axis=0)
        while changed > 0:
            still = candidate * (1 - tl.max(removes * alive[None, :], axis=1))
            changed = tl.max(tl.abs(still - alive), axis=0)
            alive = still

        tl.store(keep_ptr + rank, alive.to(tl.int8), mask=member)
        ptrs_kept = kept_ptr + start + num_kept + tl.cumsum(alive, axis=0) - 1
        tl.store(ptrs_kept, x1, mask=alive > 0)
        tl.store(ptrs_kept + num, y1, mask=alive > 0)
        tl.store(ptrs_kept + 2 * num, x2, mask=alive > 0)
        tl.store(ptrs_kept + 3 * num, y2, mask=alive > 0)
        tl.debug_barrier()  # the next step's threads read what others of this program wrote
        num_kept += tl.sum(alive, axis=0)
        first += BLOCK
        unfinished = (tl.sum(member.to(tl.int32), axis=0) == BLOCK) & (num_kept < max_output)


@triton.jit(do_not_specialize=["num", "max_output", "threshold"])
def _suppress_kernel(
    # tensors
    boxes_ptr,  # [B, N, 4]
    valid_ptr,  # [B, N] which boxes take part
    order_ptr,  # [B, N] boxes, best score first
    groups_ptr,  # [B, N] the groups of those, ascending
    ranks_ptr,  # [B, N] where each of these stands in the order
    kept_ptr,  # [B, 4, N] scratch
    keep_ptr,  # [B, N] zeros, out: which of the order is kept
    # sizes
    num,
    max_output,
    # what counts
    threshold,
    # constants
    GROUPED: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(num, BLOCK) if GROUPED else 1
    row = (tl.program_id(0) // blocks).to(tl.int64) * num
    boxes_ptr += row * 4
    valid_ptr += row
    order_ptr += row
    groups_ptr += row
    ranks_ptr += row
    kept_ptr += row * 4
    keep_ptr += row
    begin = tl.program_id(0) % blocks * BLOCK
    if GROUPED:
        lanes = tl.arange(0, BLOCK)
        offs = begin + lanes
        mask = offs < num
        group = tl.load(groups_ptr + offs, mask=mask, other=0)
        before = tl.load(groups_ptr + offs - 1, mask=mask & (offs > 0), other=0)
        starts = mask & ((offs == 0) | (group != before))
        lane = tl.min(tl.where(starts, lanes, BLOCK), axis=0)
        while lane < BLOCK:
            _suppress_group(
                boxes_ptr, valid_ptr, order_ptr, groups_ptr, ranks_ptr, kept_ptr, keep_ptr,
                begin + lane, num, max_output, threshold, GROUPED, HAS_VALID, BLOCK,
            )  # fmt: skip
            lane = tl.min(tl.where(starts & (lanes > lane), lanes, BLOCK), axis=0)
    else:
        _suppress_group(
            boxes_ptr, valid_ptr, order_ptr, groups_ptr, ranks_ptr, kept_ptr, keep_ptr,
            begin, num, max_output, threshold, GROUPED, HAS_VALID, BLOCK,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num", "max_output"])
def _list_kernel(
    # tensors
    keep_ptr,  # [B, N]
    order_ptr,  # [B, N]
    indices_ptr,  # [B, max_output] out
    count_ptr,  # [B] out
    # sizes
    num,
    max_output,
    # constants
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(num, BLOCK)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    begin = tl.program_id(0) % blocks * BLOCK
    lanes = tl.arange(0, BLOCK)
    keep_ptr += image * num
    order_ptr += image * num
    indices_ptr += image * max_output
    earlier = tl.zeros([BLOCK], dtype=tl.int32)
    for first in range(0, begin, BLOCK):
        earlier += tl.load(keep_ptr + first + lanes).to(tl.int32)
    before = tl.sum(earlier, axis=0)
    offs = begin + lanes
    mask = offs < num
    keep = tl.load(keep_ptr + offs, mask=mask, other=0).to(tl.int32)
    place = before + tl.cumsum(keep, axis=0) - 1
    index = tl.load(order_ptr + offs, mask=mask, other=0)
    tl.store(indices_ptr + place, index, mask=(keep > 0) & (place < max_output))
    if begin + BLOCK >= num:  # the last one knows how many there are
        total = tl.minimum(before + tl.sum(keep, axis=0), max_output)
        tl.store(count_ptr + image, total.to(tl.int64))
        for first in range(total, max_output, BLOCK):
            rest = first + lanes
            tl.store(indices_ptr + rest, tl.full([BLOCK], -1, tl.int64), mask=rest < max_output)


def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    valid: Tensor | None,
    iou_threshold: float,
    max_output: int,
    num_groups: int = 0,
) -> tuple[Tensor, Tensor]:
    """Shapes as in cpu_nms.nms_padded. float64 boxes are plain PyTorch's."""
    if compute_dtype(boxes) == torch.float64:
        return cpu_nms.nms_padded(boxes, scores, groups, valid, iou_threshold, max_output)
    batch, num = boxes.shape[:2]
    indices = boxes.new_empty((batch, max_output), dtype=torch.int64)
    count = boxes.new_zeros(batch, dtype=torch.int64)
    if batch * num == 0:
        return indices.fill_(-1), count
    boxes = boxes.contiguous()
    # NaN first: CUDA's sort goes by bits, to which NaN has a sign and -0.0 is less than 0.0
    scores = torch.where(scores.isnan(), torch.nan, scores).contiguous() + 0.0
    order = scores.sort(dim=1, descending=True, stable=True).indices
    ordered, ranks = order, order  # stand-ins: without groups nothing reads them
    if groups is not None:
        ordered, ranks = groups.gather(1, order).sort(dim=1, stable=True)
    keep = boxes.new_zeros((batch, num), dtype=torch.int8)
    with on_device(boxes):
        _suppress_kernel[(batch * (1 if groups is None else triton.cdiv(num, BLOCK)),)](
            # tensors
            boxes_ptr=boxes,
            valid_ptr=keep if valid is None else valid.contiguous().view(torch.int8),
            order_ptr=order,
            groups_ptr=ordered,
            ranks_ptr=ranks,
            kept_ptr=boxes.new_empty((batch, 4, num), dtype=torch.float32),
            keep_ptr=keep,
            # sizes
            num=num,
            max_output=max_output,
            # what counts
            threshold=float(cpu_nms.largest_not_above(iou_threshold, np.dtype(np.float32))),
            # constants
            GROUPED=groups is not None,
            HAS_VALID=valid is not None,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # an IoU at the threshold must be rounded as the specification's is
        )
        _list_kernel[(batch * triton.cdiv(num, LISTED),)](
            # tensors
            keep_ptr=keep,
            order_ptr=order,
            indices_ptr=indices,
            count_ptr=count,
            # sizes
            num=num,
            max_output=max_output,
            # constants
            BLOCK=LISTED,
        )
    return indices, count
