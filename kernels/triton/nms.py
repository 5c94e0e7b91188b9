"""Non-maximum suppression (NMS) in Triton: greedy, of a batch of images, each with its groups, without a host sync.

Order, source and differences: nms.py. Specification: reference.nms.
1. triton/nms_order.py, nms_runs.py, nms_presorted.py order the boxes: those of a group side by side, by score.
2. triton/nms_pairs.py tests pairs: a bit for each box that would remove another, 64 x 64 a tile, all tiles at once.
3. triton/nms_resolve.py decides which boxes are kept, one warp a group, and lists them by score.
The bits of pairs take 8 bytes a box and block of 64 before it in its group: up to MAX_WORDS of them, and beyond that
groups are processed in windows of as many blocks as fit. The boxes kept in a window then strike the group's later ones
in a launch of its own: 2 x (windows of the largest group - 1) launches more, a number that shapes alone fix.
Cost in bytes: roofline.min_bytes, the sorts, and the bits. Fewer than 2^31 boxes in all.
Predicted (README.md) for 4819 boxes in 5 presorted levels: 384 -> 41 us (one image), 670 -> 58 (eight), because a level
is no longer one CTA's work; for 20,000 boxes in 80 classes 122 -> 61 us, in one group 54 -> 1.8 ms.
The target of the levels, 30 us, is missed by 11 and 28: five launches take 12, the walk of 17 blocks takes 12, and at
eight images the pairs take 24, most of them of boxes that stand behind the last output.
On an H200 (bc309f8): 40 us, 64 for eight images, 71 for 4819 boxes in no order, 100 for 20,000 in 80 classes. Since
then kernels of our own sort runs and merge them, and pairs start fewer programs: not yet measured.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor

from fastmask.kernels.fallback import nms as nms_fallback
from fastmask.kernels.launch import INTERPRET, on_device
from fastmask.kernels.reference import compute_dtype
from fastmask.kernels.triton import (
    nms_order as nms_order_triton,
    nms_pairs as nms_pairs_triton,
    nms_presorted as nms_presorted_triton,
    nms_resolve as nms_resolve_triton,
    nms_runs as nms_runs_triton,
)
from fastmask.kernels.tuning import tuned_value

COMPARISONS = 2**22  # pairs up to which boxes are counted instead of sorted
MERGES = 2**32  # pairs up to which they are sorted in runs that are merged, and not by PyTorch
MAX_WORDS = 2**24  # 64-bit words of the pairs: 128 MiB, or MIN_WINDOW a box where that is more
MIN_WINDOW = 16  # blocks
MAX_BUCKETS = 2**14  # of an image


class Placed(NamedTuple):
    """Boxes in their positions, and their ranks by score; padded to whole tiles."""

    tiles: Tensor  # [blocks, 5, BLOCK] float32
    units: Tensor  # [blocks * BLOCK] int32
    labels: Tensor  # [blocks * BLOCK] int64 the groups themselves; a placeholder without groups
    ranks: Tensor  # [blocks * BLOCK] int32 places in ``keep``
    order: Tensor  # [B, N] int64 boxes of the batch, best score first
    keep: Tensor  # [B, padded] int8 zeros


def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    valid: Tensor | None,
    iou_threshold: float,
    max_output: int,
    num_groups: int = 0,
    presorted: list[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Shapes as in fallback.nms.nms_padded. float64 boxes or scores take the eager fallback."""
    if compute_dtype(boxes, scores) == torch.float64:
        return nms_fallback.nms_padded(boxes, scores, groups, valid, iou_threshold, max_output, num_groups, presorted)
    batch, num = boxes.shape[:2]
    if batch * num * max_output == 0:
        return boxes.new_full((batch, max_output), -1, dtype=torch.int64), boxes.new_zeros(batch, dtype=torch.int64)
    if presorted is not None and len(presorted) > nms_order_triton.MAX_RUNS:
        scores = nms_fallback.running_minimum(scores, presorted)
        groups, num_groups, presorted = nms_fallback.run_groups(presorted, scores), len(presorted), None
    threshold = float(nms_fallback.largest_not_above(iou_threshold, np.dtype(np.float32)))
    above = np.nextafter(np.float32(threshold), np.float32(np.inf))
    half_gap = 0.0 if np.isinf(threshold) else float(above - np.float32(threshold)) / 2
    test = "divide" if threshold < nms_pairs_triton.SMALLEST_THRESHOLD else "float64" if INTERPRET else "fma"
    pairs: dict[str, Any] = {
        "threshold": threshold,
        "half_gap": half_gap,
        "GROUPED": groups is not None,
        "TEST": test,  # Triton's interpreter rounds an fma twice
        "BLOCK": nms_order_triton.BLOCK,
        "COLUMNS": nms_pairs_triton.columns_of(groups is not None, test),
        "num_warps": 1,
        "enable_fp_fusion": False,  # an IoU at the threshold must be rounded as the specification's is
    }
    with on_device(boxes):
        placed = _place_boxes(boxes, scores, groups, valid, num_groups, presorted, test == "divide")
        _suppress(placed, batch, max(presorted) if presorted else num, max_output, pairs)
        return _list_kept(placed, max_output)


