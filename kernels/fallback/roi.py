"""RoIAlign and RoIPool, eager fallback: weighted sums and maxima over pixel rows.

RoIAlign is linear in the features and separable: every output bin is a sum over (rows x columns) of bilinear weights.
The weights are written out as a sparse matrix [bins, pixels] and applied by ``embedding_bag`` to the features seen as
pixel rows [H*W, C], which for channels-last features is a view; the backward applies the transposed matrix, sorted by
pixel, so that its order of summation is fixed. Specification: reference.py.
Memory: at most TAP_BUDGET weights at a time, and an NHWC copy of one image's level where it is not channels-last.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmask.kernels.reference import COORDINATE_LIMIT, compute_dtype, is_sampled

SMALL = 2**24  # elements of a level that may be copied whole
TAP_BUDGET = 2**20  # weights in flight: 4 MB, so that building them stays in the cache
MAX = 2  # torch.embedding_bag's number for mode="max"; F.embedding_bag would drop the argmaxima
ROWS_PER_BAG = 4096  # output rows computed at once: they are still cached when they are copied to their place


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
    """Shapes as in reference.py -> [K, C, pooled_height, pooled_width], channels-last."""
    ratios, pooled = level_ratios or [sampling_ratio] * len(features), (pooled_height, pooled_width)
    channels = features[0].shape[1]
    num_rois, num_bins = len(rois), pooled_height * pooled_width
    out = empty_channels_last(features[0], num_rois, channels, pooled_height, pooled_width)
    bins = out.permute(0, 2, 3, 1).view(num_rois, num_bins, channels)
    dtype = compute_dtype(*features, rois)
    placed = torch.zeros(num_rois, dtype=torch.bool, device=rois.device)
    together = [_rows_at_once(feature) for feature in features]
    for group in _groups(features, together, rois.to(dtype), scales, level_limits, aligned):
        placed[group.members] = True
        feature = features[group.level]
        rows = pixel_rows(feature[group.images], dtype)
        for part, index, weight in _taps(group, feature.shape, dtype, *pooled, ratios[group.level], aligned):
            step = max(ROWS_PER_BAG // num_bins, 1)
            for piece in range(0, len(part), step):
                chunk = slice(piece, piece + step)
                bags = F.embedding_bag(
                    index[chunk].flatten(0, 1), rows, per_sample_weights=weight[chunk].flatten(0, 1), mode="sum"
                )
                bags = bags.view(-1, num_bins, channels)
                empty = (weight[chunk] == 0).all(2)  # 0 * NaN of a pixel that was never sampled stays out
                if bool(empty.any()):
                    bags[empty] = 0
                bins.index_copy_(0, group.members[part[chunk]], bags.to(out.dtype))
    bins[~placed] = 0
    return out


def empty_channels_last(like: Tensor, num: int, channels: int, height: int, width: int) -> Tensor:
    """An uninitialized [num, channels, height, width], channels-last whatever its sizes, and not a view."""
    strides = (height * width * channels, 1, width * channels, channels)
    return like.new_empty_strided((num, channels, height, width), strides)


def multilevel_roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    batch: int,
    heights: Sequence[int],
    widths: Sequence[int],
    scales: Sequence[float],
    level_limits: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    level_ratios: Sequence[int] | None = None,
) -> list[Tensor]:
    """Gradient [K, C, ph, pw] -> one [B, C, H_l, W_l] a level, channels-last, dtype of ``grad``; deterministic."""
    ratios = level_ratios or [sampling_ratio] * len(heights)
    channels, pooled = grad.shape[1], (grad.shape[2], grad.shape[3])
    dtype = compute_dtype(grad, rois)
    sums = [
        empty_channels_last(grad.new_empty(0, dtype=dtype), batch, channels, height, width).zero_()
        for height, width in zip(heights, widths, strict=True)
    ]
    grad_bins = grad.permute(0, 2, 3, 1).reshape(len(rois), pooled[0] * pooled[1], channels)
    for group in _groups(sums, [True] * len(sums), rois.to(dtype), scales, level_limits, aligned):
        level = sums[group.level]
        rows = level.permute(0, 2, 3, 1).view(-1, channels)
        for part, index, weight in _taps(group, level.shape, dtype, *pooled, ratios[group.level], aligned):
            source = grad_bins[group.members[part]].to(dtype).flatten(0, 1)  # [bins, C]
            used = weight.flatten().nonzero().squeeze(1)
            pixel, order = index.flatten()[used].sort(stable=True)
            taken = used[order]
            touched, counts = torch.unique_consecutive(pixel, return_counts=True)
            pixel_sums = F.embedding_bag(
                taken // weight.shape[2],
                source,
                counts.cumsum(0) - counts,
                per_sample_weights=weight.flatten()[taken],
                mode="sum",
            )
            rows.index_add_(0, touched, pixel_sums)
    return [level.to(grad.dtype) for level in sums]


def pixel_rows(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Maps [B, C, H, W], any strides -> contiguous rows of pixels [B*H*W, C]; a view of channels-last."""
    batch, channels, height, width = features.shape
    features = features.to(dtype)
    rows = features.permute(0, 2, 3, 1)
    if rows.is_contiguous() or not features.is_contiguous() or batch != 1:
        return rows.reshape(-1, channels).contiguous()
    out = torch.empty(height * width, channels, dtype=dtype, device=features.device)
    planes = features.view(channels, height * width)
    for start in range(0, height * width, 1024):  # blocks that fit the cache: half the time of one .contiguous()
        out[start : start + 1024].copy_(planes[:, start : start + 1024].t())
    return out


