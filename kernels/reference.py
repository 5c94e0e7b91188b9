"""Reference implementations of the ops, which specify every other path: literal, slow, float64-capable.

Pixel model: pixel (i, j) covers [i, i+1) x [j, j+1); a continuous coordinate c samples between the centers at i + 0.5
where an op says "aligned" or "continuous", and between integer grid points where it does not (torchvision's legacy).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Pixels. Float32 cannot tell neighboring pixels apart beyond it: a RoI or box that reaches further (or is NaN or inf)
# is invalid, and gives zeros. It also keeps every path's integer arithmetic far from overflow.
COORDINATE_LIMIT = 2.0**24


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype an op computes in: float64 if any input is, else float32 (half types are rounded once, on output)."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _interpolate(feature: Tensor, y: float, x: float) -> Tensor:
    """One bilinear sample of feature [C, H, W] at (y, x) -> [C]."""
    height, width = feature.shape[1:]
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    dy, dx = y - y0, x - x0
    return (
        (1 - dy) * (1 - dx) * feature[:, y0, x0]
        + (1 - dy) * dx * feature[:, y0, x1]
        + dy * (1 - dx) * feature[:, y1, x0]
        + dy * dx * feature[:, y1, x1]
    )


def is_sampled(start: Any, extent: Any, sample: Any, samples: Any, size: int) -> Any:
    """Whether one of a RoI's ``samples`` along an axis of ``size`` pixels counts: the border rule of roi_align.py."""
    place = (2 * sample + 1) * extent
    return ((-1 - start) * (2 * samples) <= place) & (place <= (size - start) * (2 * samples))


def count_samples(extent: float, bins: int, dtype: torch.dtype) -> int:
    """Samples of an adaptive bin along one axis: counted in the dtype computed in, as torchvision counts them.

    An extent of 7 pixels is 7.0000001 in float64 where float32 corners lie at fractions, and would take one more.
    """
    return max(math.ceil(torch.tensor(extent, dtype=dtype) / bins), 0)


