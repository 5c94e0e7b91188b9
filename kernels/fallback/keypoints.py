"""Decoding of keypoint heatmaps, eager fallback. Specification: reference_layers.decode_keypoints.

The maximum is searched for only where it can be. Between four pixels (a cell) the resized heatmap is a bicubic
polynomial, and no sample of it exceeds its largest Bernstein coefficient: a polynomial lies in the hull of these. So
cells that are bounded below one sample that is known hold no maximum; the samples of the few others are computed as
PyTorch's bicubic interpolation does.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmask.kernels.reference import compute_dtype

MOST_VALUES = 2**18  # that are computed at once: a megabyte, which stays in a cache
SLACK = 64  # roundings, in units of the last place of the largest pixel, between a bound and a sample
NOWHERE = torch.iinfo(torch.int64).max


class Axis(NamedTuple):
    """How the samples of M heatmaps lie along one axis of n pixels; cell c is between pixels c - 1 and c."""

    samples: Tensor  # [M] whole numbers
    scale: Tensor  # [M] pixels per sample
    first: Tensor  # [M, n + 2] of the cell's samples; the next one's first ends them


def decode_keypoints(heatmaps: Tensor, boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Heatmaps [N, K, h, w] and boxes [N, 4] -> keypoints [N, K, 3] (x, y, 1) and their values [N, K], in float32.

    In float64 where an input is. Boxes that are not finite, or exceed (height, width) when rounded up, give zeros.
    """
    number, points, rows, columns = heatmaps.shape
    dtype = compute_dtype(heatmaps, boxes)
    boxes = boxes.to(dtype)
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)  # [N, 2] (width, height)
    whole = sides.ceil()
    known = boxes.sum(1).isfinite() & (whole[:, 0] <= width) & (whole[:, 1] <= height)
    whole = whole.where(known[:, None], 1)
    maps = heatmaps.to(dtype).flatten(0, 1)
    axes = [lay_samples(pixels, whole[:, axis], points) for pixels, axis in ((rows, 1), (columns, 0))]
    place, value = maps.new_zeros(len(maps), 2), maps.new_zeros(len(maps))
    step = max(MOST_VALUES // ((rows + 4) * (columns + 4)), 1)
    for start in range(0, len(maps), step):
        part = slice(start, start + step)
        place[part], value[part] = search(maps[part], *(Axis(*(values[part] for values in axis)) for axis in axes))
    xy = (place + 0.5).view(number, points, 2) * (sides / whole)[:, None] + boxes[:, None, :2]
    keypoints = torch.cat((xy, torch.ones_like(xy[..., :1])), 2)
    return keypoints.masked_fill(~known[:, None, None], 0), value.view(number, points).masked_fill(~known[:, None], 0)


def lay_samples(pixels: int, samples: Tensor, points: int) -> Axis:
    """So many pixels resized to whole numbers of samples [N], for K heatmaps each -> M = N * K heatmaps' axis."""
    scale = (pixels / samples)[:, None]
    cell = torch.arange(-1, pixels + 1, dtype=scale.dtype, device=scale.device)
    guess = ((cell + 0.5) / scale - 0.5).ceil() - 1  # rounded: the first is one of three
    first = guess + sum((locate(guess + i, scale).floor() < cell).to(scale.dtype) for i in (0, 1))
    first[:, -1] = samples  # to the end: nothing lies beyond
    first = first.clamp(min=0).minimum(samples[:, None])
    return Axis(*(values.repeat_interleave(points, 0) for values in (samples, scale[:, 0], first)))


def search(maps: Tensor, rows: Axis, columns: Axis) -> tuple[Tensor, Tensor]:
    """Heatmaps [M, h, w] and their axes -> places (x, y) [M, 2] of the largest samples, in samples, and these [M]."""
    padded = F.pad(maps[:, None], (2, 2, 2, 2), mode="replicate")[:, 0]  # the taps of all cells
    slack = SLACK * torch.finfo(maps.dtype).eps * maps.abs().amax((1, 2))
    least = sample_near_maximum(maps, padded, rows, columns) - slack
    sampled = [axis.first[:, 1:] > axis.first[:, :-1] for axis in (rows, columns)]
    above = ~(bound_cells(padded) < least[:, None, None])  # NaN stays
    cells = (above & sampled[0][:, :, None] & sampled[1][:, None]).nonzero()
    best = maps.new_full((len(maps),), -torch.inf)
    index = torch.full((len(maps),), NOWHERE, device=maps.device)
    most = [count_samples(axis, cells, i) for i, axis in ((1, rows), (2, columns))]
    parts = cells.split(max(MOST_VALUES // (most[0] * most[1]), 1))
    found = [sample_cells(padded, part, rows, columns, most) for part in parts]
    value, place = (torch.cat(values) for values in zip(*found, strict=True))
    own = cells[:, 0]
    best = best.scatter_reduce(0, own, value, "amax")
    first = (value == best[own]) | (value.isnan() & best[own].isnan())
    index = index.scatter_reduce(0, own[first], place[first], "amin")
    across = columns.samples.to(torch.int64)
    return torch.stack((index % across, index // across), 1).to(maps.dtype), best


def count_samples(axis: Axis, cells: Tensor, column: int) -> int:
    """The most samples along an axis in one of the cells [C, 3]."""
    own, cell = cells[:, 0], cells[:, column]
    return int((axis.first[own, cell + 1] - axis.first[own, cell]).max()) if len(cells) else 1


def sample_near_maximum(maps: Tensor, padded: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """The sample nearest to each heatmap's largest pixel: the maximum is at least as large -> [M]."""
    pixel = maps.flatten(1).argmax(1)
    cells, weights = [torch.arange(len(maps), device=maps.device)], []
    for axis, node in ((rows, pixel // maps.shape[2]), (columns, pixel % maps.shape[2])):
        place = locate(((node + 0.5) / axis.scale).floor().minimum(axis.samples - 1), axis.scale)
        cells.append(place.floor().to(torch.int64) + 1)
        weights.append(weigh(place - place.floor()))
    across = combine(take_taps(padded, torch.stack(cells, 1)).unbind(2), [weight[:, None] for weight in weights[1]])
    return combine(across.unbind(1), weights[0])


def sample_cells(padded: Tensor, cells: Tensor, rows: Axis, columns: Axis, most: list[int]) -> tuple[Tensor, Tensor]:
    """Cells [C, 3] (heatmap, y, x) -> the largest of each one's samples, and the first's index [C].

    ``most``: samples along each axis, at least.
    """
    own = cells[:, 0]
    indices, inside, weights = [], [], []
    for i, axis in ((1, rows), (2, columns)):
        first, end = axis.first[own, cells[:, i]], axis.first[own, cells[:, i] + 1]
        index = first[:, None] + torch.arange(most[i - 1], device=cells.device)  # [C, S]
        indices.append(index.to(torch.int64))
        inside.append(index < end[:, None])
        weights.append(weigh(locate(index, axis.scale[own, None]) - (cells[:, i, None] - 1)))
    across = combine(take_taps(padded, cells)[:, :, :, None].unbind(2), [weight[:, None] for weight in weights[1]])
    value = combine(across[:, :, None].unbind(1), [weight[:, :, None] for weight in weights[0]])  # [C, S, S]
    there = inside[0][:, :, None] & inside[1][:, None]
    value = value.masked_fill(~there, -torch.inf)
    largest = value.amax((1, 2))
    first = there & ((value == largest[:, None, None]) | (value.isnan() & largest.isnan()[:, None, None]))
    index = indices[0][:, :, None] * columns.samples[own, None, None].to(torch.int64) + indices[1][:, None]
    return largest, index.masked_fill(~first, NOWHERE).amin((1, 2))


def locate(index: Tensor, scale: Tensor) -> Tensor:
    """Sample's index -> its place among pixels, of which the first is 0."""
    return scale * (index + 0.5) - 0.5


def weigh(part: Tensor) -> list[Tensor]:
    """Cubic convolution's weights of the four taps around a place that lies so far [0, 1] between the middle two."""
    rest = 1 - part
    far0, far3 = (((-0.75 * x + 3.75) * x - 6) * x + 3 for x in (part + 1, rest + 1))
    near1, near2 = ((1.25 * x - 2.25) * x * x + 1 for x in (part, rest))
    return [far0, near1, near2, far3]


def combine(taps: tuple[Tensor, ...], weights: list[Tensor]) -> Tensor:
    """Sum of four taps times their weights, in PyTorch's order."""
    products = [tap * weight for tap, weight in zip(taps, weights, strict=True)]
    return products[0] + products[1] + products[2] + products[3]


def take_taps(padded: Tensor, cells: Tensor) -> Tensor:
    """Cells [C, 3] (heatmap, y, x) of heatmaps [M, h + 4, w + 4] -> their taps [C, 4, 4]."""
    near = torch.arange(4, device=cells.device)
    number, y, x = cells[:, :, None, None].unbind(1)
    return padded[number, y + near[:, None], x + near]


def bound_cells(padded: Tensor) -> Tensor:
    """A bound of each cell's samples [M, h + 1, w + 1]: by Bernstein coefficients of its rows, and their extremes."""
    before, start, end, after = (padded[:, :, i : padded.shape[2] - 3 + i] for i in range(4))
    second, third = start + (end - before) / 4, end - (after - start) / 4
    high = torch.maximum(start, end).maximum(second).maximum(third)
    low = torch.minimum(start, end).minimum(second).minimum(third)  # [M, h + 4, w + 1]
    rows = padded.shape[1] - 3
    before, start, end, after = low[:, :rows], high[:, 1 : rows + 1], high[:, 2 : rows + 2], low[:, 3:]
    return torch.maximum(start + ((end - before) / 4).clamp(min=0), end + ((start - after) / 4).clamp(min=0))
