"""The work of RoIAlign's backward pass: a table of RoIs sorted by map, then a program for each tile."""

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmask.kernels.predict.case import Built, Case
from fastmask.kernels.predict.inputs import PADDED_SIZE
from fastmask.kernels.predict.model import Work
from fastmask.kernels.predict.roi_align import C4, PYRAMID, RATIO, Pooling, rois_of
from fastmask.kernels.triton import roi_align_backward as gpu, roi_bins as roi_bins_triton


def build(
    generator: torch.Generator,
    *,
    num: int,
    batch: int,
    dtype: torch.dtype,
    size: tuple[int, int] = PADDED_SIZE,
    pooling: Pooling = PYRAMID,
    channels_last: bool = False,
) -> Built:
    rois = rois_of(generator, num, batch, size)
    sizes = [(size[0] // stride, size[1] // stride) for stride in pooling.strides]
    heights, widths = [height for height, _ in sizes], [width for _, width in sizes]
    # NCHW is what flatten's backward hands over, channels-last a convolution's; without NaN, which takes another path
    grad = torch.zeros(len(rois), pooling.channels, pooling.pooled, pooling.pooled, dtype=dtype)
    if channels_last:
        grad = grad.contiguous(memory_format=torch.channels_last)
    geometry = (heights, widths, pooling.scales, pooling.limits, RATIO, False)
    run = functools.partial(gpu.multilevel_roi_align_backward, grad, rois, batch, *geometry)
    return run, functools.partial(works, rois, batch, sizes, grad, pooling)


def works(rois: Tensor, batch: int, sizes: list[tuple[int, int]], grad: Tensor, pooling: Pooling) -> list[Work]:
    level, image = pooling.levels_of(rois), rois[:, 0].long()
    searches, products, bins = [], [], 0.0
    for i, scale in enumerate(pooling.scales):
        for b in range(batch):
            some = (rois[(level == i) & (image == b)] * scale).double().numpy()
            y = _count_bins(some[:, 2], some[:, 4], sizes[i][0], gpu.TILE_Y, pooling.pooled)
            x = _count_bins(some[:, 1], some[:, 3], sizes[i][1], gpu.TILE_X, pooling.pooled)
            begins = range(0, len(some), gpu.ROIS)
            totals = [(y[k : k + gpu.ROIS].T @ x[k : k + gpu.ROIS]).ravel() for k in begins]
            searches.append(np.full(y.shape[1] * x.shape[1], len(begins)))
            products.append(sum((np.ceil(total / gpu.SLOTS) for total in totals), np.zeros(len(searches[-1]))))
            bins += float(sum(total.sum() for total in totals))
    channels = grad.shape[1]
    repeats = -(-channels // gpu.CHANNELS[grad.dtype])
    written = sum(height * width for height, width in sizes) * batch * channels * grad.itemsize
    steps = -(-len(rois) // roi_bins_triton.COMPARED)
    copied = not grad.is_contiguous(memory_format=torch.channels_last)
    return [
        *([Work("_copy_kernel", {}, hbm_bytes=2 * grad.nbytes)] if copied else []),
        Work("_table_kernel", {"for begin in range(0, num_rois": steps}, len(rois) * 120),
        Work(
            "_backward_kernel",
            {
                "for block in range(begin, end": np.tile(np.concatenate(searches), repeats),
                "for done in range(0, total": np.tile(np.concatenate(products), repeats),
                "else of if tl.abs(tl.sum": 0,  # for a gradient with NaN or inf
                "for k in range(begin, end": 0,
                "for rank in range(": 0,
            },
            hbm_bytes=grad.nbytes + written,
            l2_bytes=bins * channels * grad.itemsize + written,
        ),
    ]


def _count_bins(low: NDArray[Any], high: NDArray[Any], size: int, side: int, pooled: int) -> NDArray[Any]:
    """Bins of each RoI that may reach each tile along one axis, float64 [RoIs, tiles]."""
    tile = np.arange(-(-size // side)) * side
    length = np.maximum(high - low, 1)[:, None] / pooled
    inset = 0.5 / RATIO
    first = np.maximum(np.ceil((tile - 1 - low[:, None]) / length - 1 + inset), 0)
    past = np.minimum(np.floor((tile + side - low[:, None]) / length - inset) + 1, pooled)
    bins: NDArray[Any] = np.maximum(past - first, 0)
    return bins


CASES = {
    "RoIAlign backward, 8 x 512 RoIs, bf16": Case(
        functools.partial(build, num=512, batch=8, dtype=torch.bfloat16), 121, 300
    ),
    "RoIAlign backward 14 x 14 on C4, 512 RoIs, bf16": Case(
        functools.partial(build, num=512, batch=1, dtype=torch.bfloat16, pooling=C4, channels_last=True)
    ),
}