def _place_boxes(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    valid: Tensor | None,
    num_groups: int,
    presorted: Sequence[int] | None,
    divide: bool,
) -> Placed:
    """Order the boxes by what is cheapest for their number."""
    batch, num = boxes.shape[:2]
    block = nms_order_triton.BLOCK
    blocks = triton.cdiv(batch * num, block)
    order = boxes.new_empty((batch, num), dtype=torch.int64)
    placed = Placed(
        boxes.new_empty((blocks, 5, block), dtype=torch.float32),
        boxes.new_empty(blocks * block, dtype=torch.int32),
        order if groups is None else boxes.new_empty(blocks * block, dtype=torch.int64),
        boxes.new_empty(blocks * block, dtype=torch.int32),
        order,
        boxes.new_empty((batch, triton.cdiv(num, 16) * 16), dtype=torch.int8),
    )
    inputs = {
        "boxes_ptr": boxes.contiguous(),
        "valid_ptr": placed.keep if valid is None else valid.contiguous().view(torch.int8),
        "HAS_VALID": valid is not None,
    }
    outputs = {
        "tiles_ptr": placed.tiles,
        "units_ptr": placed.units,
        "ranks_ptr": placed.ranks,
        "keep_words_ptr": placed.keep.view(torch.int64),
        "num": num,
        "padded": placed.keep.shape[1],
        "filled": batch * num,
        "size": blocks * block,
        "keep_words": placed.keep.numel() // 8,
        "DIVIDE": divide,
        "BLOCK": block,
    }
    scores = scores.contiguous()
    if presorted is not None:
        _merge(placed, scores, presorted, inputs | outputs)
        return placed
    buckets, hashed = (1, False) if groups is None else _buckets(batch, num_groups)
    units = {
        "groups_ptr": order if groups is None else groups.contiguous(),
        "buckets": buckets,
        "shift": 65 - buckets.bit_length(),  # of 64 bits, what is left of a hash has as many as buckets
        "HASHED": hashed,
    }
    outputs |= {"labels_ptr": placed.labels, "GROUPED": groups is not None}
    if batch * num * num <= tuned_value("nms.comparisons", COMPARISONS, boxes.device):
        nms_order_triton._count_kernel[(batch * triton.cdiv(num, nms_order_triton.COUNTED),)](
            **inputs,
            **units,
            **outputs,
            scores_ptr=scores,
            order_ptr=order,
            COUNTED=nms_order_triton.COUNTED,
            COMPARED=nms_order_triton.COMPARED,
            num_warps=nms_order_triton.COUNT_WARPS,
        )
        return placed
    runs = triton.cdiv(num, nms_runs_triton.RUN)
    filled_runs = runs * nms_runs_triton.RUN <= 4 * num and num <= nms_runs_triton.MAX_BOXES
    if filled_runs and batch * num * num <= MERGES:
        _merge_runs(placed, scores, runs, inputs, units, outputs)
        return placed
    return _sort_all(placed, scores, inputs, units, outputs)


