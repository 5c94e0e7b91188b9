"""Inputs of the cases: images, boxes, masks and pyramids, drawn from a generator."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmask.kernels.predict import inputs
from fastmask.kernels.predict.inputs import IMAGE_SIZE, PADDED_SIZE, STRIDES, boxes_in

__all__ = [
    "IMAGE_SIZE",
    "PADDED_SIZE",
    "STRIDES",
    "blob_masks",
    "boxes_in",
    "clustered_boxes",
    "pyramid",
    "textured_image",
]


def clustered_boxes(generator: torch.Generator, num: int) -> Tensor:
    """Boxes [num, 4] in clusters of about 80, of which NMS keeps few."""
    centers = boxes_in(generator, max(num // 80, 1), IMAGE_SIZE)
    which = torch.randint(len(centers), (num,), generator=generator)
    return centers[which] + 4 * torch.randn(num, 4, generator=generator)


def pyramid(
    generator: torch.Generator,
    device: torch.device,
    batch: int,
    dtype: torch.dtype,
    channels_last: bool,
    size: tuple[int, int] = PADDED_SIZE,
    strides: tuple[int, ...] = STRIDES,
    channels: int = 256,
) -> dict[str, Tensor]:
    """Feature maps P2 to P5 of 256 channels, or of other strides and channels, of images padded to ``size``."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    maps = {}
    for i, stride in enumerate(strides):
        shape = (batch, channels, size[0] // stride, size[1] // stride)
        maps[str(i)] = torch.randn(shape, generator=generator).to(device, dtype).contiguous(memory_format=memory_format)
    return maps


def textured_image(generator: torch.Generator, size: tuple[int, int]) -> Tensor:
    """A synthetic image [3, H, W] in [0, 1]: rectangles on coarse and fine noise."""
    coarse = torch.rand(1, 3, size[0] // 16, size[1] // 16, generator=generator)
    image = F.interpolate(coarse, size, mode="bilinear")[0] * 0.6 + 0.1 * torch.rand(3, *size, generator=generator)
    for x1, y1, x2, y2 in boxes_in(generator, 40, size).int().tolist():
        image[:, y1:y2, x1:x2] = 0.3 * image[:, y1:y2, x1:x2] + 0.7 * torch.rand(3, 1, 1, generator=generator)
    return image


def blob_masks(
    generator: torch.Generator, device: torch.device, num: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Probabilities [num, 1, 28, 28] of blobs, and their boxes in an image of that size, on a device."""
    masks, boxes = inputs.blob_masks(generator, num, size)
    return masks.to(device), boxes.to(device)
