"""Inputs of the self-test: boxes, RoIs, pyramids and masks, ordinary and adversarial, from torch's own generator."""

import torch
from torch import Tensor

NAN, INF = float("nan"), float("inf")


def draw_boxes(num: int, size: tuple[int, int] = (200, 300), largest: float = 150) -> Tensor:
    """Boxes (x1, y1, x2, y2) float32 [num, 4] of 1 to ``largest`` pixels, some reaching out of the (height, width)."""
    center = torch.rand(num, 2) * torch.tensor([size[1], size[0]])
    sides = largest ** torch.rand(num, 2)
    return torch.cat([center - sides / 2, center + sides / 2], 1)


def adversarial_boxes(size: tuple[int, int] = (200, 300)) -> Tensor:
    """One of each: no area, inverted, whole image, out of it on every side, huge, tiny, halves, NaN and inf."""
    h, w = size
    rows = [
        [10, 10, 10, 10],
        [10, 20, 50, 20],
        [60, 20, 10, 70],
        [60, 70, 10, 20],
        [0, 0, w, h],
        [-80, -90, -10, -20],
        [w + 5, 10, w + 60, 40],
        [-40, -40, w + 40, h + 40],
        [-1e5, -1e5, 1e5, 1e5],
        [-1e7, 5, 1e7, 60],
        [7, 7, 7 + 1e-4, 7 + 1e-4],
        [0.5, 1.5, 2.5, 3.5],
        [-1, -1, 1, 1],
        [-1e30, 0, 1e30, 50],
        [3e38, 3e38, 3.4e38, 3.4e38],
        [NAN, 10, 50, 60],
        [10, 10, 50, NAN],
        [10, 10, INF, 60],
        [-INF, -INF, INF, INF],
        [INF, 10, INF, 60],
    ]
    return torch.tensor(rows)


def with_images(boxes: Tensor, num_images: int) -> Tensor:
    """RoIs [K, 5]: each box with an image drawn for it."""
    return torch.cat([torch.randint(num_images, (len(boxes), 1)).to(boxes), boxes], 1)


def away_from_limits(rois: Tensor, limits: list[float]) -> Tensor:
    """Shrink RoIs whose sqrt(area) is within 1e-5 of a level's limit: rounding decides their level."""
    size = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()[:, None]
    near = ((size / torch.tensor(limits) - 1).abs() < 1e-5).any(1)
    rois[near, 3:] -= 1e-3 * (rois[near, 3:] - rois[near, 1:3])
    return rois


def draw_pyramid(levels: int, batch: int = 2, channels: int = 5, size: tuple[int, int] = (200, 300)) -> list[Tensor]:
    """Feature maps [batch, channels, H_l, W_l] of strides 4, 8, ..."""
    return [torch.randn(batch, channels, -(-size[0] // s), -(-size[1] // s)) for s in (4 << i for i in range(levels))]


def pyramid_scales(levels: int) -> list[float]:
    """Feature pixels per image pixel of those maps."""
    return [0.25 / 2**i for i in range(levels)]


def draw_masks(num: int, side: int = 28) -> Tensor:
    """Probabilities [num, side, side]: blobs and noise, so that thresholds give both simple and ragged masks."""
    noise = torch.rand(num, side, side)
    axis = torch.linspace(-1, 1, side)
    blob = torch.sigmoid(8 * (torch.rand(num, 1, 1) - torch.hypot(axis[:, None], axis[None])))
    return torch.where(torch.rand(num, 1, 1) < 0.5, blob, noise)