def _buckets(batch: int, num_groups: int) -> tuple[int, bool]:
    """Number of units that an image's groups are mapped to, and whether through a hash of them."""
    if 0 < num_groups <= MAX_BUCKETS and batch * (num_groups + 1) < 2**30:
        return num_groups, False
    return max(MAX_BUCKETS >> (batch - 1).bit_length(), 64), True


def _merge(placed: Placed, scores: Tensor, lengths: Sequence[int], common: dict[str, Any]) -> None:
    """Order presorted runs: by a merge."""
    batch, num = placed.order.shape
    ends = [sum(lengths[: i + 1]) for i in range(nms_order_triton.MAX_RUNS)]
    sizes = dict(zip(nms_presorted_triton.ENDS, ends, strict=True))
    keys = torch.empty_like(placed.order, dtype=torch.int32)
    nms_presorted_triton._run_keys_kernel[(batch, len(lengths))](
        scores_ptr=scores, keys_ptr=keys, num=num, **sizes, RUN=nms_order_triton.RUN
    )
    nms_presorted_triton._merge_kernel[(triton.cdiv(batch * num, nms_presorted_triton.MERGED),)](
        **common,
        **sizes,
        keys_ptr=keys,
        order_ptr=placed.order,
        runs=len(lengths),
        steps=max(lengths).bit_length(),
        MERGED=nms_presorted_triton.MERGED,
        MAX_RUNS=nms_order_triton.MAX_RUNS,
    )


