"""Non-maximum suppression (NMS), eager fallback, in blocks: against the boxes kept so far, then within as bit rows.

Linear memory: BLOCK x kept IoUs at a time. NumPy, because a block's dozen steps cost microseconds there, and because
Python's integers resolve a block's serial chain 128 boxes at a time. Specification: reference.py.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmask.kernels.reference import compute_dtype

BLOCK = 128

Columns = NDArray[np.floating]  # [5, n]: x1, y1, x2, y2, area; best score first


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
    """[B, N, 4], [B, N], groups [B, N], valid [B, N] -> indices [B, max_output] filled up with -1, count [B], int64.

    ``num_groups`` is for the export to ONNX, which needs it, and for sorts on a GPU. ``presorted``: lengths of the runs
    that each image consists of, in place of groups; a score counts as the running minimum of its run.
    """
    batch = len(boxes)
    if presorted is not None and batch * boxes.shape[1] > 0:
        groups, scores = run_groups(presorted, scores), running_minimum(scores, presorted)
    indices = torch.full((batch, max_output), -1, dtype=torch.int64)
    count = torch.zeros(batch, dtype=torch.int64)
    order = scores.sort(dim=1, descending=True, stable=True).indices.cpu()  # NaN first
    corners = boxes.to(compute_dtype(boxes)).cpu().numpy()
    for b in range(batch):
        ranked = order[b] if valid is None else order[b][valid[b].cpu()[order[b]]]
        group = None if groups is None else groups[b].cpu()[ranked].numpy()
        kept = ranked[torch.from_numpy(_suppress(corners[b][ranked.numpy()], group, iou_threshold, max_output))]
        indices[b, : len(kept)] = kept
        count[b] = len(kept)
    return indices.to(boxes.device), count.to(boxes.device)


def run_groups(lengths: Sequence[int], like: Tensor) -> Tensor:
    """The number of each box's run, int64 [B, N], where ``like`` is."""
    runs = [torch.full((length,), i, dtype=torch.int64, device=like.device) for i, length in enumerate(lengths)]
    return torch.cat(runs).expand(like.shape[0], -1)


def running_minimum(scores: Tensor, lengths: Sequence[int]) -> Tensor:
    """Scores [B, N] no larger than any before them in their run; NaN stays where it comes first."""
    runs = []
    for run in scores.to(compute_dtype(scores)).split(list(lengths), dim=1):
        if run.shape[1] > 0:
            nan = run.isnan()
            least = run.masked_fill(nan, torch.inf).cummin(dim=1).values
            runs.append(least.masked_fill(nan.to(torch.uint8).cummin(dim=1).values.bool(), torch.nan))
    return torch.cat(runs, dim=1)


def _suppress(
    boxes: NDArray[np.floating], group: NDArray[np.int64] | None, iou_threshold: float, max_output: int
) -> NDArray[np.int64]:
    """Positions of the kept boxes among [n, 4] in score order, at most max_output, ascending."""
    with np.errstate(all="ignore"):  # inf - inf and 0 / 0 give NaN, which suppresses nothing
        threshold = largest_not_above(iou_threshold, boxes.dtype)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        columns = np.concatenate([boxes.T, area[None]])
        if group is None:
            return np.flatnonzero(_greedy(columns, threshold, max_output))[:max_output]
        order = np.argsort(group, kind="stable")
        starts = np.flatnonzero(np.diff(group[order], prepend=group[order[:1]] - 1))
        keep = np.zeros(len(boxes), bool)
        for members in np.split(order, starts[1:]):
            keep[members] = _greedy(columns[:, members], threshold, max_output)
    return np.flatnonzero(keep)[:max_output]


def largest_not_above(value: float, dtype: np.dtype[np.floating]) -> np.floating:
    """Largest t of ``dtype`` not above ``value``: x > t is x > value for every x of ``dtype``."""
    rounded = dtype.type(value)
    return dtype.type(np.nextafter(rounded, dtype.type(-np.inf))) if float(rounded) > value else rounded


def _greedy(columns: Columns, threshold: np.floating, max_output: int) -> NDArray[np.bool_]:
    """Kept boxes as bool [n]; the block that reaches max_output is finished."""
    total = columns.shape[1]
    keep = np.zeros(total, bool)
    kept = np.empty_like(columns)
    num_kept = 0
    for start in range(0, total, BLOCK):
        if num_kept >= max_output:
            break
        block = columns[:, start : start + BLOCK]
        position = np.arange(start, start + block.shape[1])
        if num_kept:
            alive = ~_exceeds(block, kept[:, :num_kept], threshold).any(1)
            block, position = block[:, alive], position[alive]
        chosen = _resolve(_exceeds(block, block, threshold))
        keep[position[chosen]] = True
        kept[:, num_kept : num_kept + len(chosen)] = block[:, chosen]
        num_kept += len(chosen)
    return keep


def _exceeds(a: Columns, b: Columns, threshold: np.floating) -> NDArray[np.bool_]:
    """IoU > threshold of [5, n] and [5, m] -> [n, m], in place wherever it can be."""
    a = a[:, :, None]
    inter = np.minimum(a[2], b[2])
    inter -= np.maximum(a[0], b[0])
    np.maximum(inter, 0, out=inter)
    height = np.minimum(a[3], b[3])
    height -= np.maximum(a[1], b[1])
    np.maximum(height, 0, out=height)
    inter *= height
    union = np.add(a[4], b[4], out=height)
    union -= inter
    inter /= union
    exceeds: NDArray[np.bool_] = inter > threshold
    return exceeds


def _resolve(suppresses: NDArray[np.bool_]) -> list[int]:
    """Resolve one block greedily: indices of the kept boxes, given which box would remove which."""
    rows = np.packbits(suppresses, axis=1, bitorder="little")
    removed, chosen = 0, []
    for i, row in enumerate(rows):
        if not removed >> i & 1:
            chosen.append(i)
            removed |= int.from_bytes(row.tobytes(), "little")
    return chosen
