"""Parts of baselines: masks encoded by pycocotools, and detectron2's pasting, rewritten as it cannot be installed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastmask.benchmarks.case import HAS_PYCOCOTOOLS
from fastmask.cocoapi import mask as coco
from fastmask.data.parse import decode_counts

CHUNK = 2**30  # bytes of pasted probabilities at once on a GPU, detectron2's own limit


def detectron2_paste(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """detectron2's pasting: masks [N, 1, M, M] sampled at pixel centers of their boxes [N, 4] -> bool [N, H, W].

    On a GPU every mask is sampled on the whole image, as many at once as a gigabyte holds; on a CPU one by one, inside
    its box only. Source: detectron2/layers/mask_ops.py (paste_masks_in_image).
    """
    height, width = size
    out = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    if masks.device.type == "cpu":
        for n in range(len(masks)):
            x0, y0 = (int(side) for side in (boxes[n, :2].floor() - 1).clamp(min=0))
            x1 = int((boxes[n, 2].ceil() + 1).clamp(max=width))
            y1 = int((boxes[n, 3].ceil() + 1).clamp(max=height))
            out[n, y0:y1, x0:x1] = sample_masks(masks[n : n + 1], boxes[n : n + 1], (y0, y1), (x0, x1))[0] >= threshold
        return out
    step = max(CHUNK // (4 * height * width), 1)
    for start in range(0, len(masks), step):
        rows = slice(start, start + step)
        out[rows] = sample_masks(masks[rows], boxes[rows], (0, height), (0, width)) >= threshold
    return out


def sample_masks(masks: Tensor, boxes: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Probabilities [N, rows, columns] at pixel centers, zeros beyond the masks."""
    x0, y0, x1, y1 = boxes.split(1, dim=1)
    y = (torch.arange(*rows, device=masks.device) + 0.5 - y0) / (y1 - y0) * 2 - 1  # [N, rows]
    x = (torch.arange(*columns, device=masks.device) + 0.5 - x0) / (x1 - x0) * 2 - 1  # [N, columns]
    shape = (len(masks), y.shape[1], x.shape[1])
    grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], dim=3)
    return F.grid_sample(masks.float(), grid, align_corners=False)[:, 0]


def encode_pasted(pasted: Tensor) -> list[Any]:
    """Bool masks [N, H, W], copied to the host -> their RLE by pycocotools.

    Without pycocotools: the copies themselves, only a part of the work.
    """
    masks = pasted.cpu().numpy().view(np.uint8)
    return [coco.encode(np.asfortranarray(mask)) for mask in masks] if HAS_PYCOCOTOOLS else list(masks)


ENCODER = "pycocotools.encode" if HAS_PYCOCOTOOLS else "a copy to the host (there is no pycocotools to encode them)"


def decode_masks(masks: Sequence[Any]) -> NDArray[np.uint8]:
    """Masks from :func:`encode_pasted` or ``ops.encode_masks`` -> uint8 [N, H, W]."""
    decoded = [decode_rle(mask) if isinstance(mask, dict) else mask for mask in masks]
    return np.stack(decoded) if decoded else np.zeros((0, 1, 1), np.uint8)


def decode_rle(rle: dict[str, Any]) -> NDArray[np.uint8]:
    """COCO's RLE as uint8 [H, W], without pycocotools."""
    runs = decode_counts(rle["counts"])
    height, width = rle["size"]
    return np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs).reshape(width, height).T
