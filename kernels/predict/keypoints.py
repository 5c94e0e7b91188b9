"""The work of decoding keypoints: how many cells each program searches, and how many tiles of samples."""

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmask.kernels.fallback import keypoints as fallback
from fastmask.kernels.predict import machine
from fastmask.kernels.predict.case import Built, Case
from fastmask.kernels.predict.inputs import IMAGE_SIZE, boxes_in, draw_heatmaps
from fastmask.kernels.predict.model import Work
from fastmask.kernels.triton import keypoints as gpu

POINTS, SIDE = 17, 56


def build(
    generator: torch.Generator, *, num: int, points: int = POINTS, side: int = SIDE, size: tuple[int, int] = IMAGE_SIZE
) -> Built:
    heatmaps, boxes = draw_heatmaps(generator, num, points, side), boxes_in(generator, num, size)
    run = functools.partial(gpu.decode_keypoints, heatmaps, boxes, *size)
    return run, functools.partial(works, heatmaps, boxes)


def works(heatmaps: Tensor, boxes: Tensor) -> list[Work]:
    number, points, height, width = heatmaps.shape
    whole = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1).ceil()
    rows, columns = (fallback.lay_samples(pixels, whole[:, i], points) for pixels, i in ((height, 1), (width, 0)))
    cells, across, tiles = count_cells(heatmaps.flatten(0, 1), rows, columns)
    every = np.ones(number * points, np.int64)
    return [
        Work(
            "_decode_keypoints_kernel",
            {
                "if known": every,
                "for i in tl.range(4": 4 * every,
                "while bound >= least": cells,
                "for start_x in range(": across,
                "for start_y in range(": tiles,
            },
            hbm_bytes=heatmaps.nbytes,
            l2_bytes=heatmaps.nbytes,
        )
    ]


def count_cells(maps: Tensor, rows: fallback.Axis, columns: fallback.Axis) -> list[NDArray[np.int64]]:
    """Cells that each program searches, columns of tiles in them, and tiles."""
    padded = torch.nn.functional.pad(maps[:, None], (2, 2, 2, 2), mode="replicate")[:, 0]
    bounds = fallback.bound_cells(padded)
    numbers = [axis.first[:, 1:] - axis.first[:, :-1] for axis in (rows, columns)]
    bounds = bounds.masked_fill((numbers[0] == 0)[:, :, None] | (numbers[1] == 0)[:, None], -torch.inf)
    counts = np.zeros((3, len(maps)), np.int64)
    slack = fallback.SLACK * 2.0**-23 * maps.abs().amax((1, 2))
    best = torch.full((len(maps),), torch.finfo(torch.float32).min)
    while bool((going := bounds.flatten(1).amax(1) >= best).any()):
        own = going.nonzero()[:, 0]
        place = bounds.flatten(1)[own].argmax(1)
        y, x = place // bounds.shape[2], place % bounds.shape[2]
        bounds[own, y, x] = -torch.inf
        cell, samples = torch.stack((own, y, x), 1), [numbers[0][own, y], numbers[1][own, x]]
        value, _ = fallback.sample_cells(padded, cell, rows, columns, [int(each.max()) for each in samples])
        best[own] = torch.maximum(best[own], value - slack[own])
        tiles = [(each / gpu.TILE).ceil().numpy().astype(np.int64) for each in samples]
        counts[:, own.numpy()] += np.stack((np.ones(len(own), np.int64), tiles[1], tiles[0] * tiles[1]))
    return list(counts)


CASES = {
    "keypoints, 17 of 100 detections": Case(
        functools.partial(build, num=100), 4 * 100 * POINTS * SIDE**2 / machine.HBM * 1e6 + machine.LAUNCH
    )
}
