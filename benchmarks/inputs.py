"""What the cases are measured on: pictures, boxes, masks and pyramids, drawn from a generator."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmask import ops

IMAGE = (800, 1344)  # padded; pixels
PICTURE = (800, 1333)
STRIDES = (4, 8, 16, 32)


def boxes_in(generator: torch.Generator, num: int, size: tuple[int, int], exponent: float = 3.2) -> Tensor:
    """Boxes of 16 to 16 * e^exponent pixels, log-uniform, inside the (height, width)."""
    corner = torch.rand(num, 2, generator=generator) * torch.tensor([size[1] - 100.0, size[0] - 100.0])
    sides = 16 * torch.exp(torch.rand(num, 2, generator=generator) * exponent)
    return ops.clip_boxes_to_image(torch.cat([corner, corner + sides], 1), size)


def clustered_boxes(generator: torch.Generator, num: int) -> Tensor:
    """Boxes in heaps of about 80, of which NMS keeps few."""
    centers = boxes_in(generator, max(num // 80, 1), PICTURE)
    which = torch.randint(len(centers), (num,), generator=generator)
    return centers[which] + 4 * torch.randn(num, 4, generator=generator)


def pyramid(
    generator: torch.Generator, device: torch.device, batch: int, dtype: torch.dtype, channels_last: bool
) -> dict[str, Tensor]:
    """P2 to P5 of 256 channels of padded pictures."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    maps = {}
    for i, stride in enumerate(STRIDES):
        shape = (batch, 256, IMAGE[0] // stride, IMAGE[1] // stride)
        maps[str(i)] = torch.randn(shape, generator=generator).to(device, dtype).contiguous(memory_format=memory_format)
    return maps


def textured(generator: torch.Generator, size: tuple[int, int]) -> Tensor:
    """A picture [3, H, W] in [0, 1] of rectangles on coarse and fine noise."""
    coarse = torch.rand(1, 3, size[0] // 16, size[1] // 16, generator=generator)
    picture = F.interpolate(coarse, size, mode="bilinear")[0] * 0.6 + 0.1 * torch.rand(3, *size, generator=generator)
    for x1, y1, x2, y2 in boxes_in(generator, 40, size).int().tolist():
        picture[:, y1:y2, x1:x2] = 0.3 * picture[:, y1:y2, x1:x2] + 0.7 * torch.rand(3, 1, 1, generator=generator)
    return picture


def blob_masks(
    generator: torch.Generator, device: torch.device, num: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Probabilities [num, 1, 28, 28] of blobs with ragged edges, and their boxes in a picture of that size."""
    axis = torch.linspace(-1, 1, 28)
    reach = 0.5 + 0.5 * torch.rand(num, 1, 1, generator=generator)
    noise = 0.3 * torch.randn(num, 28, 28, generator=generator)
    masks = torch.sigmoid(8 * (reach - torch.hypot(axis[:, None], axis[None])) + noise)
    return masks[:, None].to(device), boxes_in(generator, num, size, 3.6).to(device)
