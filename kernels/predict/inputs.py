"""Inputs of benchmarks and predictions: boxes and masks, drawn from a generator on the CPU."""

import torch
from torch import Tensor

PADDED_SIZE = (800, 1344)  # pixels (height, width)
IMAGE_SIZE = (800, 1333)
STRIDES = (4, 8, 16, 32)
CHANNELS = 256
LIMITS = (112.0, 224.0, 448.0, 896.0)  # largest sides of the levels' RoIs


def boxes_in(generator: torch.Generator, num: int, size: tuple[int, int], exponent: float = 3.2) -> Tensor:
    """Boxes of 16 to 16 * e^exponent pixels, log-uniform, inside the (height, width)."""
    corner = torch.rand(num, 2, generator=generator) * torch.tensor([size[1] - 100.0, size[0] - 100.0])
    sides = 16 * torch.exp(torch.rand(num, 2, generator=generator) * exponent)
    most = torch.tensor([size[1], size[0]] * 2)
    return torch.minimum(torch.cat([corner, corner + sides], 1).clamp(min=0), most)


def blob_masks(generator: torch.Generator, num: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Probabilities [num, 1, 28, 28] of blobs with ragged edges, and their boxes in an image of that size."""
    axis = torch.linspace(-1, 1, 28)
    reach = 0.5 + 0.5 * torch.rand(num, 1, 1, generator=generator)
    noise = 0.3 * torch.randn(num, 28, 28, generator=generator)
    masks = torch.sigmoid(8 * (reach - torch.hypot(axis[:, None], axis[None])) + noise)
    return masks[:, None], boxes_in(generator, num, size, 3.6)


def empty_pyramid(
    batch: int, dtype: torch.dtype, channels_last: bool, strides: tuple[int, ...] = STRIDES, channels: int = CHANNELS
) -> list[Tensor]:
    """P2 to P5 of padded images, or other maps of them, for launchers that only read shapes and strides."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    sizes = [(batch, channels, PADDED_SIZE[0] // stride, PADDED_SIZE[1] // stride) for stride in strides]
    return [torch.empty(size, dtype=dtype, memory_format=memory_format) for size in sizes]


def draw_heatmaps(generator: torch.Generator, num: int, points: int = 17, side: int = 56) -> Tensor:
    """Heatmaps [num, points, side, side] with a peak each and noise, upsampled twofold as by a predictor."""
    place = torch.arange(side // 2)
    center = torch.rand(2, num, points, 1, generator=generator) * (side // 2)
    y, x = (torch.exp(-((place - axis) ** 2) / 4) for axis in center)
    noise = torch.randn(num, points, side // 2, side // 2, generator=generator)
    coarse = 10 * y[..., None] * x[..., None, :] + 0.1 * noise
    return torch.nn.functional.interpolate(coarse, scale_factor=2.0, mode="bilinear")
