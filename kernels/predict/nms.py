"""The work of NMS: one program for the groups that begin in each 64 positions, then a list of what is kept."""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmask.kernels import gpu_nms
from fastmask.kernels.predict.case import Built, Case
from fastmask.kernels.predict.inputs import PICTURE, boxes_in
from fastmask.kernels.predict.model import Work


def build(generator: torch.Generator, *, num: int, groups: int, batch: int = 1, threshold: float, most: int) -> Built:
    boxes = torch.stack([boxes_in(generator, num, PICTURE) for _ in range(batch)])
    scores = torch.rand(batch, num, generator=generator)
    labels = torch.randint(groups, (batch, num), generator=generator) if groups > 1 else None
    run = functools.partial(gpu_nms.nms_padded, boxes, scores, labels, None, threshold, most, groups)
    return run, functools.partial(works, boxes, scores, labels, threshold, most)


def works(boxes: Tensor, scores: Tensor, labels: Tensor | None, threshold: float, most: int) -> list[Work]:
    batch, num = scores.shape
    blocks = -(-num // gpu_nms.BLOCK) if labels is not None else 1
    counts = np.zeros((4, batch * blocks))  # groups, steps, tiles of kept boxes, rounds
    kept = np.zeros(batch, int)
    for image in range(batch):
        order = scores[image].argsort(descending=True, stable=True)
        ordered = labels[image][order] if labels is not None else torch.zeros(num)
        start = 0
        for group in ordered.unique():
            members = boxes[image][order[ordered == group]]
            steps, tiles, rounds, found = _walk(members, threshold, most)
            counts[:, image * blocks + (start // gpu_nms.BLOCK if labels is not None else 0)] += 1, steps, tiles, rounds
            start += len(members)
            kept[image] += found
    listing = -(-num // gpu_nms.LISTED)
    last = np.tile(np.arange(listing) == listing - 1, batch)
    rest = np.repeat(np.maximum(most - kept, 0) // -gpu_nms.LISTED * -1, listing) * last
    return [
        Work(
            "_suppress_kernel",
            {
                "while lane < BLOCK": counts[0],
                "while unfinished": counts[1],
                "for k in range(0, num_kept": counts[2],
                "while changed > 0": counts[3],
            },
            hbm_bytes=batch * num * (16 + 3 * 8 + 1),
            slow_paths=1,  # nearly every warp has a pair that does not overlap
        ),
        Work(
            "_list_kernel",
            {
                "for first in range(0, begin": np.tile(np.arange(listing), batch),
                "if begin + BLOCK >= num": last,
                "for first in range(total, max_output": rest,
            },
            hbm_bytes=batch * (num * 9 + most * 8),
        ),
    ]


def _walk(boxes: Tensor, threshold: float, most: int) -> tuple[int, int, int, int]:
    """Sorted boxes of one group -> steps, tiles of kept boxes, rounds, kept boxes."""
    steps = tiles = rounds = 0
    kept = boxes[:0]
    for block in boxes.split(gpu_nms.BLOCK):
        steps += 1
        tiles += -(-len(kept) // gpu_nms.BLOCK)
        first = ~(_iou(block, kept) > threshold).any(1)
        removes = (_iou(block, block) > threshold).tril(-1)
        alive, changed = first, bool(first.any())
        while changed:
            rounds += 1
            still = first & ~(removes & alive).any(1)
            changed, alive = bool((still != alive).any()), still
        kept = torch.cat([kept, block[alive]])
        if len(kept) >= most:
            break
    return steps, tiles, rounds, len(kept)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    sides = torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])
    inter = sides.clamp(min=0).prod(2)
    area_a, area_b = ((c[:, 2] - c[:, 0]) * (c[:, 3] - c[:, 1]) for c in (a, b))
    return inter / (area_a[:, None] + area_b - inter)


def _case(floor: float | None, target: float | None, **options: Any) -> Case:
    return Case(functools.partial(build, **options), floor, target)


CASES = {
    "RPN NMS, 4819 boxes in 5 levels": _case(10, 30, num=4819, groups=5, threshold=0.7, most=1000),
    "RPN NMS, 8 x 4819 boxes in 5 levels": _case(10, 30, num=4819, groups=5, batch=8, threshold=0.7, most=1000),
    "class NMS, 20k boxes in 80 classes": _case(15, 60, num=20_000, groups=80, threshold=0.5, most=20_000),
    "nms, one group of 5k": _case(None, None, num=5_000, groups=1, threshold=0.5, most=5_000),
    "nms, one group of 20k": _case(None, None, num=20_000, groups=1, threshold=0.5, most=20_000),
}