def _rows_at_once(features: Tensor) -> bool:
    """Whether all images of a level become rows together, where that is free or small; else one by one."""
    return features.permute(0, 2, 3, 1).is_contiguous() or features.numel() <= SMALL


def exact_dtype(device: torch.device) -> torch.dtype:
    """Dtype of the border rule: float64, except on Apple's GPUs, which lack it."""
    return torch.float32 if device.type == "mps" else torch.float64


class Group(NamedTuple):
    """Valid RoIs that are computed together."""

    level: int
    images: slice  # of the batch, whose maps are the rows
    members: Tensor  # [k] which RoIs
    corners: Tensor  # [k, 4] (x1, y1, x2, y2) on the feature map, exact_dtype
    first_row: Tensor  # [k] where each one's image begins among the rows


def _groups(
    features: Sequence[Tensor],
    together: Sequence[bool],
    rois: Tensor,
    scales: Sequence[float],
    level_limits: Sequence[float],
    aligned: bool,
) -> Iterator[Group]:
    """The valid RoIs by level and, on the levels that are not taken ``together``, by image."""
    batch = features[0].shape[0]
    boxes = rois[:, 1:]
    level = torch.zeros(len(rois), dtype=torch.int64, device=rois.device)
    valid = (rois[:, 0] > -1) & (rois[:, 0] < batch)  # truncation sends (-1, 0) to image 0, as torchvision's cast does
    if len(level_limits) > 1:
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        valid &= area >= 0
        for limit in level_limits[:-1]:
            level += area.sqrt() >= limit
    exact = exact_dtype(rois.device)
    corners = boxes.to(exact) * rois.new_tensor(scales).to(exact)[level, None] - (0.5 if aligned else 0.0)
    valid &= (corners.abs() <= COORDINATE_LIMIT).all(1)
    image = torch.where(valid, rois[:, 0], 0).to(torch.int64)
    apart = torch.tensor([not whole for whole in together], device=rois.device)[level]
    chosen = valid.nonzero().squeeze(1)
    keys, order = (level * batch + image * apart)[chosen].sort(stable=True)
    present, counts = torch.unique_consecutive(keys, return_counts=True)
    for key, members in zip(present.tolist(), chosen[order].split(counts.tolist()), strict=True):
        k, first = divmod(key, batch)
        if 0 not in features[k].shape:
            images = slice(0, batch) if together[k] else slice(first, first + 1)
            pixels = features[k].shape[2] * features[k].shape[3]
            yield Group(k, images, members, corners[members], (image[members] - images.start) * pixels)


