"""The work of RoIAlign's forward pass: a program for each RoI and block of channels; NCHW maps are copied first."""

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmask.kernels.predict.case import Built, Case
from fastmask.kernels.predict.inputs import CHANNELS, LIMITS, PADDED_SIZE, STRIDES, boxes_in, empty_pyramid
from fastmask.kernels.predict.model import Work
from fastmask.kernels.triton import roi_align as roi_align_triton, roi_align_tile as roi_align_tile_triton

RATIO = 2


class Pooling(NamedTuple):
    """What RoIs are pooled from, and to how many bins an axis."""

    strides: tuple[int, ...] = STRIDES
    limits: tuple[float, ...] = LIMITS
    channels: int = CHANNELS
    pooled: int = 7

    @property
    def scales(self) -> tuple[float, ...]:
        return tuple(1 / stride for stride in self.strides)

    def levels_of(self, rois: Tensor) -> Tensor:
        """The level of each RoI."""
        sides = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
        return (sides[:, None] >= torch.tensor(self.limits[:-1])).sum(1)


PYRAMID = Pooling()
C4 = Pooling((16,), (float(np.finfo(np.float32).max),), 1024, 14)


def rois_of(generator: torch.Generator, num: int, batch: int, size: tuple[int, int] = PADDED_SIZE) -> Tensor:
    """RoIs [batch * num, 5] as the benchmarks draw them, ``num`` an image."""
    boxes = [boxes_in(generator, num, size) for _ in range(batch)]
    return torch.cat([torch.cat([torch.full((num, 1), float(i)), one], 1) for i, one in enumerate(boxes)])


def taps(rois: Tensor, pooling: Pooling) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows and columns of the maps that RoIs take: [K, pooled * RATIO, 2], from both neighbors of each sample."""
    samples = pooling.pooled * RATIO
    scale = torch.tensor(pooling.scales)[pooling.levels_of(rois)]
    sizes = torch.tensor([[side // s for side in PADDED_SIZE] for s in pooling.strides])[pooling.levels_of(rois)]
    axes = []
    for axis, (low, high) in enumerate(((2, 4), (1, 3))):
        start, length = rois[:, low] * scale, ((rois[:, high] - rois[:, low]) * scale).clamp(min=1)
        steps = (torch.arange(samples) + 0.5) / samples
        lower = (start[:, None] + steps * length[:, None]).clamp(min=0).floor()
        limit = sizes[:, axis : axis + 1] - 1
        axes.append(torch.stack([torch.minimum(lower, limit), torch.minimum(lower + 1, limit)], 2).numpy())
    return axes[0], axes[1]


def footprint(rois: Tensor, pooling: Pooling, bins: int) -> int:
    """Pixels that programs of ``bins`` neighboring bins take, each once a program."""
    pooled = pooling.pooled
    rows, columns = taps(rois, pooling)
    shape = (len(rois), pooled, 1, RATIO, 1, 2, 1), (len(rois), 1, pooled, 1, RATIO, 1, 2)
    place = rows.reshape(shape[0]) * 4096 + columns.reshape(shape[1])
    place = place.reshape(len(rois), pooled * pooled, -1)
    pixels = 0
    for first in range(0, pooled * pooled, bins):
        some = np.sort(place[:, first : first + bins].reshape(len(rois), -1), 1)
        pixels += len(rois) + int((np.diff(some, axis=1) != 0).sum())
    return pixels


def build(
    generator: torch.Generator,
    *,
    num: int,
    batch: int,
    dtype: torch.dtype,
    channels_last: bool,
    pooling: Pooling = PYRAMID,
) -> Built:
    rois = rois_of(generator, num, batch)
    maps = empty_pyramid(batch, dtype, channels_last, pooling.strides, pooling.channels)
    arguments = (maps, rois, pooling.scales, pooling.limits, pooling.pooled, pooling.pooled, RATIO, False)
    return functools.partial(roi_align_triton.multilevel_roi_align, *arguments), lambda: works(
        maps, rois, channels_last, pooling
    )


def works(maps: list[Tensor], rois: Tensor, channels_last: bool, pooling: Pooling) -> list[Work]:
    size, pooled, channels = maps[0].element_size(), pooling.pooled, pooling.channels
    map_bytes, written = sum(feature.nbytes for feature in maps), len(rois) * pooled * pooled * channels * size
    # rows of bins that a program goes down; benchmarks' RoIs lie on the image, so all of their samples count
    tile = roi_align_tile_triton.tile_of(pooled, channels, RATIO, True, roi_align_triton.CHANNELS)
    column_blocks = -(-pooled // tile["COLUMNS"])
    blocks = column_blocks * -(-channels // (tile["TILES"] * tile["CHANNELS"]))
    rows = -(-pooled // min(-(-roi_align_triton.PROGRAMS // (len(rois) * blocks)), pooled))
    gather = Work(
        "_forward_kernel",
        {"if inner -> for p in range(first, past)": rows, "else of if inner": 0, "if inner": 1}
        | {"else of if inner -> for p in range(first, past)": 0},
        hbm_bytes=(map_bytes if channels_last else 0) + written,
        l2_bytes=footprint(rois, pooling, -(-pooled // column_blocks)) * channels * size + written,
    )
    return [gather] if channels_last else [Work("_copy_kernel", {}, hbm_bytes=2 * map_bytes), gather]


def _case(floor: float | None, target: float | None, **options: Any) -> Case:
    return Case(functools.partial(build, **options), floor, target)


BF16, FP32 = torch.bfloat16, torch.float32
CASES = {
    "RoIAlign, 1000 RoIs, bf16, channels-last": _case(41, 45, num=1000, batch=1, dtype=BF16, channels_last=True),
    "RoIAlign, 1000 RoIs, fp32, NCHW": _case(None, None, num=1000, batch=1, dtype=FP32, channels_last=False),
    "RoIAlign, 8 x 512 RoIs, bf16, channels-last": _case(109, 300, num=512, batch=8, dtype=BF16, channels_last=True),
    "RoIAlign 14 x 14 on C4, 1000 RoIs, bf16": _case(
        None, None, num=1000, batch=1, dtype=BF16, channels_last=True, pooling=C4
    ),
}
