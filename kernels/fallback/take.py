"""Gathering after NMS, eager fallback: kept rows, and boxes in pixels of the original images."""

from collections.abc import Sequence

import torch
from torch import Tensor


def take_rows_of(values: Sequence[Tensor], indices: Tensor) -> list[Tensor]:
    """Take rows of tensors [B, N, ...] at [B, M] -> [B, M, ...] of each; zeros at -1."""
    safe, missing = indices.clamp(min=0), indices < 0
    taken = []
    for value in values:
        if isinstance(value.shape[1], int) and value.shape[1] == 0:  # and every index is -1
            taken.append(value.new_zeros(*indices.shape, *value.shape[2:]))
            continue
        shape = (*indices.shape, *[1] * (value.ndim - 2))
        rows = value.gather(1, safe.view(shape).expand(*indices.shape, *value.shape[2:]))
        taken.append(rows.masked_fill_(missing.view(shape), 0))  # a copy, so in place
    return taken


def with_image(boxes: Tensor) -> Tensor:
    """Boxes [B, N, 4] -> RoIs [B, N, 5], with the index of each one's image first."""
    image = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
    return torch.cat((image[:, None, None].expand(-1, boxes.shape[1], 1), boxes), dim=2)


def take_kept(
    kept: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes [B, N, 4], scores [B, N] and int64 labels [B, N] at ``kept`` [B, M] -> the same [B, M], RoIs [B, M, 5].

    At -1, zeros; the RoIs there have their image's index. Without labels an empty tensor is in their place.
    """
    taken = take_rows_of((boxes, scores) if labels is None else (boxes, scores, labels), kept)
    return taken[0], taken[1], taken[2] if labels is not None else kept.new_empty(0), with_image(taken[0])


def scale_boxes(boxes: Tensor, originals: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Scale boxes [B, D, 4] from images of ``sizes`` [B, 2] (height, width) to ``originals`` [B, 2].

    Also returns the size of each box's original image [B * D, 2].
    """
    ratios = originals.to(boxes.dtype) / sizes  # [B, 2] (height, width)
    scaled = (boxes.unflatten(2, (2, 2)) * ratios.flip(1)[:, None, None]).flatten(2)
    return scaled, originals[:, None].expand(-1, boxes.shape[1], 2).clone().flatten(0, 1)