def _taps(
    group: Group,
    shape: Sequence[int],
    dtype: torch.dtype,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The sparse matrix of a group on maps of shape [B, C, H, W].

    Yields (which of the group, row index [n, bins, taps], weight [n, bins, taps] of ``dtype``), about TAP_BUDGET each.
    """
    height, width = shape[2:]
    corners = group.corners
    extent = corners[:, 2:] - corners[:, :2]  # (width, height)
    if not aligned:
        extent = extent.clamp(min=1)
    grid = torch.full_like(extent, sampling_ratio)
    if sampling_ratio <= 0:  # as reference.count_samples
        rounded = extent.to(dtype)
        grid = (rounded / rounded.new_tensor([pooled_width, pooled_height])).ceil().clamp(min=0).to(extent.dtype)
    for part in _split_by_grid(grid, (height, width), sampling_ratio):
        (x_index, x_weight), (y_index, y_weight) = (
            _axis(corners[part, axis], extent[part, axis], grid[part, axis], num_bins, size, sampling_ratio, dtype)
            for axis, (num_bins, size) in enumerate(((pooled_width, width), (pooled_height, height)))
        )
        y_row = y_index * width + group.first_row[part, None, None]
        per_roi = y_row[0].numel() * x_index[0].numel()
        step = max(TAP_BUDGET // max(per_roi, 1), 1)
        for start in range(0, len(part), step):
            piece = slice(start, start + step)
            index = y_row[piece, :, None, :, None] + x_index[piece, None, :, None, :]
            weight = y_weight[piece, :, None, :, None] * x_weight[piece, None, :, None, :]
            yield part[piece], index.flatten(3).flatten(1, 2), weight.flatten(3).flatten(1, 2)


def _split_by_grid(grid: Tensor, size: Sequence[int], sampling_ratio: int) -> Iterator[Tensor]:
    """Split RoIs so that adaptive grids of one part differ less than twofold per axis: little of a row is filler."""
    if sampling_ratio > 0:
        yield torch.arange(len(grid), device=grid.device)
        return
    octave = grid.minimum(grid.new_tensor([size[1], size[0]])).clamp(min=1).log2().ceil().to(torch.int64)  # [k, 2]
    key = octave[:, 0] * 64 + octave[:, 1]
    for value in key.unique().tolist():
        yield (key == value).nonzero().squeeze(1)


def _axis(
    start: Tensor, extent: Tensor, grid: Tensor, num_bins: int, size: int, sampling_ratio: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Taps along one axis: RoI starts, lengths and samples a bin, [k] each -> index, weight [k, num_bins, taps]."""
    count = partial(torch.arange, dtype=dtype, device=start.device)
    exact, grid = (start[:, None, None], extent[:, None, None]), grid.to(dtype)[:, None, None]
    bins, number = exact[1].to(dtype) / num_bins, count(num_bins)[:, None]
    edge = exact[0].to(dtype) + number * bins  # [k, num_bins, 1]
    if sampling_ratio > 0:
        sample = count(sampling_ratio)
    else:  # of a huge grid only the samples that can fall on the map: their step is over half a pixel, or there is one
        most = max(min(int(grid.max()), 2 * size + 6), 1)
        first = ((-1 - edge) * grid / bins - 2).nan_to_num(0).floor().clamp(min=0).minimum((grid - most).clamp(min=0))
        sample = first + count(most)
    position = edge + (sample + 0.5) * bins / grid  # [k, num_bins, samples]
    whole = grid.to(start.dtype)  # numbers of samples, beyond what float32 counts
    inside = is_sampled(*exact, number.to(start.dtype) * whole + sample, num_bins * whole, size) & (sample < grid)
    position = torch.where(inside, position, 0).clamp(0, size - 1)
    low = position.to(torch.int64)
    high = (low + 1).clamp(max=size - 1)
    share = position - low
    near, far = torch.where(inside, (1 - share) / grid, 0), torch.where(inside, share / grid, 0)
    if sampling_ratio > 0:
        return _fill_unused(torch.cat([low, high], 2), torch.cat([near, far], 2), inside.repeat(1, 1, 2))
    # adaptive samples are at most a pixel apart: a bin's taps are neighbors, and samples that share one are added up
    base = torch.where(inside, low, size).amin(2, keepdim=True)
    length = min(low.shape[2] + 1, size)
    weight = near.new_zeros(*near.shape[:2], length)
    for tap, value in ((low, near), (high, far)):
        weight.scatter_add_(2, (tap - base).clamp(0, length - 1), value)
    last = torch.where(inside, high, 0).amax(2, keepdim=True)
    index = base + torch.arange(length, device=start.device)
    return _fill_unused(index.clamp(max=size - 1), weight, index <= last)


def _fill_unused(index: Tensor, weight: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Taps [k, num_bins, taps] whose unused ones repeat their bin's heaviest and share its weight.

    With weight 0 instead, a pixel that is inf would make its whole bin NaN, which torchvision's is not.
    """
    if bool(used.all()):
        return index, weight
    heaviest = weight.argmax(2, keepdim=True)
    share = weight.gather(2, heaviest) / (1 + (~used).sum(2, keepdim=True))
    shared = ~used | (torch.arange(index.shape[2], device=index.device) == heaviest)
    return torch.where(used, index, index.gather(2, heaviest)), torch.where(shared, share, weight)


def roi_pool(
    features: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Tensor, Tensor]:
    """Maxima and argmaxima as in reference.py, [K, C, ph, pw] each, channels-last."""
    _, channels, height, width = features.shape
    num_rois, num_bins = len(rois), pooled_height * pooled_width
    out = empty_channels_last(features, num_rois, channels, pooled_height, pooled_width).zero_()
    argmax = torch.empty_like(out, dtype=torch.int64).fill_(-1)
    bins, bins_argmax = (t.permute(0, 2, 3, 1).view(num_rois, num_bins, channels) for t in (out, argmax))
    dtype = compute_dtype(features, rois)
    lowest = torch.finfo(features.dtype).min
    together = [_rows_at_once(features)]
    for group in _groups([features], together, rois.to(dtype), [spatial_scale], [torch.inf], aligned=False):
        corners, members, first_row = group.corners.to(dtype), group.members, group.first_row
        rows = pixel_rows(features[group.images], dtype)
        rows = rows.masked_fill(rows.isnan(), -torch.inf)
        rounded = corners.trunc() + corners.frac().abs().ge(0.5) * corners.sign()
        left, right = _pool_bins(rounded[:, 0], rounded[:, 2], pooled_width, width)
        top, bottom = _pool_bins(rounded[:, 1], rounded[:, 3], pooled_height, height)
        counts = (bottom - top)[:, :, None] * (right - left)[:, None, :]  # [k, ph, pw]
        for part in _within_budget(counts.flatten(1).sum(1)):
            count = counts[part].flatten()
            ends = count.cumsum(0)
            bag = torch.repeat_interleave(count)
            rank = torch.arange(len(bag), device=bag.device) - (ends - count)[bag]
            across = (right - left)[part, None, :].expand(-1, pooled_height, -1).flatten()[bag]
            row = top[part, :, None].expand(-1, -1, pooled_width).flatten()[bag] + rank // across
            column = left[part, None, :].expand(-1, pooled_height, -1).flatten()[bag] + rank % across
            origin = first_row[part].repeat_interleave(num_bins)  # [bins]
            pixel = row * width + column + origin[bag]
            best, _, _, where = torch.embedding_bag(rows, pixel, ends - count, mode=MAX)
            found = (count > 0)[:, None] & (best > lowest)
            best = torch.where((count > 0)[:, None], best.clamp(min=lowest), 0)
            bins[members[part]] = best.view(-1, num_bins, channels).to(out.dtype)
            bins_argmax[members[part]] = torch.where(found, where - origin[:, None], -1).view(-1, num_bins, channels)
    return out, argmax


def _pool_bins(low: Tensor, high: Tensor, num_bins: int, size: int) -> tuple[Tensor, Tensor]:
    """First and one-past-last pixel of each bin along one axis, [k, num_bins] each."""
    sides = (high - low + 1).clamp(min=1)
    length = (sides / torch.full_like(sides, num_bins))[:, None]  # by a number, CUDA multiplies by its inverse
    bins = torch.arange(num_bins, device=low.device)
    first = (bins * length).floor() + low[:, None]
    past = ((bins + 1) * length).ceil() + low[:, None]
    first, past = first.clamp(0, size).to(torch.int64), past.clamp(0, size).to(torch.int64)
    return first, past.maximum(first)


def _within_budget(sizes: Tensor) -> Iterator[Tensor]:
    """Split [k] sizes into runs of about TAP_BUDGET."""
    piece = sizes.cumsum(0) // TAP_BUDGET
    _, counts = torch.unique_consecutive(piece, return_counts=True)
    yield from torch.arange(len(sizes), device=sizes.device).split(counts.tolist())


def roi_pool_backward(
    grad: Tensor, rois: Tensor, argmax: Tensor, spatial_scale: float, batch: int, height: int, width: int
) -> Tensor:
    """Gradient and argmaxima [K, C, ph, pw] -> [B, C, H, W], channels-last, summed in a fixed order on the CPU.

    ``spatial_scale`` is what the Triton kernel finds the RoIs of a pixel by; the argmaxima are enough here.
    """
    channels = grad.shape[1]
    dtype = compute_dtype(grad)
    sums = empty_channels_last(grad.new_empty(0, dtype=dtype), batch, channels, height, width).zero_()
    image = torch.where(rois[:, 0] > -1, rois[:, 0], 0).clamp(max=max(batch - 1, 0)).to(torch.int64)
    index = argmax.permute(0, 2, 3, 1).flatten(1, 2)  # [K, bins, C]
    value = torch.where(index >= 0, grad.permute(0, 2, 3, 1).flatten(1, 2).to(dtype), 0)
    index = index.clamp(min=0) + (image * (height * width))[:, None, None]
    if index.numel() and sums.numel():
        rows = sums.permute(0, 2, 3, 1).view(-1, channels)
        rows.scatter_add_(0, index.flatten(0, 1), value.flatten(0, 1))
    return sums.to(grad.dtype)
