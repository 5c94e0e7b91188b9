"""Boxes from regression deltas, clipped and tested, in plain PyTorch of any device; in the deltas' dtype or float32.

In few operations, each of which is a launch on a GPU: what is the same for both axes is done at once, and dividing by a
weight of 1 is left out. Specification: reference.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def decode_boxes(
    deltas: Tensor,
    references: Tensor,
    sizes: Tensor,
    scores: Tensor,
    count: Tensor | None,
    weights: Sequence[float],
    most_growth: float,
    min_size: float,
    min_score: float,
    above: bool,
) -> tuple[Tensor, Tensor]:
    """Deltas [B, N, 4] on references [B, M, 4], N / M of them on each -> boxes [B, N, 4], valid [B, N].

    Boxes are clipped to the image sizes [B, 2] (height, width). Valid are those of the first ``count`` [B] references
    with sides of at least ``min_size`` and scores [B, N] of at least ``min_score``, or ``above`` it.
    """
    each = references.shape[1]
    alone = each == deltas.shape[1]  # also where both are 0, which says nothing of how many there are on each
    grouped = deltas[:, :, None] if alone else deltas.unflatten(1, (each, -1))
    boxes = clip(decode(grouped, references[:, :, None], weights, most_growth), sizes).flatten(1, 2)
    valid = (boxes[..., 2:] - boxes[..., :2] >= min_size).all(2) & (
        scores > min_score if above else scores >= min_score
    )
    if count is not None:
        real = torch.arange(each, device=deltas.device) < count[:, None]  # [B, M]
        valid = valid & real if alone else (valid.unflatten(1, (each, -1)) & real[:, :, None]).flatten(1)
    return boxes, valid


def decode(deltas: Tensor, boxes: Tensor, weights: Sequence[float], most_growth: float) -> Tensor:
    """Deltas [..., 4] on boxes [..., 4] (broadcast) -> boxes [..., 4]. Source: Fast R-CNN, appendix C."""
    if deltas.dtype not in (torch.float32, torch.float64):
        deltas = deltas.float()  # bfloat16 cannot tell pixels apart from 256 on
    boxes = boxes.to(deltas.dtype)
    size = boxes[..., 2:] - boxes[..., :2]
    center = boxes[..., :2] + 0.5 * size
    shift = _divided(deltas[..., :2], weights[0], weights[1])
    growth = _divided(deltas[..., 2:], weights[2], weights[3]).clamp(max=most_growth)
    center = shift * size + center
    half = 0.5 * (torch.exp(growth) * size)
    return torch.cat((center - half, center + half), dim=-1)


def _divided(pair: Tensor, x: float, y: float) -> Tensor:
    """[..., 2] by a number along each axis, which mostly is the same, or 1."""
    if x != y:
        return torch.stack((pair[..., 0] / x, pair[..., 1] / y), dim=-1)
    return pair if x == 1 else pair / x


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [B, ..., 4] within the image sizes [B, 2] (height, width)."""
    limit = sizes.flip(1).to(boxes.dtype)  # [B, 2] (w, h)
    limit = limit.view(limit.shape[0], *[1] * (boxes.ndim - 1), 2)
    return torch.minimum(boxes.unflatten(-1, (2, 2)).clamp(min=0), limit).flatten(-2)
