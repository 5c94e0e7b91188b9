"""The work of RoIAlign's backward pass: RoIs sorted by map, then a program for each tile and block of channels."""

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmask.kernels import gpu_roi_align_backward as gpu
from fastmask.kernels.predict.case import Built, Case
from fastmask.kernels.predict.inputs import CHANNELS, IMAGE, LIMITS, STRIDES
from fastmask.kernels.predict.model import Work
from fastmask.kernels.predict.roi_align import POOLED, RATIO, SCALES, levels_of, rois_of


def build(
    generator: torch.Generator,
    *,
    num: int,
    batch: int,
    dtype: torch.dtype,
    size: tuple[int, int] = IMAGE,
    channels: int = CHANNELS,
) -> Built:
    rois = rois_of(generator, num, batch, size)
    sizes = [(size[0] // stride, size[1] // stride) for stride in STRIDES]
    heights, widths = [height for height, _ in sizes], [width for _, width in sizes]
    # autograd hands over what the pooled features are: channels-last
    grad = torch.empty(len(rois), channels, POOLED, POOLED, dtype=dtype, memory_format=torch.channels_last)
    run = functools.partial(
        gpu.multilevel_roi_align_backward, grad, rois, batch, heights, widths, SCALES, LIMITS, RATIO, False
    )
    return run, functools.partial(works, rois, batch, sizes, grad)


def works(rois: Tensor, batch: int, sizes: list[tuple[int, int]], grad: Tensor) -> list[Work]:
    level, image = levels_of(rois), rois[:, 0].long()
    scans, pairs, columns, bins = [], [], [], []
    for i, scale in enumerate(SCALES):
        for b in range(batch):
            some = (rois[(level == i) & (image == b)] * scale).numpy()
            y, x = _reached(some[:, 2], some[:, 4], sizes[i][0]), _reached(some[:, 1], some[:, 3], sizes[i][1])
            near_y, near_x = (y > 0).astype(float), (x > 0).astype(float)
            tiles = y.shape[1] * x.shape[1]
            scans.append(np.full(tiles, -(-len(some) // gpu.ROIS)))
            pairs.append((near_y.T @ near_x).ravel())
            columns.append((near_y.T @ x).ravel())
            bins.append((y.T @ x).ravel())
    channels = grad.shape[1]
    repeats = -(-channels // gpu.CHANNELS)
    written = sum(height * width for height, width in sizes) * batch * channels * grad.itemsize
    all_bins = np.concatenate(bins).sum()
    return [
        Work("_keys_kernel", hbm_bytes=len(rois) * 24),
        Work(
            "_backward_kernel",
            {
                "for block in range(begin, end": np.tile(np.concatenate(scans), repeats),
                "while lane < ROIS": np.tile(np.concatenate(pairs), repeats),
                "for q in range(q0, q1)": np.tile(np.concatenate(columns), repeats),
                "for p in range(p0, p1)": np.tile(np.concatenate(bins), repeats),
            },
            hbm_bytes=grad.nbytes + written,
            l2_bytes=float(all_bins * channels * grad.itemsize + written),
        ),
    ]


def _reached(low: NDArray[Any], high: NDArray[Any], size: int) -> NDArray[Any]:
    """Bins of each RoI that the kernel visits for each tile along one axis, float64 [RoIs, tiles]."""
    tile = np.arange(-(-size // gpu.TILE)) * gpu.TILE
    length = np.maximum(high - low, 1)[:, None] / POOLED
    start, slack = low[:, None], 2.0
    first = np.floor((tile - slack - start) / length).clip(0, POOLED)
    past = (np.floor((tile + gpu.TILE + slack - start) / length) + 1).clip(0, POOLED)
    bins: NDArray[Any] = np.maximum(past - first, 0).astype(float)
    return bins


CASES = {
    "RoIAlign backward, 8 x 512 RoIs, bf16": Case(
        functools.partial(build, num=512, batch=8, dtype=torch.bfloat16), 121, 300
    ),
}