def choose_level(box: Sequence[float], level_limits: Sequence[float]) -> int | None:
    """Pyramid level of a box (x1, y1, x2, y2): the first whose limit is above sqrt(area); None if that is NaN."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    if len(level_limits) == 1:
        return 0
    if not area >= 0:  # NaN too; torchvision's log2 gives NaN, which matches no level
        return None
    return sum(math.sqrt(area) >= limit for limit in level_limits[:-1])


def multilevel_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    scales: Sequence[float],
    level_limits: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    level_ratios: Sequence[int] | None = None,
) -> Tensor:
    """Mask R-CNN's RoIAlign (section 3) on the level that FPN's eq. 1 chooses -> [K, C, pooled_height, pooled_width].

    ``features``: one [B, C, H_l, W_l] a level; ``rois``: [K, 5] (batch index, x1, y1, x2, y2) in image pixels;
    ``level_limits``: the sqrt(area) in image pixels at which each level ends and the next begins, the last unused;
    ``sampling_ratio``: samples a bin and axis, at most 0 for adaptive ones; ``level_ratios``: each level's instead.
    Source: torchvision/csrc/ops/cpu/roi_align_kernel.cpp, torchvision/ops/poolers.py.
    """
    dtype = compute_dtype(*features, rois)
    batch, channels = features[0].shape[:2]
    pooled = []
    for image, *box in rois.double().tolist():
        out = torch.zeros(channels, pooled_height, pooled_width, dtype=dtype, device=rois.device)
        level = choose_level(box, level_limits)
        if level is not None and math.isfinite(image) and 0 <= int(image) < batch:
            offset = 0.5 if aligned else 0.0
            x1, y1, x2, y2 = (c * scales[level] - offset for c in box)
            if all(abs(c) <= COORDINATE_LIMIT for c in (x1, y1, x2, y2)):
                feature = features[level][int(image)].to(dtype)
                shape = (pooled_height, pooled_width)
                ratio = sampling_ratio if level_ratios is None else level_ratios[level]
                out = out + _align_one(feature, x1, y1, x2, y2, shape, ratio, aligned)
        pooled.append(out)
    empty = torch.zeros(0, channels, pooled_height, pooled_width, dtype=dtype, device=rois.device)
    return torch.stack(pooled).to(features[0].dtype) if pooled else empty.to(features[0].dtype)


def _align_one(
    feature: Tensor, x1: float, y1: float, x2: float, y2: float, shape: tuple[int, int], ratio: int, aligned: bool
) -> Tensor:
    pooled_height, pooled_width = shape
    width, height = x2 - x1, y2 - y1
    if not aligned:  # the legacy rule
        width, height = max(width, 1.0), max(height, 1.0)
    if 0 in feature.shape[1:]:
        return feature.new_zeros(len(feature), *shape)
    bin_h, bin_w = height / pooled_height, width / pooled_width
    grid_h = ratio if ratio > 0 else count_samples(height, pooled_height, feature.dtype)
    grid_w = ratio if ratio > 0 else count_samples(width, pooled_width, feature.dtype)
    rows = []
    for p in range(pooled_height):
        row = []
        for q in range(pooled_width):
            total = torch.zeros_like(feature[:, 0, 0])
            for i in range(grid_h):
                for j in range(grid_w):
                    y = y1 + p * bin_h + (i + 0.5) * bin_h / grid_h
                    x = x1 + q * bin_w + (j + 0.5) * bin_w / grid_w
                    in_rows = is_sampled(y1, height, p * grid_h + i, pooled_height * grid_h, feature.shape[1])
                    in_columns = is_sampled(x1, width, q * grid_w + j, pooled_width * grid_w, feature.shape[2])
                    if in_rows and in_columns:
                        total = total + _interpolate(feature, y, x)
            row.append(total / max(grid_h * grid_w, 1))
        rows.append(torch.stack(row, 1))
    return torch.stack(rows, 1)


def roi_pool(
    features: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Tensor, Tensor]:
    """Fast R-CNN's RoIPool (section 2.1) -> maxima and their flat pixel index (-1: none), [K, C, ph, pw] each.

    Corners are rounded half away from zero and both belong to the RoI; bins overlap where they share a pixel.
    The first of equal maxima wins; NaN never does. An empty bin gives 0.
    Source: torchvision/csrc/ops/cpu/roi_pool_kernel.cpp.
    """
    batch, channels, height, width = features.shape
    dtype = compute_dtype(features, rois)
    shape = (len(rois), channels, pooled_height, pooled_width)
    out = torch.zeros(shape, dtype=features.dtype, device=features.device)
    argmax = torch.full(shape, -1, dtype=torch.int64, device=features.device)
    scaled = rois[:, 1:].to(dtype) * spatial_scale
    lowest = torch.finfo(features.dtype).min
    for k, (image, box) in enumerate(zip(rois[:, 0].double().tolist(), scaled, strict=True)):
        if not (math.isfinite(image) and 0 <= int(image) < batch and bool((box.abs() <= COORDINATE_LIMIT).all())):
            continue
        x1, y1, x2, y2 = (_round(c) for c in box.double().tolist())
        bin_h = torch.tensor(max(y2 - y1 + 1, 1.0), dtype=dtype) / pooled_height
        bin_w = torch.tensor(max(x2 - x1 + 1, 1.0), dtype=dtype) / pooled_width
        for p in range(pooled_height):
            top = min(max(math.floor(p * bin_h) + y1, 0), height)
            bottom = min(max(math.ceil((p + 1) * bin_h) + y1, 0), height)
            for q in range(pooled_width):
                left = min(max(math.floor(q * bin_w) + x1, 0), width)
                right = min(max(math.ceil((q + 1) * bin_w) + x1, 0), width)
                if bottom <= top or right <= left:
                    continue
                patch = features[int(image), :, top:bottom, left:right].flatten(1)  # [C, pixels]
                patch = patch.masked_fill(patch.isnan(), -math.inf)
                best = patch.max(dim=1).values
                first = (patch == best[:, None]).int().argmax(dim=1)
                index = (top + first // (right - left)) * width + left + first % (right - left)
                out[k, :, p, q] = best.clamp(min=lowest)
                argmax[k, :, p, q] = torch.where(best > lowest, index, -1)
    return out, argmax


def _round(value: float) -> int:
    """C's round(): halves go away from zero."""
    whole = math.trunc(value)
    return whole + int(math.copysign(abs(value - whole) >= 0.5, value))


def nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    valid: Tensor | None,
    iou_threshold: float,
    max_output: int,
) -> list[int]:
    """Greedy suppression inside each group of one image: [N, 4], [N], [N], [N] -> indices of the kept boxes.

    Order: score descending (NaN first), then input index. A kept box removes the later ones of its group whose IoU,
    computed in the boxes' dtype (half types in float32), exceeds the threshold *as double*; a NaN IoU removes nothing.
    Source: torchvision/csrc/ops/cpu/nms_kernel.cpp.
    """
    boxes = boxes.to(compute_dtype(boxes))
    kept: list[int] = []
    for i in scores.sort(descending=True, stable=True).indices.tolist():
        if valid is not None and not valid[i]:
            continue
        rivals = [j for j in kept if groups is None or groups[i] == groups[j]]
        if not any(_iou(boxes[i], boxes[j]) > iou_threshold for j in rivals):
            kept.append(i)
    return kept[:max_output]


def _iou(a: Tensor, b: Tensor) -> float:
    zero = torch.zeros_like(a[0])
    width = torch.maximum(torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0]), zero)
    height = torch.maximum(torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1]), zero)
    inter = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return float(inter / union)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    valid: Tensor | None,
    iou_threshold: float,
    sigma: float,
    gaussian: bool,
    score_threshold: float,
    max_output: int,
) -> tuple[list[int], list[float]]:
    """Soft-NMS (arXiv 1704.04503, Figure 2) inside each group of one image -> indices and decayed scores, best first.

    All is computed in float64 if boxes or scores are, else in float32. The highest remaining score is taken, the lowest
    index of equal ones. It decays the others of its group by 1 - IoU where that IoU is above the threshold *as double*
    (linear), or by exp(-IoU^2 / sigma) (gaussian); a NaN IoU decays nothing. A score that is not at least
    ``score_threshold``, such as NaN, takes no part, from the beginning or from then on.
    """
    dtype = compute_dtype(boxes, scores)
    kind: Any = np.float64 if dtype == torch.float64 else np.float32
    boxes = boxes.to(dtype)
    remaining = {i: kind(score) for i, score in enumerate(scores.to(dtype).tolist()) if score >= score_threshold}
    remaining = {i: score for i, score in remaining.items() if valid is None or valid[i]}
    kept: list[int] = []
    decayed: list[float] = []
    while remaining and len(kept) < max_output:
        best = max(remaining, key=lambda i: (remaining[i], -i))
        kept.append(best)
        decayed.append(float(remaining.pop(best)))
        for i in [i for i in remaining if groups is None or groups[i] == groups[best]]:
            iou = kind(_iou(boxes[best], boxes[i]))
            with np.errstate(all="ignore"):  # inf * 0 is NaN
                if gaussian and not np.isnan(iou):
                    remaining[i] *= exp_of_negative(iou * iou / kind(sigma))
                elif not gaussian and float(iou) > iou_threshold:
                    remaining[i] *= 1 - iou
            if not remaining[i] >= score_threshold:
                del remaining[i]
    return kept, decayed


EXP_LIMIT = 87.0  # exp(-x) of larger x is 0: that of float32 would not be normal
LOG2_E = 1.4426950408889634
LN_2_HIGH, LN_2_LOW = 0.693359375, -2.1219444005469057e-4  # the first has 9 bits: n of 7 times it is exact
EXP_TERMS = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0)  # Taylor's, |x| <= ln(2) / 2