def _merge_runs(
    placed: Placed,
    scores: Tensor,
    runs: int,
    inputs: dict[str, Any],
    units: dict[str, Any],
    outputs: dict[str, Any],
) -> None:
    """Order by sorts of runs, all at once, and a merge of them."""
    batch, num = placed.order.shape
    kinds = 2 if outputs["GROUPED"] else 1
    keys = scores.new_empty((batch, kinds, runs, nms_runs_triton.RUN), dtype=torch.int64)
    lengths = scores.new_empty((batch, runs), dtype=torch.int32)
    nms_runs_triton._sort_runs_kernel[(batch * runs, kinds)](
        **units,
        scores_ptr=scores,
        valid_ptr=inputs["valid_ptr"],
        keys_ptr=keys,
        lengths_ptr=lengths,
        num=num,
        runs=runs,
        GROUPED=outputs["GROUPED"],
        HAS_VALID=inputs["HAS_VALID"],
        RUN=nms_runs_triton.RUN,
        num_warps=nms_runs_triton.SORT_WARPS,
    )
    merged = min(nms_runs_triton.MERGED, nms_runs_triton.RUN)
    nms_runs_triton._merge_runs_kernel[(batch * runs * (nms_runs_triton.RUN // merged),)](
        **outputs,
        boxes_ptr=inputs["boxes_ptr"],
        groups_ptr=units["groups_ptr"],
        buckets=units["buckets"],
        keys_ptr=keys,
        lengths_ptr=lengths,
        order_ptr=placed.order,
        runs=runs,
        RUN=nms_runs_triton.RUN,
        SEARCHED=nms_runs_triton.SEARCHED,
        MERGED=merged,
    )


def _sort_all(
    placed: Placed, scores: Tensor, inputs: dict[str, Any], units: dict[str, Any], outputs: dict[str, Any]
) -> Placed:
    """Order by one sort of the whole batch by score and, with groups, another by unit."""
    batch, num = placed.order.shape
    grid = (triton.cdiv(batch * num, nms_order_triton.PLACED),)
    valid = {name: inputs[name] for name in ("valid_ptr", "HAS_VALID")}
    keys = scores.new_empty(batch * num, dtype=torch.int32 if batch == 1 else torch.int64)
    nms_order_triton._score_keys_kernel[grid](
        **valid,
        scores_ptr=scores,
        keys_ptr=keys,
        num=num,
        filled=batch * num,
        ONE_IMAGE=batch == 1,
        PLACED=nms_order_triton.PLACED,
    )
    order = keys.sort(stable=True).indices
    by_unit = order  # without groups nothing reads it
    if outputs["GROUPED"]:
        most = batch * (units["buckets"] + 1)
        dtype = torch.uint8 if most <= 2**8 else torch.int16 if most <= 2**15 else torch.int32
        keys = scores.new_empty(batch * num, dtype=dtype)
        nms_order_triton._unit_keys_kernel[grid](
            **valid,
            **units,
            order_ptr=order,
            keys_ptr=keys,
            num=num,
            filled=batch * num,
            PLACED=nms_order_triton.PLACED,
        )
        by_unit = keys.sort(stable=True).indices
    nms_order_triton._place_kernel[grid](
        **inputs, **units, **outputs, order_ptr=order, sorted_ptr=by_unit, PLACED=nms_order_triton.PLACED
    )
    return placed._replace(order=order.view(batch, num))


def _suppress(placed: Placed, batch: int, largest: int, max_output: int, pairs: dict[str, Any]) -> None:
    """Mark the kept boxes in ``placed.keep``; a unit has at most ``largest`` boxes."""
    blocks, _, block = placed.tiles.shape
    reach = min(triton.cdiv(largest - 1, block) + 1, blocks)  # blocks that one unit can be in
    window = min(reach, max(MAX_WORDS // (blocks * block), MIN_WINDOW))
    splits = nms_pairs_triton.splits_of(
        blocks, window, tuned_value("nms.splits", nms_pairs_triton.SPLITS, placed.tiles.device)
    )
    words = placed.units.new_empty((blocks, window, 2, block))
    boxes = {"tiles_ptr": placed.tiles, "units_ptr": placed.units, "labels_ptr": placed.labels}
    nms_pairs_triton._pairs_kernel[(blocks * splits,)](**boxes, words_ptr=words, window=window, splits=splits, **pairs)
    one_window = reach <= window
    kept = placed.units.new_empty((blocks, 2)) if one_window else placed.units.new_zeros((blocks, 2))
    state = {
        "units_ptr": placed.units,
        "ranks_ptr": placed.ranks,
        "words_ptr": words,
        "struck_ptr": placed.keep if one_window else placed.keep.new_zeros(blocks * block),
        "kept_ptr": kept,
        "num_kept_ptr": placed.units.new_empty(blocks),
        "keep_ptr": placed.keep,
        "blocks": blocks,
        "window": window,
        "max_output": max_output,
        "FAR": nms_resolve_triton.FAR,
        "BLOCK": block,
        "num_warps": 1,
    }
    nms_resolve_triton._resolve_kernel[(blocks,)](**state, step=0, LATER=False)
    for step in range(triton.cdiv(reach, window) - 1):
        later = blocks - (step + 1) * window
        nms_pairs_triton._strike_kernel[(later * splits,)](
            **boxes,
            kept_ptr=kept,
            struck_ptr=state["struck_ptr"],
            window=window,
            splits=splits,
            step=step,
            **pairs | {"COLUMNS": nms_pairs_triton.columns_of(True, pairs["TEST"])},
        )
        nms_resolve_triton._resolve_kernel[(later,)](**state, step=step + 1, LATER=True)


def _list_kept(placed: Placed, max_output: int) -> tuple[Tensor, Tensor]:
    batch, num = placed.order.shape
    programs = triton.cdiv(num, nms_resolve_triton.LISTED)
    indices = placed.order.new_empty((batch, max_output))
    count = placed.order.new_empty(batch)
    nms_resolve_triton._list_kernel[(batch * programs,)](
        keep_ptr=placed.keep,
        keep_words_ptr=placed.keep.view(torch.int64),
        order_ptr=placed.order,
        indices_ptr=indices,
        count_ptr=count,
        num=num,
        padded=placed.keep.shape[1],
        max_output=max_output,
        programs=programs,
        LISTED=nms_resolve_triton.LISTED,
        WORDS=nms_resolve_triton.COUNTED_WORDS,
    )
    return indices, count
