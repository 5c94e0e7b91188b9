"""What tests draw: boxes, RoIs, pyramids and masks, ordinary and hostile."""

import torch
from torch import Tensor

NAN, INF = float("nan"), float("inf")
HALF = (torch.float16, torch.bfloat16)
FLOATS = (torch.float64, torch.float32, *HALF)


def draw_boxes(num: int, size: tuple[int, int] = (200, 300), largest: float = 150) -> Tensor:
    """Boxes (x1, y1, x2, y2) float32 [num, 4] of 1 to ``largest`` pixels, some reaching out of the (height, width)."""
    center = torch.rand(num, 2) * torch.tensor([size[1], size[0]])
    sides = largest ** torch.rand(num, 2)
    return torch.cat([center - sides / 2, center + sides / 2], 1)


def hostile_boxes(size: tuple[int, int] = (200, 300)) -> Tensor:
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


def finite(boxes: Tensor) -> Tensor:
    """Those that torchvision's CPU kernels survive (it lists every sample of an adaptive grid): a mask [N]."""
    return (boxes.abs() < 1e4).all(1)


def with_images(boxes: Tensor, num_images: int) -> Tensor:
    """RoIs [K, 5]: each box with an image drawn for it."""
    return torch.cat([torch.randint(num_images, (len(boxes), 1)).to(boxes), boxes], 1)


def draw_pyramid(levels: int, batch: int = 2, channels: int = 5, size: tuple[int, int] = (200, 300)) -> list[Tensor]:
    """Feature maps [batch, channels, H_l, W_l] of strides 4, 8, ..."""
    return [torch.randn(batch, channels, -(-size[0] // s), -(-size[1] // s)) for s in (4 << i for i in range(levels))]


def pyramid_scales(levels: int) -> list[float]:
    return [0.25 / 2**i for i in range(levels)]


def strided(tensor: Tensor, layout: str) -> Tensor:
    """The same values in other strides."""
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "permuted":  # every axis elsewhere, and every second element of a wider tensor
        wide = tensor.permute(3, 1, 0, 2).repeat_interleave(2, dim=3).contiguous()
        return wide[..., ::2].permute(2, 1, 3, 0)
    if layout == "expanded":  # one image and one channel, seen many times
        return tensor[:1, :1].expand_as(tensor)
    return tensor.contiguous()


LAYOUTS = ("contiguous", "channels_last", "permuted", "expanded")


def draw_masks(num: int, side: int = 28) -> Tensor:
    """Probabilities [num, side, side]: blobs and noise, so that thresholds give both simple and ragged masks."""
    noise = torch.rand(num, side, side)
    axis = torch.linspace(-1, 1, side)
    blob = torch.sigmoid(8 * (torch.rand(num, 1, 1) - torch.hypot(axis[:, None], axis[None])))
    return torch.where(torch.rand(num, 1, 1) < 0.5, blob, noise)
