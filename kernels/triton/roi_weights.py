"""Bilinear weights of RoIs' bins for the pixels of a tile in RoIAlign's backward: hat functions, averaged over samples.

The weights are separable, TILE_Y + TILE_X of them a bin; triton/roi_bins.py's table says which samples count. A sample
may be placed in any rounding: it is clamped to the map, and whether it counts is decided already.
"""

import triton
import triton.language as tl

from fastmask.kernels.triton.roi_bins import ALONG_X, FIRST, LENGTH, PAST, START
from fastmask.kernels.triton.roi_geometry import ratio_of


@triton.jit
def _weights(words, level, bins, pixels, size, RATIO: tl.constexpr):
    """Mean weights of the samples of bins [SLOTS] along one axis for pixels [TILE] -> [TILE, SLOTS]."""
    start, length = tl.load(words + START), tl.load(words + LENGTH)
    first = tl.load(words + FIRST).to(tl.int32, bitcast=True)
    past = tl.load(words + PAST).to(tl.int32, bitcast=True)
    edge, last = start + bins.to(tl.float32) * length, (size - 1).to(tl.float32)
    weight = tl.zeros([pixels.shape[0], bins.shape[0]], dtype=tl.float32)
    if RATIO > 0:
        for i in tl.static_range(RATIO):
            k = bins * RATIO + i
            position = tl.minimum(tl.maximum(edge + length * ((i + 0.5) / RATIO), 0.0), last)
            hat = tl.maximum(1 - tl.abs(pixels[:, None] - position[None, :]), 0.0)
            weight += tl.where(((k >= first) & (k < past))[None, :], hat, 0.0)
        return weight * (1 / RATIO)
    else:  # of a huge grid only the samples that can reach the tile: they are over half a pixel apart, or there is one
        grid = tl.maximum(tl.ceil(length), 0.0)  # samples_of
        step = length / tl.maximum(grid, 1.0)
        margin = 1.0 + (tl.abs(edge) + tl.abs(length)) * 4.8e-7
        apart = tl.maximum(step, 0.5)
        begin = tl.minimum(tl.maximum(tl.floor((tl.min(pixels, 0) - margin - edge) / apart) - 2, 0.0), grid)
        most = tl.minimum((2 * margin + pixels.shape[0]) / apart + 4, grid - begin)
        if RATIO < 0:  # samples of a level's own number may be closer: all of them
            ratio = ratio_of(level, RATIO)
            grid = tl.where(ratio > 0, ratio.to(tl.float32), grid)
            step = length / tl.maximum(grid, 1.0)
            begin, most = tl.where(ratio > 0, 0.0, begin), tl.where(ratio > 0, grid, most)
        for i in range(tl.max(tl.ceil(most), 0).to(tl.int32)):
            k = bins * grid.to(tl.int32) + begin.to(tl.int32) + i
            position = tl.minimum(tl.maximum(edge + (begin + i + 0.5) * step, 0.0), last)
            hat = tl.maximum(1 - tl.abs(pixels[:, None] - position[None, :]), 0.0)
            weight += tl.where(((begin + i < grid) & (k >= first) & (k < past))[None, :], hat, 0.0)
        return weight / tl.maximum(grid, 1.0)[None, :]


@triton.jit
def tile_weights(
    words, level, p, q, tile_y, tile_x, height, width,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr, RATIO: tl.constexpr,
):  # fmt: skip
    """Weights of bins (p, q) [SLOTS] for each of the tile's pixels -> [TILE_Y * TILE_X, SLOTS]."""
    weight_y = _weights(words, level, p, tile_y + tl.arange(0, TILE_Y).to(tl.float32), height, RATIO)
    weight_x = _weights(words + ALONG_X, level, q, tile_x + tl.arange(0, TILE_X).to(tl.float32), width, RATIO)
    return tl.reshape(weight_y[:, None, :] * weight_x[None, :, :], [TILE_Y * TILE_X, p.shape[0]])
