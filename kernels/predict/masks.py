"""The work of mask pasting and of RLE."""

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from triton import cdiv

from fastmask.kernels import reference
from fastmask.kernels.fallback import masks as masks_fallback
from fastmask.kernels.predict import machine
from fastmask.kernels.predict.case import Built, Case
from fastmask.kernels.predict.inputs import IMAGE_SIZE, blob_masks
from fastmask.kernels.predict.model import Work
from fastmask.kernels.triton import paste as paste_triton, rle as rle_triton

SIDE = 28
PADDED = SIDE + 2
GROWTH = PADDED / SIDE  # of a box, for the mask's padding
Size = tuple[int, int]
Array = NDArray[Any]


def build_paste(generator: torch.Generator, *, num: int, size: Size = IMAGE_SIZE) -> Built:
    masks, boxes = blob_masks(generator, num, size)
    run = functools.partial(paste_triton.paste_masks, masks[:, 0], boxes, *size, "bool", 0.5, False, False, 1)
    return run, functools.partial(paste_works, boxes, size)


def paste_works(boxes: Tensor, size: Size) -> list[Work]:
    height, width = size
    lines = height * -(-width // paste_triton.TILE)
    programs = max(min(paste_triton.PROGRAMS // len(boxes), -(-lines // paste_triton.LINES)), 1)
    counts = np.zeros((4, len(boxes), programs))  # tiles, lines, rows of cells, of which not the one after the last
    for number, (box, low, high) in enumerate(_spans(boxes, size)):
        rows, columns = high[1] - low[1], high[0] - low[0]
        cells = _cells(np.arange(low[1], high[1]), box[1], box[3])
        line = np.arange(max(rows, 0) * -(-max(columns, 0) // paste_triton.TILE))
        share = max(-(-len(line) // programs), paste_triton.LINES)
        for program in range(-(-len(line) // share)):
            mine = line[program * share : (program + 1) * share]
            begins = (mine % rows == 0) | (mine == mine[0])
            cell = cells[mine % rows]
            step = np.where(begins, 2, np.diff(cell, prepend=0))
            counts[:, number, program] = begins.sum(), len(mine), (step != 0).sum(), (step > 1).sum()
    tiles, rows_of, changed, jumped = counts.reshape(4, -1)
    return [
        Work(
            "_paste_kernel",
            {"while first < last": tiles, "for line in range(first": rows_of}
            | {"if row != cell:": changed, "if row != cell + 1": jumped},
            l2_bytes=float(rows_of.sum()) * paste_triton.TILE,
        )
    ]


def build_encode(generator: torch.Generator, *, num: int, size: Size = IMAGE_SIZE) -> Built:
    masks, boxes = blob_masks(generator, num, size)
    sizes = torch.tensor([size] * num)
    capacity = num * max(4096, 8 * size[1])  # what ops.encode_masks tries first
    run = functools.partial(rle_triton.encode_masks, masks[:, 0], boxes, sizes, capacity, 0.5, False, False, 1)
    return run, functools.partial(encode_works, masks[:, 0], boxes, size)


def encode_works(masks: Tensor, boxes: Tensor, size: Size) -> list[Work]:
    chunks = max(min(rle_triton.PROGRAMS // len(masks), rle_triton.CHUNKS), 1)
    crops = {c.number: c for c in masks_fallback._crops(masks, boxes, [size] * len(masks), False, False, 1)}
    steps, reads, rounds, found = np.zeros((4, len(masks), chunks))
    runs, longest = np.ones((2, len(masks)))
    for number, (_, low, high) in enumerate(_spans(boxes, size)):
        columns, rows = high - low
        if number not in crops or columns <= 0 or rows <= 0:
            continue
        inside = masks_fallback.exceeds(crops[number].values, 0.5, False).numpy()
        length, changes = _words(inside, joined=low[1] == 0 and high[1] == size[0])
        total, step = changes.size, rle_triton.BLOCK - 1
        share = cdiv(cdiv(total, chunks), step) * step
        for chunk in range(-(-total // share)):
            mine = changes[chunk * share : (chunk + 1) * share]
            most = [mine[k : k + step].max() for k in range(0, len(mine), step)]
            steps[number, chunk] = len(most)
            reads[number, chunk] = len(most) * length / rle_triton.UNROLLED
            rounds[number, chunk] = sum(most)
            found[number, chunk] = mine.sum()
        lengths = masks_fallback._runs(inside, crops[number].top, crops[number].left, *size)
        deltas = np.concatenate([lengths[:3], lengths[3:] - lengths[1:-2]])
        bits = int(np.maximum(deltas, -1 - deltas).max()).bit_length() + 1  # and a sign
        runs[number], longest[number] = len(lengths), max(-(-bits // 5), 1)
    again = found.ravel() > rle_triton.SLOTS  # chunks that kept too few positions
    sample = {
        "for step in range(0, num": steps.ravel(),
        "for start in range(0, length": reads.ravel(),
        "while tl.max(changes": rounds.ravel(),
    }
    masks_before = np.ceil(np.arange(len(masks)) / rle_triton.SUMMED)  # steps of their sum
    chunks_before = np.ceil(np.arange(chunks) / rle_triton.SUMMED)
    earlier = (masks_before[:, None] + chunks_before).ravel() / 2  # on average of both sums
    copy = {name: trips * again for name, trips in sample.items()} | {
        "else of if known == 0": found.ravel() > 0,
        "for start in range(begin, end": earlier * (found.ravel() > 0),
        "if known <= SLOTS": (found.ravel() > 0) & ~again,
        "else of if known <= SLOTS": again,
    }
    parts = max(min(rle_triton.TEXT_PROGRAMS // len(masks), rle_triton.PARTS), 1)
    part = np.arange(parts)
    blocks = np.ceil(runs / rle_triton.RUNS)  # of a mask
    share = np.ceil(np.ceil(runs / parts) / rle_triton.RUNS)[:, None]  # blocks of a part
    blocks = np.clip(blocks[:, None] - part * share, 0, share).ravel()
    longest, works = longest.repeat(parts), np.minimum(blocks, 1)
    text = {"else of if first_run > changes": works, "for first in range(first_run": blocks}
    text |= {"while tl.max(rest": blocks * (longest - 1)}
    before = masks_before.repeat(parts) * works
    # on average of both sums of those that write
    in_write = (before + np.tile(np.ceil(part / rle_triton.SUMMED), len(masks)) * works) / 2
    positions = float(runs.sum()) * 8
    return [
        Work("_changes_kernel", sample, masks.nbytes, positions),
        Work("_changes_kernel", copy, 0, 2 * positions),
        Work("_text_kernel", text | {"for start in range(begin, end": before}, 0, 4 * positions),
        Work(
            "_text_kernel",
            text
            | {"for start in range(begin, end": before, "if WRITE -> for start in range(begin, end": in_write}
            | {"for i in range(tl.max(length": blocks * longest},
            0,
            4 * positions,
        ),
    ]


def _words(inside: NDArray[np.bool_], joined: bool) -> tuple[int, Array]:
    """Length of words in pixels, and the number of changes in each word of a box, down the columns."""
    rows = inside.shape[0]
    pixels = rows + 1 - joined
    words = cdiv(pixels, rle_triton.WORD)
    length = cdiv(cdiv(pixels, words), rle_triton.UNROLLED) * rle_triton.UNROLLED
    bordered = np.pad(inside, ((1, 1), (0, 0)))
    change = bordered[1:] != bordered[:-1]
    changes = np.zeros((change.shape[1] + joined, words), int)
    row, column = np.nonzero(change)
    np.add.at(changes, (column, np.minimum(row // length, words - 1)), 1)
    return length, changes.ravel()


def _spans(boxes: Tensor, size: Size) -> list[tuple[Array, Array, Array]]:
    """Corners of each box in whole pixels, and its first and one-past-last pixel (x, y) on the image."""
    most = np.array([size[1], size[0]])
    corners = reference.expand_boxes(boxes, GROWTH).trunc().double().numpy()
    return [(box, np.clip(box[:2], 0, most).astype(int), np.clip(box[2:] + 1, 0, most).astype(int)) for box in corners]


def _cells(pixels: Array, low: float, high: float) -> Array:
    """The lower cell of the mask at pixels along one axis."""
    position = (pixels - low + 0.5) * (PADDED / max(high - low + 1, 1)) - 0.5
    cells: Array = np.floor(position.clip(0, PADDED - 1)).astype(int)
    return cells


# 1.3 times what zero_() of as many bytes takes by the same model
PASTE_TARGET = 1.3 * (
    100 * IMAGE_SIZE[0] * IMAGE_SIZE[1] / (machine.HBM * machine.HBM_EFFICIENCY) * 1e6 + machine.LAUNCH
)
CASES = {
    "paste 100 masks, 800 x 1333, bool": Case(functools.partial(build_paste, num=100), 24.8, PASTE_TARGET),
    "RLE of 100 masks, 800 x 1333, on the device": Case(functools.partial(build_encode, num=100), 10, 150),
}
