"""The work of paste-back and of RLE."""

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmask.kernels import cpu_masks, gpu_paste, gpu_rle, reference
from fastmask.kernels.predict import machine
from fastmask.kernels.predict.case import Built, Case
from fastmask.kernels.predict.inputs import PICTURE, blob_masks
from fastmask.kernels.predict.model import Work

SIDE = 28
GROWTH = (SIDE + 2) / SIDE  # of a box, for the mask's padding
Size = tuple[int, int]


def build_paste(generator: torch.Generator, *, num: int, size: Size = PICTURE) -> Built:
    masks, boxes = blob_masks(generator, num, size)
    run = functools.partial(gpu_paste.paste_masks, masks[:, 0], boxes, *size, "bool", 0.5, False, False, 1)
    return run, functools.partial(paste_works, boxes, size)


def paste_works(boxes: Tensor, size: Size) -> list[Work]:
    height, width = size
    elements = height * width
    first = np.arange(-(-elements // gpu_paste.BLOCK)) * gpu_paste.BLOCK
    rows = first // width, np.minimum((first + gpu_paste.BLOCK - 1) // width, height - 1)
    y1, y2 = _expanded(boxes)[:, [1, 3]].T[:, :, None]
    reached = (rows[1] >= y1 - 2 - (y2 - y1)) & (rows[0] <= y2 + 2 + (y2 - y1))
    return [Work("_paste_kernel", {"if reached": reached.ravel()}, hbm_bytes=len(boxes) * elements)]


def build_encode(generator: torch.Generator, *, num: int, size: Size = PICTURE) -> Built:
    masks, boxes = blob_masks(generator, num, size)
    sizes = torch.tensor([size] * num)
    capacity = num * max(4096, 8 * size[1])  # what ops.encode_masks tries first
    run = functools.partial(gpu_rle.encode_masks, masks[:, 0], boxes, sizes, capacity, 0.5, False, False, 1)
    return run, functools.partial(encode_works, masks[:, 0], boxes, size)


def encode_works(masks: Tensor, boxes: Tensor, size: Size) -> list[Work]:
    height, width = size
    low, high = (_expanded(boxes)[:, axes] for axes in ([0, 1], [2, 3]))
    most = np.array([width, height])
    spans = np.minimum(high + 1, most) - np.clip(low, 0, most)
    total = spans[:, 0] * (spans[:, 1] + 1)
    share = np.ceil(np.ceil(total / gpu_rle.CHUNKS) / gpu_rle.BLOCK) * gpu_rle.BLOCK
    begun = np.minimum(np.arange(gpu_rle.CHUNKS) * share[:, None], total[:, None])
    steps = np.ceil((np.minimum(begun + share[:, None], total[:, None]) - begun) / gpu_rle.BLOCK).ravel()
    runs = np.ones(len(masks))
    longest = np.ones(len(masks))  # characters of a run
    for crop in cpu_masks._crops(masks, boxes, [size] * len(masks), False, False, 1):
        inside = cpu_masks.exceeds(crop.values, 0.5, False).numpy()
        lengths = cpu_masks._runs(inside, crop.top, crop.left, height, width)
        deltas = np.concatenate([lengths[:3], lengths[3:] - lengths[1:-2]])
        runs[crop.number] = len(lengths)
        bits = int(np.maximum(deltas, -1 - deltas).max()).bit_length() + 1  # and a sign
        longest[crop.number] = max(-(-bits // 5), 1)
    blocks = np.ceil(runs / gpu_rle.BLOCK)
    changes = {"for step in range(0, num": steps}
    text = {"for first in range(0, runs": blocks, "while tl.max(rest": blocks * (longest - 1)}
    letters = {"for i in range(tl.max(length": blocks * longest}
    moved = masks.nbytes + float(runs.sum()) * 8
    return [
        Work("_changes_kernel", changes, moved),
        Work("_changes_kernel", changes, moved),
        Work("_text_kernel", text, moved),
        Work("_text_kernel", text | letters, moved),
    ]


def _expanded(boxes: Tensor) -> NDArray[Any]:
    return reference.expand_boxes(boxes, GROWTH).trunc().double().numpy()


# 1.3 times what zero_() of as many bytes takes by the same model
PASTE_TARGET = 1.3 * (100 * PICTURE[0] * PICTURE[1] / (machine.HBM * machine.HBM_EFFICIENCY) * 1e6 + machine.LAUNCH)
CASES = {
    "paste 100 masks, 800 x 1333, bool": Case(functools.partial(build_paste, num=100), 24.8, PASTE_TARGET),
    "RLE of 100 masks, 800 x 1333, on the device": Case(functools.partial(build_encode, num=100), 10, 150),
}
