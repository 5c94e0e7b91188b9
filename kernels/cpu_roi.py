"""RoIAlign and RoIPool as weighted sums and maxima over pixel rows: the plain-PyTorch path, on any device.

RoIAlign is linear in the features and separable: every output bin is a sum over (rows x columns) of bilinear weights.
The weights are written out as a sparse matrix [bins, pixels] and applied by ``embedding_bag`` to the features seen as
pixel rows [H*W, C], which for channels-last features is a view; the backward applies the transposed matrix, sorted by
pixel, so that its order of summation is fixed. Specification: reference.py.
Memory: at most TAP_BUDGET weights at a time, and an NHWC copy of one image's level where it is not channels-last.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmask.kernels.reference import COORDINATE_LIMIT, compute_dtype

TAP_BUDGET = 2**20  # weights in flight: 4 MB, so that building them stays in the cache
MAX = 2  # torch.embedding_bag's number for mode="max"; F.embedding_bag would drop the argmaxima
ROWS_PER_BAG = 4096  # output rows computed at once: they are still in the cache when they are copied to their place


def multilevel_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    scales: Sequence[float],
    level_limits: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Shapes as in reference.py -> [K, C, pooled_height, pooled_width], channels-last."""
    channels = features[0].shape[1]
    num_rois, num_bins = len(rois), pooled_height * pooled_width
    out = torch.empty(num_rois, num_bins, channels, dtype=features[0].dtype, device=rois.device)
    dtype = compute_dtype(*features, rois)
    placed = torch.zeros(num_rois, dtype=torch.bool, device=rois.device)
    for level, image, members, corners in _groups(features, rois.to(dtype), scales, level_limits, aligned):
        placed[members] = True
        feature = features[level][image]
        rows = pixel_rows(feature, dtype)
        for part, index, weight in _taps(
            corners, feature.shape[1:], pooled_height, pooled_width, sampling_ratio, aligned
        ):
            step = max(ROWS_PER_BAG // num_bins, 1)
            for piece in range(0, len(part), step):
                chunk = slice(piece, piece + step)
                bags = F.embedding_bag(
                    index[chunk].flatten(0, 1), rows, per_sample_weights=weight[chunk].flatten(0, 1), mode="sum"
                )
                bags = bags.view(-1, num_bins, channels)
                empty = (weight[chunk] == 0).all(2)  # also keeps 0 * NaN of a pixel that was never sampled out
                if bool(empty.any()):
                    bags[empty] = 0
                out.index_copy_(0, members[part[chunk]], bags.to(out.dtype))
    out[~placed] = 0
    return out.view(num_rois, pooled_height, pooled_width, channels).permute(0, 3, 1, 2)


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
) -> list[Tensor]:
    """Gradient [K, C, ph, pw] -> one [B, C, H_l, W_l] a level, channels-last, dtype of ``grad``; deterministic."""
    _, channels, pooled_height, pooled_width = grad.shape
    dtype = compute_dtype(grad, rois)
    shapes = list(zip(heights, widths, strict=True))
    outs = [torch.zeros(batch, h * w, channels, dtype=dtype, device=grad.device) for h, w in shapes]
    views = [out.view(batch, h, w, channels).permute(0, 3, 1, 2) for out, (h, w) in zip(outs, shapes, strict=True)]
    grad_bins = grad.permute(0, 2, 3, 1).reshape(len(rois), pooled_height * pooled_width, channels)
    for level, image, members, corners in _groups(views, rois.to(dtype), scales, level_limits, aligned):
        for part, index, weight in _taps(corners, shapes[level], pooled_height, pooled_width, sampling_ratio, aligned):
            source = grad_bins[members[part]].to(dtype).flatten(0, 1)  # [bins, C]
            used = weight.flatten().nonzero().squeeze(1)
            pixel, order = index.flatten()[used].sort(stable=True)
            taken = used[order]
            touched, counts = torch.unique_consecutive(pixel, return_counts=True)
            sums = F.embedding_bag(
                taken // weight.shape[2],
                source,
                counts.cumsum(0) - counts,
                per_sample_weights=weight.flatten()[taken],
                mode="sum",
            )
            outs[level][image].index_add_(0, touched, sums)
    return [view.to(grad.dtype) for view in views]


