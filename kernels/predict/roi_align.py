"""The work of RoIAlign's forward pass: a program for each RoI and block of channels; NCHW maps are copied first."""

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmask.kernels.predict.case import Built, Case
from fastmask.kernels.predict.inputs import CHANNELS, LIMITS, PADDED_SIZE, STRIDES, boxes_in, empty_pyramid
from fastmask.kernels.predict.model import Work
from fastmask.kernels.triton import roi_align as roi_align_triton

POOLED, RATIO = 7, 2
SCALES = tuple(1 / stride for stride in STRIDES)


def rois_of(generator: torch.Generator, num: int, batch: int, size: tuple[int, int] = PADDED_SIZE) -> Tensor:
    """RoIs [batch * num, 5] as the benchmarks draw them, ``num`` an image."""
    boxes = [boxes_in(generator, num, size) for _ in range(batch)]
    return torch.cat([torch.cat([torch.full((num, 1), float(i)), one], 1) for i, one in enumerate(boxes)])


def levels_of(rois: Tensor) -> Tensor:
    """The level of each RoI."""
    sides = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
    return (sides[:, None] >= torch.tensor(LIMITS[:-1])).sum(1)


def taps(rois: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows and columns of the maps that RoIs take: [K, POOLED * RATIO, 2], from both neighbors of each sample."""
    scale = torch.tensor(SCALES)[levels_of(rois)]
    sizes = torch.tensor([[PADDED_SIZE[0] // s, PADDED_SIZE[1] // s] for s in STRIDES])[levels_of(rois)]
    axes = []
    for axis, (low, high) in enumerate(((2, 4), (1, 3))):
        start, length = rois[:, low] * scale, ((rois[:, high] - rois[:, low]) * scale).clamp(min=1)
        steps = (torch.arange(POOLED * RATIO) + 0.5) / (POOLED * RATIO)
        lower = (start[:, None] + steps * length[:, None]).clamp(min=0).floor()
        limit = sizes[:, axis : axis + 1] - 1
        axes.append(torch.stack([torch.minimum(lower, limit), torch.minimum(lower + 1, limit)], 2).numpy())
    return axes[0], axes[1]


def footprint(rois: Tensor, bins: int) -> int:
    """Pixels that programs of ``bins`` neighboring bins take, each once a program."""
    rows, columns = taps(rois)
    shape = (len(rois), POOLED, 1, RATIO, 1, 2, 1), (len(rois), 1, POOLED, 1, RATIO, 1, 2)
    place = rows.reshape(shape[0]) * 4096 + columns.reshape(shape[1])
    place = place.reshape(len(rois), POOLED * POOLED, -1)
    pixels = 0
    for first in range(0, POOLED * POOLED, bins):
        some = np.sort(place[:, first : first + bins].reshape(len(rois), -1), 1)
        pixels += len(rois) + int((np.diff(some, axis=1) != 0).sum())
    return pixels


def build(generator: torch.Generator, *, num: int, batch: int, dtype: torch.dtype, channels_last: bool) -> Built:
    rois, maps = rois_of(generator, num, batch), empty_pyramid(batch, dtype, channels_last)
    arguments = (maps, rois, SCALES, LIMITS, POOLED, POOLED, RATIO, False)
    return functools.partial(roi_align_triton.multilevel_roi_align, *arguments), lambda: works(
        maps, rois, channels_last
    )


def works(maps: list[Tensor], rois: Tensor, channels_last: bool) -> list[Work]:
    size = maps[0].element_size()
    map_bytes, written = sum(feature.nbytes for feature in maps), len(rois) * POOLED * POOLED * CHANNELS * size
    # rows of bins that a program goes down; benchmarks' RoIs lie on the image, so all of their samples count
    tile = roi_align_triton.tile_of(POOLED, CHANNELS, RATIO, True, roi_align_triton.CHANNELS)
    blocks = -(-CHANNELS // (tile["TILES"] * tile["CHANNELS"]))
    rows = -(-POOLED // min(-(-roi_align_triton.PROGRAMS // (len(rois) * blocks)), POOLED))
    gather = Work(
        "_forward_kernel",
        {"if inner -> for p in range(first, past)": rows, "else of if inner": 0, "if inner": 1}
        | {"else of if inner -> for p in range(first, past)": 0},
        hbm_bytes=(map_bytes if channels_last else 0) + written,
        l2_bytes=footprint(rois, POOLED) * CHANNELS * size + written,
    )
    return [gather] if channels_last else [Work("_copy_kernel", {}, hbm_bytes=2 * map_bytes), gather]


def _case(floor: float | None, target: float | None, **options: Any) -> Case:
    return Case(functools.partial(build, **options), floor, target)


BF16, FP32 = torch.bfloat16, torch.float32
CASES = {
    "RoIAlign, 1000 RoIs, bf16, channels-last": _case(41, 45, num=1000, batch=1, dtype=BF16, channels_last=True),
    "RoIAlign, 1000 RoIs, fp32, NCHW": _case(None, None, num=1000, batch=1, dtype=FP32, channels_last=False),
    "RoIAlign, 8 x 512 RoIs, bf16, channels-last": _case(109, 300, num=512, batch=8, dtype=BF16, channels_last=True),
}
