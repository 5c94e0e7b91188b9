"""The work of NMS: order, bits of all pairs of a unit, resolution of each unit, and the list by score."""

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmask.kernels.predict.case import Built, Case
from fastmask.kernels.predict.inputs import IMAGE_SIZE, boxes_in
from fastmask.kernels.predict.model import Work
from fastmask.kernels.triton import (
    nms as nms_triton,
    nms_order as nms_order_triton,
    nms_pairs as nms_pairs_triton,
    nms_resolve as nms_resolve_triton,
    nms_runs as nms_runs_triton,
)

BLOCK = nms_order_triton.BLOCK
Counts = NDArray[Any]


class Placed(NamedTuple):
    """Boxes in their positions: those of a unit side by side, by score."""

    boxes: Tensor  # [positions, 4]
    units: Tensor  # [positions]


def build(
    generator: torch.Generator,
    *,
    num: int,
    groups: int,
    batch: int = 1,
    threshold: float,
    most: int,
    runs: list[int] | None = None,
) -> Built:
    """Build a case; ``runs``: lengths of presorted runs, in place of groups."""
    boxes = torch.stack([boxes_in(generator, num, IMAGE_SIZE) for _ in range(batch)])
    scores = torch.rand(batch, num, generator=generator)
    labels = torch.randint(groups, (batch, num), generator=generator) if groups > 1 and not runs else None
    if runs:
        scores = torch.cat([run.sort(1, descending=True).values for run in scores.split(runs, 1)], 1)
    run = functools.partial(
        nms_triton.nms_padded, boxes, scores, labels, None, threshold, most, groups if labels is not None else 0, runs
    )
    return run, functools.partial(works, boxes, scores, labels, threshold, most, runs)


