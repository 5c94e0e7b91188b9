"""Soft-NMS, eager fallback in NumPy: a pick decays the rest of its group at once. Specification: reference.py."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmask.kernels.fallback.nms import largest_not_above
from fastmask.kernels.reference import EXP_LIMIT, EXP_TERMS, LN_2_HIGH, LN_2_LOW, LOG2_E, compute_dtype

Floats = NDArray[np.floating]
DROPPED = -1.0  # scores that take no part; those that do are at least 0


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
    """[B, N, 4], [B, N], groups [B, N], valid [B, N] -> indices and decayed scores [B, max_output], count [B].

    Indices and count are int64; indices are filled up with -1, scores with 0. ``score_threshold`` is at least 0.
    """
    dtype = compute_dtype(boxes, scores)
    indices = torch.full((len(boxes), max_output), -1, dtype=torch.int64)
    decayed = torch.zeros(len(boxes), max_output, dtype=dtype)
    count = torch.zeros(len(boxes), dtype=torch.int64)
    corners, every = (values.detach().to("cpu", dtype).numpy() for values in (boxes, scores))
    for b in range(len(boxes)):
        with np.errstate(all="ignore"):  # of NaN and inf
            taking = every[b] >= smallest_not_below(score_threshold, every.dtype)
            if valid is not None:
                taking &= valid[b].cpu().numpy()
            rows = np.flatnonzero(taking)
            group = None if groups is None else groups[b].cpu().numpy()[rows]
            picks, values = _pick(
                corners[b][rows], every[b][rows], group, iou_threshold, sigma, gaussian, score_threshold, max_output
            )
        indices[b, : len(picks)] = torch.from_numpy(rows[picks])
        decayed[b, : len(picks)] = torch.from_numpy(values)
        count[b] = len(picks)
    return indices.to(boxes.device), decayed.to(scores), count.to(boxes.device)


def smallest_not_below(value: float, dtype: Any) -> Any:
    """Smallest t of ``dtype`` not below ``value``: x >= t is x >= value for every x of ``dtype``."""
    return -largest_not_above(-value, dtype)


def _pick(
    boxes: Floats,
    scores: Floats,
    group: NDArray[np.int64] | None,
    iou_threshold: float,
    sigma: float,
    gaussian: bool,
    score_threshold: float,
    max_output: int,
) -> tuple[NDArray[np.int64], Floats]:
    """Picks among n boxes that take part, at most max_output, and their decayed scores."""
    scores = scores.copy()
    above, least = largest_not_above(iou_threshold, scores.dtype), smallest_not_below(score_threshold, scores.dtype)
    columns = np.concatenate([boxes.T, ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))[None]])
    every = np.arange(len(scores))
    members = {} if group is None else {label: np.flatnonzero(group == label) for label in np.unique(group)}
    picks: list[int] = []
    values: list[Any] = []
    while len(picks) < max_output and len(scores):
        best = int(scores.argmax())  # the first of equal ones
        if scores[best] < 0:
            break
        picks.append(best)
        values.append(scores[best])
        scores[best] = DROPPED
        rivals = every if group is None else members[group[best]]
        overlap = _overlap(columns[:, best], columns[:, rivals])
        rows = np.flatnonzero(overlap > (0 if gaussian else above))  # others, and NaN, decay by 1
        if len(rows):
            overlap, rivals = overlap[rows], rivals[rows]
            decay = _exp_of_negative(overlap * overlap / scores.dtype.type(sigma)) if gaussian else 1 - overlap
            own = scores[rivals]
            less = own * decay
            scores[rivals] = np.where((own >= 0) & (less >= least), less, DROPPED)
    return np.array(picks, np.int64), np.array(values, scores.dtype)


def _overlap(a: Floats, b: Floats) -> Floats:
    """IoU of one box [5] and others [5, n]: x1, y1, x2, y2, area."""
    width = np.maximum(np.minimum(a[2], b[2]) - np.maximum(a[0], b[0]), 0)
    height = np.maximum(np.minimum(a[3], b[3]) - np.maximum(a[1], b[1]), 0)
    inter = width * height
    overlap: Floats = inter / (a[4] + b[4] - inter)
    return overlap


def _exp_of_negative(x: Floats) -> Floats:
    """reference.exp_of_negative of each element."""
    if x.dtype == np.float64:
        return np.array([math.exp(-value) for value in x])  # NumPy's own is rounded otherwise
    f = np.float32
    near = np.minimum(x, f(EXP_LIMIT))
    n = np.floor(near * f(LOG2_E) + f(0.5))
    rest = (n * f(LN_2_HIGH) - near) + n * f(LN_2_LOW)
    total: Any = f(EXP_TERMS[0])
    for term in EXP_TERMS[1:]:
        total = total * rest + f(term)
    return np.where(x <= f(EXP_LIMIT), np.ldexp(total, -n.astype(np.int32)), f(0))
