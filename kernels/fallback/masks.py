"""Mask pasting and COCO run-length encoding (RLE), eager fallback, mask by mask, only over the pixels of each box.

Pasting writes crops into lazily zeroed memory (pages outside the boxes are never touched); RLE finds the value changes
of each crop down its columns, so that full-size masks never exist. Specification: reference.py.
"""

import contextlib
import math
import mmap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastmask.kernels.reference import COORDINATE_LIMIT, compute_dtype, expand_boxes

# Pixels of one box that may be resized whole; of a larger, mostly invisible one only the visible part is computed.
RESIZE_LIMIT = 2**24

NUMPY_TYPES: dict[torch.dtype, type[np.generic]] = {  # it has no bfloat16
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bool: np.bool_,
    torch.uint8: np.uint8,
}


class Crop(NamedTuple):
    """The visible part of one pasted mask."""

    number: int  # which mask
    top: int  # pixels
    left: int
    values: Tensor  # [height, width] probabilities


def paste_masks(
    masks: Tensor,
    boxes: Tensor,
    height: int,
    width: int,
    output: str,
    threshold: float,
    continuous: bool,
    logits: bool,
    padding: int,
) -> Tensor:
    """[N, M, M], [N, 4] -> [N, H, W] probabilities in their dtype, bool, or packed uint8 [N, H, ceil(W / 8)]."""
    dtype = {"float": masks.dtype, "bool": torch.bool, "packed": torch.uint8}[output]
    shape = (len(masks), height, -(-width // 8) if output == "packed" else width)
    canvas = _lazy_zeros(shape, dtype, masks.device)
    for number, top, left, values in _crops(masks, boxes, [(height, width)] * len(masks), continuous, logits, padding):
        if output != "float":
            values = exceeds(values, threshold, continuous)
        if output == "packed":
            bits = np.pad(values.cpu().numpy(), ((0, 0), (left % 8, 0)))
            values, left = torch.from_numpy(np.packbits(bits, axis=1)), left // 8
        canvas[number, top : top + values.shape[0], left : left + values.shape[1]] = values
    return canvas


def exceeds(values: Tensor, threshold: float, continuous: bool) -> Tensor:
    """Whether probabilities are mask: torchvision's users write > 0.5, detectron2 (continuous) writes >= 0.5."""
    return values >= threshold if continuous else values > threshold


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros whose pages the system allocates when they are first written to; no view of another tensor.

    Pages are small where the system allows it: with the huge ones that NumPy asks for, a tiny mask clears 2 MB.
    """
    if device.type != "cpu" or dtype not in NUMPY_TYPES:
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    if size < 2**21 or not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return torch.from_numpy(np.zeros(shape, NUMPY_TYPES[dtype]))
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        return torch.zeros(shape, dtype=dtype)  # whose error names the bytes
    with contextlib.suppress(OSError):  # of a system without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.from_numpy(np.frombuffer(memory, NUMPY_TYPES[dtype]).reshape(shape))


def _crops(
    masks: Tensor, boxes: Tensor, sizes: Sequence[tuple[int, int]], continuous: bool, logits: bool, padding: int
) -> Iterator[Crop]:
    masks = masks.to(compute_dtype(masks))
    if logits:
        masks = masks.sigmoid()
    for index, mask, low, high in _place_masks(masks, boxes, continuous, padding):
        height, width = sizes[index]
        axes = [Axis(low[1], high[1], mask.shape[0], height), Axis(low[0], high[0], mask.shape[1], width)]
        (top, bottom), (left, right) = (axis.visible(continuous) for axis in axes)
        if bottom <= top or right <= left:
            continue
        if not continuous:
            whole = [axis.pixels() for axis in axes]
            if whole[0] * whole[1] <= max(RESIZE_LIMIT, 2 * (bottom - top) * (right - left)):
                resized = F.interpolate(mask[None, None], size=whole, mode="bilinear", align_corners=False)[0, 0]
                y0, x0 = int(low[1]), int(low[0])
                yield Crop(index, top, left, resized[top - y0 : bottom - y0, left - x0 : right - x0])
                continue
        lower, upper, weight = axes[0].taps(top, bottom, continuous, mask)
        rows = mask.index_select(0, lower) * weight[0, :, None] + mask.index_select(0, upper) * weight[1, :, None]
        lower, upper, weight = axes[1].taps(left, right, continuous, mask)
        # index_select takes a fifth of the time of rows[:, lower]
        crop = rows.index_select(1, lower) * weight[0] + rows.index_select(1, upper) * weight[1]
        yield Crop(index, top, left, crop)


def _place_masks(
    masks: Tensor, boxes: Tensor, continuous: bool, padding: int
) -> Iterator[tuple[int, Tensor, list[float], list[float]]]:
    """(index, mask, low corner, high corner) of each valid mask, in whole pixels unless continuous."""
    boxes = boxes.to(compute_dtype(boxes))
    if not continuous and len(masks):
        side = masks.shape[-1]
        masks = F.pad(masks, (padding,) * 4)
        boxes = expand_boxes(boxes, (side + 2 * padding) / side)
    valid = (boxes.abs() <= COORDINATE_LIMIT).all(1).tolist()
    if not continuous:
        boxes = torch.where(boxes.abs() <= COORDINATE_LIMIT, boxes, 0).trunc()
    for index, (mask, box) in enumerate(zip(masks, boxes.tolist(), strict=True)):
        if valid[index]:
            yield index, mask, box[:2], box[2:]


class Axis(NamedTuple):
    """One axis of one box: pixels [low, high] of an image of ``size``, over which ``side`` mask cells are stretched."""

    low: float
    high: float
    side: int
    size: int

    def pixels(self) -> int:
        """Whole pixels of the box, both ends included."""
        return max(int(self.high) - int(self.low) + 1, 1)

    def visible(self, continuous: bool) -> tuple[int, int]:
        """First and one-past-last image pixel that the mask can reach."""
        if not continuous:
            return max(int(self.low), 0), min(int(self.high) + 1, self.size)
        if not self.high > self.low:
            return 0, 0
        fade = (self.high - self.low) / self.side + 1  # zeros beyond the mask blend in over one cell
        first = max(int(self.low - fade), 0)
        past = max(min(int(self.high + fade) + 1, self.size), first)
        position = self.positions(first, past)
        inside = ((position > -1) & (position < self.side)).nonzero()
        return (first + int(inside[0]), first + int(inside[-1]) + 1) if len(inside) else (0, 0)

    def positions(self, first: int, past: int) -> Tensor:
        """Positions of pixels first..past-1 among the cells, in the continuous mode."""
        pixel = torch.arange(first, past, dtype=torch.float64)
        return (pixel + 0.5 - self.low) / (self.high - self.low) * self.side - 0.5

    def taps(self, first: int, last: int, continuous: bool, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both neighboring cells of pixels first..last-1 and their weights [2, pixels]."""
        if continuous:
            position = self.positions(first, last)
        else:
            pixel = torch.arange(first, last, dtype=torch.float64)
            position = ((pixel + 0.5 - self.low) * self.side / self.pixels() - 0.5).clamp(0, self.side - 1)
        lower = position.floor()
        cells = torch.stack([lower, lower + 1])
        weight = torch.stack([1 - (position - lower), position - lower]) * ((cells >= 0) & (cells < self.side))
        cells = cells.clamp(0, self.side - 1).to(mask.device, torch.int64)
        return cells[0], cells[1], weight.to(mask)


def paste_masks_backward(
    grad: Tensor, masks: Tensor, boxes: Tensor, continuous: bool, logits: bool, padding: int
) -> Tensor:
    """Gradient [N, H, W] of pasted probabilities -> gradient of masks [N, M, M]."""
    dtype = compute_dtype(masks)
    values = masks.to(dtype)
    out = torch.zeros(values.shape, dtype=dtype, device=values.device)
    margin = 0 if continuous else padding
    for index, mask, low, high in _place_masks(values, boxes, continuous, padding):
        dense = []
        spans = []
        for axis in (
            Axis(low[1], high[1], mask.shape[0], grad.shape[1]),
            Axis(low[0], high[0], mask.shape[1], grad.shape[2]),
        ):
            first, last = axis.visible(continuous)
            last = max(last, first)
            lower, upper, weight = axis.taps(first, last, continuous, mask)
            matrix = mask.new_zeros(last - first, axis.side)
            matrix.scatter_add_(1, torch.stack([lower, upper], 1), weight.T)
            dense.append(matrix)
            spans.append(slice(first, last))
        with torch.autocast(masks.device.type, enabled=False):
            full = dense[0].T @ grad[index][spans[0], spans[1]].to(dtype) @ dense[1]
        out[index] = full[margin : full.shape[0] - margin, margin : full.shape[1] - margin]
    if logits:
        probability = values.sigmoid()
        out = out * probability * (1 - probability)
    return out.to(masks.dtype)


def encode_masks(
    masks: Tensor,
    boxes: Tensor,
    sizes: Tensor,
    capacity: int,
    threshold: float,
    continuous: bool,
    logits: bool,
    padding: int,
) -> tuple[Tensor, Tensor]:
    """[N, M, M], [N, 4], [N, 2] (height, width) -> RLE bytes uint8 [capacity], where each mask's begin int64 [N + 1].

    Masks that do not fit whole are zeros, and the last offset is above the capacity: with that one they would fit.
    """
    shapes = [(max(h, 0), max(w, 0)) for h, w in sizes.tolist()]
    counts: list[NDArray[np.int64]] = [np.array([h * w]) for h, w in shapes]
    for crop in _crops(masks.cpu(), boxes.cpu(), shapes, continuous, logits, padding):
        inside = exceeds(crop.values, threshold, continuous).numpy()
        counts[crop.number] = _runs(inside, crop.top, crop.left, *shapes[crop.number])
    texts = [_compress(runs) for runs in counts]
    offsets = np.cumsum([0, *map(len, texts)])
    fits = b"".join(text for text, end in zip(texts, offsets[1:], strict=True) if end <= capacity)
    buffer = torch.zeros(capacity, dtype=torch.uint8)
    buffer[: len(fits)] = torch.from_numpy(np.frombuffer(fits, np.uint8).copy())
    return buffer.to(masks.device), torch.from_numpy(offsets).to(masks.device, torch.int64)


def _runs(inside: NDArray[np.bool_], top: int, left: int, height: int, width: int) -> NDArray[np.int64]:
    """Run lengths, zeros first, of a bool crop in an image of height x width read column by column."""
    bordered = np.pad(inside, ((1, 1), (0, 0)))  # every column begins and ends in 0
    row, column = np.divmod(np.flatnonzero(bordered[1:] != bordered[:-1]), inside.shape[1])
    change = np.sort((column + left) * height + row + top)
    # a full-height column that runs on into the next one ends and begins at the same place: no change there
    same = np.flatnonzero(change[1:] == change[:-1])
    change = np.delete(change, np.concatenate([same, same + 1]))
    change = change[change < height * width]
    return np.diff(change, prepend=0, append=height * width)


def _compress(runs: NDArray[np.int64]) -> bytes:
    """COCO's variable-length characters for run lengths."""
    rest = runs.copy()
    rest[3:] -= runs[1:-2]
    characters, present = [], []
    more = np.ones(len(rest), bool)
    while more.any():
        present.append(more)
        bits, rest = rest & 0x1F, rest >> 5
        more = more & np.where(bits & 0x10, rest != -1, rest != 0)
        characters.append((bits | more << 5) + 48)
    return bytes(np.stack(characters, 1)[np.stack(present, 1)].astype(np.uint8))