def pixel_rows(feature: Tensor, dtype: torch.dtype) -> Tensor:
    """One image's level [C, H, W], any strides -> contiguous rows of pixels [H*W, C]; a view of channels-last."""
    channels, height, width = feature.shape
    feature = feature.to(dtype)
    rows = feature.permute(1, 2, 0)
    if rows.is_contiguous() or not feature.is_contiguous():
        return rows.reshape(height * width, channels).contiguous()
    out = torch.empty(height * width, channels, dtype=dtype, device=feature.device)
    planes = feature.view(channels, height * width)
    for start in range(0, height * width, 1024):  # blocks that fit the cache: half the time of one .contiguous()
        out[start : start + 1024].copy_(planes[:, start : start + 1024].t())
    return out


def _groups(
    features: Sequence[Tensor], rois: Tensor, scales: Sequence[float], level_limits: Sequence[float], aligned: bool
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Valid RoIs by level and image: (level, image, which RoIs, their corners [k, 4] on the feature map)."""
    batch = features[0].shape[0]
    boxes = rois[:, 1:]
    level = torch.zeros(len(rois), dtype=torch.int64, device=rois.device)
    valid = (rois[:, 0] > -1) & (rois[:, 0] < batch)  # truncation sends (-1, 0) to image 0, as torchvision's cast does
    if len(level_limits) > 1:
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        valid &= area >= 0
        for limit in level_limits[:-1]:
            level += area.sqrt() >= limit
    corners = boxes * rois.new_tensor(scales)[level, None] - (0.5 if aligned else 0.0)
    valid &= (corners.abs() <= COORDINATE_LIMIT).all(1)
    key = level * batch + torch.where(valid, rois[:, 0], 0).to(torch.int64)
    chosen = valid.nonzero().squeeze(1)
    keys, order = key[chosen].sort(stable=True)
    present, counts = torch.unique_consecutive(keys, return_counts=True)
    for k, members in zip(present.tolist(), chosen[order].split(counts.tolist()), strict=True):
        if 0 not in features[k // batch].shape:
            yield k // batch, k % batch, members, corners[members]


def _taps(
    corners: Tensor, size: Sequence[int], pooled_height: int, pooled_width: int, sampling_ratio: int, aligned: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The sparse rows of the RoIs [k, 4] on a map of (height, width).

    Yields (which RoIs, pixel index [n, bins, taps], weight [n, bins, taps]) in pieces of at most TAP_BUDGET weights.
    A tap of weight 0 only fills a row up; it repeats a pixel of the same bin.
    """
    height, width = size
    extent = corners[:, 2:] - corners[:, :2]  # (width, height)
    if not aligned:
        extent = extent.clamp(min=1)
    bins = extent / extent.new_tensor([pooled_width, pooled_height])
    grid = torch.full_like(bins, sampling_ratio) if sampling_ratio > 0 else bins.ceil().clamp(min=0)
    for part in _alike(grid, size, sampling_ratio):
        x_index, x_weight = _axis(corners[part, 0], bins[part, 0], grid[part, 0], pooled_width, width, sampling_ratio)
        y_index, y_weight = _axis(corners[part, 1], bins[part, 1], grid[part, 1], pooled_height, height, sampling_ratio)
        per_roi = y_index[0].numel() * x_index[0].numel()
        step = max(TAP_BUDGET // max(per_roi, 1), 1)
        for start in range(0, len(part), step):
            piece = slice(start, start + step)
            index = (y_index[piece] * width)[:, :, None, :, None] + x_index[piece, None, :, None, :]
            weight = y_weight[piece, :, None, :, None] * x_weight[piece, None, :, None, :]
            yield part[piece], index.flatten(3).flatten(1, 2), weight.flatten(3).flatten(1, 2)


def _alike(grid: Tensor, size: Sequence[int], sampling_ratio: int) -> Iterator[Tensor]:
    """Split RoIs so that adaptive grids of one part differ less than twofold per axis: little of a row is filler."""
    if sampling_ratio > 0:
        yield torch.arange(len(grid), device=grid.device)
        return
    octave = grid.minimum(grid.new_tensor([size[1], size[0]])).clamp(min=1).log2().ceil().to(torch.int64)  # [k, 2]
    key = octave[:, 0] * 64 + octave[:, 1]
    for value in key.unique().tolist():
        yield (key == value).nonzero().squeeze(1)


def _axis(
    start: Tensor, bins: Tensor, grid: Tensor, num_bins: int, size: int, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Taps along one axis: RoI starts, bin lengths and samples a bin, [k] each -> index, weight [k, num_bins, taps]."""
    edge = (start[:, None] + torch.arange(num_bins, device=start.device) * bins[:, None])[
        :, :, None
    ]  # [k, num_bins, 1]
    grid, bins = grid[:, None, None], bins[:, None, None]
    if sampling_ratio > 0:
        sample = torch.arange(sampling_ratio, device=start.device)
    else:  # of a huge grid only the samples that can fall on the map: their step is over half a pixel, or there is one
        most = max(min(int(grid.max()), 2 * size + 6), 1)
        first = ((-1 - edge) * grid / bins - 2).nan_to_num(0).floor().clamp(min=0).minimum((grid - most).clamp(min=0))
        sample = first + torch.arange(most, device=start.device)
    position = edge + (sample + 0.5) * bins / grid  # [k, num_bins, samples]
    inside = (position >= -1) & (position <= size) & (sample < grid)
    position = torch.where(inside, position, 0).clamp(0, size - 1)
    low = position.to(torch.int64)
    high = (low + 1).clamp(max=size - 1)
    share = position - low
    near, far = torch.where(inside, (1 - share) / grid, 0), torch.where(inside, share / grid, 0)
    if sampling_ratio > 0:
        index, weight = torch.cat([low, high], 2), torch.cat([near, far], 2)
        used = inside.repeat(1, 1, 2)
        return torch.where(used, index, index.gather(2, used.int().argmax(2, keepdim=True))), weight
    # adaptive samples are at most a pixel apart: a bin's taps are neighbours, and samples that share one are added up
    base = torch.where(inside, low, size).amin(2, keepdim=True)
    length = min(low.shape[2] + 1, size)
    weight = near.new_zeros(*near.shape[:2], length)
    for tap, value in ((low, near), (high, far)):
        weight.scatter_add_(2, (tap - base).clamp(0, length - 1), value)
    last = torch.where(inside, high, 0).amax(2, keepdim=True)
    index = torch.minimum(base + torch.arange(length, device=start.device), last)
    return index, weight


def roi_pool(
    features: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Tensor, Tensor]:
    """Maxima and argmaxima as in reference.py, [K, C, ph, pw] each, channels-last."""
    _, channels, height, width = features.shape
    num_rois, num_bins = len(rois), pooled_height * pooled_width
    out = torch.zeros(num_rois, num_bins, channels, dtype=features.dtype, device=features.device)
    argmax = torch.full(out.shape, -1, dtype=torch.int64, device=features.device)
    dtype = compute_dtype(features, rois)
    lowest = torch.finfo(features.dtype).min
    for _, image, members, corners in _groups([features], rois.to(dtype), [spatial_scale], [torch.inf], aligned=False):
        rows = pixel_rows(features[image], dtype)
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
            best, _, _, where = torch.embedding_bag(rows, row * width + column, ends - count, mode=MAX)
            found = (count > 0)[:, None] & (best > lowest)
            best = torch.where((count > 0)[:, None], best.clamp(min=lowest), 0)
            out[members[part]] = best.view(-1, num_bins, channels).to(out.dtype)
            argmax[members[part]] = torch.where(found, where, -1).view(-1, num_bins, channels)
    shape = (num_rois, pooled_height, pooled_width, channels)
    return out.view(shape).permute(0, 3, 1, 2), argmax.view(shape).permute(0, 3, 1, 2)


def _pool_bins(low: Tensor, high: Tensor, num_bins: int, size: int) -> tuple[Tensor, Tensor]:
    """First and one-past-last pixel of each bin along one axis, [k, num_bins] each."""
    length = ((high - low + 1).clamp(min=1) / num_bins)[:, None]
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


def roi_pool_backward(grad: Tensor, rois: Tensor, argmax: Tensor, batch: int, height: int, width: int) -> Tensor:
    """Gradient and argmaxima [K, C, ph, pw] -> [B, C, H, W], channels-last, summed in a fixed order on the CPU."""
    channels = grad.shape[1]
    dtype = compute_dtype(grad)
    out = torch.zeros(batch * height * width, channels, dtype=dtype, device=grad.device)
    image = torch.where(rois[:, 0] > -1, rois[:, 0], 0).clamp(max=max(batch - 1, 0)).to(torch.int64)
    index = argmax.permute(0, 2, 3, 1).flatten(1, 2)  # [K, bins, C]
    value = torch.where(index >= 0, grad.permute(0, 2, 3, 1).flatten(1, 2).to(dtype), 0)
    index = index.clamp(min=0) + (image * (height * width))[:, None, None]
    if index.numel() and out.numel():
        out.scatter_add_(0, index.flatten(0, 1), value.flatten(0, 1))
    return out.to(grad.dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)