def exp_of_negative(x: Any) -> Any:
    """exp(-x) of one NumPy number x >= 0: in float32 by steps that every device rounds alike, within 1.25 ulp."""
    if x.dtype == np.float64:
        return x.dtype.type(math.exp(-x))
    f = np.float32
    if not x <= EXP_LIMIT:
        return f(0)
    n = np.floor(x * f(LOG2_E) + f(0.5))
    rest = (n * f(LN_2_HIGH) - x) + n * f(LN_2_LOW)
    total = f(EXP_TERMS[0])
    for term in EXP_TERMS[1:]:
        total = total * rest + f(term)
    return total * f(2.0 ** -float(n))


def expand_boxes(boxes: Tensor, scale: float) -> Tensor:
    """Boxes [N, 4] grown about their centers, in their own dtype and torchvision's order of operations."""
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5
    center = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    half = half * scale
    return torch.cat([center - half, center + half], dim=1)


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], continuous: bool, padding: int) -> Tensor:
    """Paste probabilities [N, M, M] of boxes [N, 4] on an image of ``size`` -> float64 [N, H, W], 0 outside the boxes.

    torchvision's mode: the mask padded with zeros, the box grown alike and truncated to whole pixels, both ends
    included, bilinear between pixel centers with the border repeated. Continuous mode: pixel centers sampled in the
    box as it is, zeros beyond the mask. A box that is not finite or reaches beyond COORDINATE_LIMIT gives zeros.
    Source: torchvision/models/detection/roi_heads.py paste_masks_in_image; detectron2/layers/mask_ops.py.
    """
    height, width = size
    out = torch.zeros(len(masks), height, width, dtype=torch.float64)
    boxes = boxes.to(compute_dtype(boxes))
    if not continuous:
        side = masks.shape[-1]
        masks = F.pad(masks, (padding,) * 4)
        boxes = expand_boxes(boxes, (side + 2 * padding) / side)
    for n, box in enumerate(boxes):
        if not bool((box.abs() <= COORDINATE_LIMIT).all()):
            continue
        x0, y0, x1, y1 = (float(c) if continuous else int(c) for c in box)
        weights_y = _paste_weights(y0, y1, masks.shape[1], height, continuous)  # [H, M]
        weights_x = _paste_weights(x0, x1, masks.shape[2], width, continuous)  # [W, M]
        out[n] = weights_y @ masks[n].double() @ weights_x.T
    return out


def _paste_weights(low: float, high: float, side: int, size: int, continuous: bool) -> Tensor:
    """Weight of each of ``side`` mask cells for each of ``size`` pixels, along one axis -> [size, side]."""
    weights = torch.zeros(size, side, dtype=torch.float64)
    length = high - low if continuous else max(high - low + 1, 1)
    for pixel in range(size):
        if continuous:
            position = (pixel + 0.5 - low) / length * side - 0.5 if length > 0 else -1.0
        elif low <= pixel <= high:
            position = min(max((pixel - low + 0.5) * side / length - 0.5, 0.0), side - 1)
        else:
            continue
        cell = math.floor(position)
        for neighbor, weight in ((cell, 1 - (position - cell)), (cell + 1, position - cell)):
            if 0 <= neighbor < side:
                weights[pixel, neighbor] += weight
    return weights


def encode_mask(mask: Tensor) -> bytes:
    """COCO's compressed RLE of one bool mask [H, W].

    Runs of 0 and 1 in column-major order, beginning with 0; from the fourth on, each is stored as its difference to
    the one before the last; 5 bits a character, lowest first, 0x20 marks that more follow, all offset by 48.
    Source: cocoapi/common/maskApi.c rleEncode, rleToString.
    """
    runs, value, length = [], 0, 0
    for pixel in mask.T.flatten().int().tolist():
        if pixel != value:
            runs.append(length)
            value, length = pixel, 0
        length += 1
    runs.append(length)
    text = []
    for i, run in enumerate(runs):
        rest = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            bits, rest = rest & 0x1F, rest >> 5
            more = rest != -1 if bits & 0x10 else rest != 0
            text.append((bits | 0x20 if more else bits) + 48)
    return bytes(text)