def works(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, threshold: float, most: int, runs: list[int] | None
) -> list[Work]:
    batch, num = scores.shape
    placed = _place(boxes, scores, labels, runs)
    blocks = -(-batch * num // BLOCK)
    window = _window(blocks, max(runs) if runs else num)
    diagonal, tiles = _pairs(placed.units, blocks, window)
    parts = BLOCK // 2 // nms_pairs_triton.columns_of(labels is not None, "fma")
    active, walked, far, begun_rounds, walked_rounds = _resolve(placed, blocks, threshold, most)
    padded, listing = -(-num // 16) * 16, -(-num // nms_resolve_triton.LISTED)
    places = np.tile(np.arange(listing), batch)
    rest = np.maximum(np.ceil((most - places * nms_resolve_triton.LISTED) / (listing * nms_resolve_triton.LISTED)), 0)
    size, every = batch * num, float((diagonal + tiles).sum())
    bits = every * 2 * BLOCK * 4
    pairs = {
        "if active": np.minimum(diagonal + tiles, 1),
        "while distance < end": diagonal + tiles,
        "for half in range(2)": 2 * (diagonal + tiles),
        "_bits: for part": 2 * parts * (diagonal + tiles),
        "if distance == 0": 2 * diagonal,
        "_earlier_in_unit: for part": 2 * 2 * diagonal,
        "else of if distance == 0": 2 * tiles,
    }
    pairs |= {f"if _has_tiny( -> {key}": 0 for key in list(pairs) if key != "if active"} | {"if _has_tiny(": 0}
    return [
        *_order(batch, num, runs),
        Work(
            "_pairs_kernel",
            pairs,
            hbm_bytes=size * 24,
            l2_bytes=every * 2 * BLOCK * 24 + bits,
        ),
        Work(
            "_resolve_kernel",
            {
                "if active": active,
                "if going": walked > 0,
                "while current + 1 < end": walked,
                "for distance in range(2 + FAR": far,
                "if active -> while rounds > 0": begun_rounds,
                "while current + 1 < end -> while rounds > 0": walked_rounds,
            },
            l2_bytes=bits + size * 8,
        ),
        Work(
            "_list_kernel",
            {
                "for first in range(0, padded // 8": -(-padded // 8 // nms_resolve_triton.COUNTED_WORDS),
                "for first in range(part * LISTED": rest,
            },
            l2_bytes=batch * (num * 9 + most * 8),
        ),
    ]


def _order(batch: int, num: int, runs: list[int] | None) -> list[Work]:
    size = batch * num
    if runs:
        steps = np.ceil(np.array(runs) / nms_order_triton.RUN)
        return [
            Work("_run_keys_kernel", {"for first in range(start, end": np.repeat(steps, batch)}, size * 8),
            Work("_merge_kernel", {"for _ in range(steps)": max(runs).bit_length()}, size * 48),
        ]
    if batch * num * num <= nms_triton.COMPARISONS:
        return [Work("_count_kernel", {"for first in range(0, num": -(-num // nms_order_triton.COMPARED)}, size * 60)]
    sorted_runs = -(-num // nms_runs_triton.RUN)
    searched = {"for first in range(0, runs": -(-sorted_runs // nms_runs_triton.SEARCHED), "while step > most": 0}
    searched["while step > 0"] = nms_runs_triton.RUN.bit_length()
    return [
        Work("_sort_runs_kernel", {}, size * 12),
        Work("_merge_runs_kernel", searched, size * 60),
    ]


def _window(blocks: int, largest: int) -> int:
    reach = min(-(-(largest - 1) // BLOCK) + 1, blocks)
    return min(reach, max(nms_triton.MAX_WORDS // (blocks * BLOCK), nms_triton.MIN_WINDOW))


def _place(boxes: Tensor, scores: Tensor, labels: Tensor | None, runs: list[int] | None) -> Placed:
    batch, num = scores.shape
    if runs:
        units = torch.arange(len(runs)).repeat_interleave(torch.tensor(runs)).expand(batch, num)
        order = torch.arange(num).expand(batch, num)
    else:
        order = scores.argsort(dim=1, descending=True, stable=True)
        units = torch.zeros(batch, num, dtype=torch.int64) if labels is None else labels.gather(1, order)
        by_unit = units.argsort(dim=1, stable=True)
        order, units = order.gather(1, by_unit), units.gather(1, by_unit)
    units = units + torch.arange(batch)[:, None] * (int(units.max()) + 1)
    return Placed(boxes.gather(1, order[..., None].expand(-1, -1, 4)).flatten(0, 1), units.flatten())


def _pairs(units: Tensor, blocks: int, window: int) -> tuple[Counts, Counts]:
    """For each program: whether it has the tile on the diagonal, and the number of tiles before it."""
    padded = torch.cat([units, units.new_full((blocks * BLOCK - len(units),), -1)]).view(blocks, BLOCK).numpy()
    first, last = padded[:, 0], padded[:, -1]
    splits = nms_pairs_triton.splits_of(blocks, window, nms_pairs_triton.SPLITS)
    diagonal, tiles = np.zeros((2, blocks, splits))
    diagonal[:, 0] = 1
    for block in range(blocks):
        for distance in range(1, min(window, block + 1)):
            if last[block - distance] != first[block]:
                break
            tiles[block, distance % splits] += 1
    return diagonal.ravel(), tiles.ravel()


def _resolve(placed: Placed, blocks: int, threshold: float, most: int) -> Counts:
    """[5, blocks]: whether a program has units; blocks that it walks; reads of far words; rounds at first, in walks."""
    counts = np.zeros((5, blocks))
    begins = [0, *((placed.units[1:] != placed.units[:-1]).nonzero()[:, 0] + 1).tolist(), len(placed.units)]
    for start, end in itertools.pairwise(begins):
        block = start // BLOCK
        steps = [start, *range((block + 1) * BLOCK, end, BLOCK), end]
        kept = placed.boxes[:0]
        for number, (low, high) in enumerate(itertools.pairwise(steps)):
            boxes = placed.boxes[low:high]
            alive, rounds = resolve_block(boxes, kept, threshold)
            kept = torch.cat([kept, boxes[alive]])
            if number == 0:
                counts[0, block] = 1
                counts[3, block] = max(counts[3, block], rounds)
            else:
                far = max(-(-(number - nms_resolve_triton.FAR) // nms_resolve_triton.FAR), 0)
                counts[[1, 2, 4], block] += 1, far, rounds
            if len(kept) >= most:
                break
    return counts


def resolve_block(boxes: Tensor, kept: Tensor, threshold: float) -> tuple[Tensor, int]:
    """Which of the sorted boxes are kept beside those kept before, and the number of rounds until that is known."""
    first = ~(_iou(boxes, kept) > threshold).any(1)
    removes = (_iou(boxes, boxes) > threshold).tril(-1)
    alive, rounds, changed = first, 0, bool(first.any())
    while changed:
        rounds += 1
        still = first & ~(removes & alive).any(1)
        changed, alive = bool((still != alive).any()), still
    return alive, rounds


def _iou(a: Tensor, b: Tensor) -> Tensor:
    sides = torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])
    inter = sides.clamp(min=0).prod(2)
    area_a, area_b = ((c[:, 2] - c[:, 0]) * (c[:, 3] - c[:, 1]) for c in (a, b))
    return inter / (area_a[:, None] + area_b - inter)


def _case(floor: float | None, target: float | None, **options: Any) -> Case:
    return Case(functools.partial(build, **options), floor, target)


RPN: dict[str, Any] = {"num": 4819, "groups": 5, "threshold": 0.7, "most": 1000, "runs": [1000, 1000, 1000, 1000, 819]}
CASES = {
    "RPN NMS, 4819 boxes in 5 levels": _case(10, 30, **RPN),
    "RPN NMS, 8 x 4819 boxes in 5 levels": _case(10, 30, batch=8, **RPN),
    "class NMS, 20k boxes in 80 classes": _case(15, 60, num=20_000, groups=80, threshold=0.5, most=20_000),
    "nms, one group of 5k": _case(None, None, num=5_000, groups=1, threshold=0.5, most=5_000),
    "nms, one group of 20k": _case(None, None, num=20_000, groups=1, threshold=0.5, most=20_000),
}
