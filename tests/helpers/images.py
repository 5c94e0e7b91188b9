"""Synthetic images for tests: overlapping ellipses and rectangles on textured noise, with their boxes and masks."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


def draw_image(height: int, width: int, num: int = 6) -> tuple[Tensor, dict[str, Tensor]]:
    """An image [3, H, W] in [0, 1] and its target: boxes [n, 4], labels [n] (1 ellipse, 2 rectangle), masks [n, H, W].

    Later shapes occlude earlier ones; a shape with fewer than 20 visible pixels is left out.
    """
    coarse = torch.rand(1, 3, height // 8 + 1, width // 8 + 1)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0] * 0.5
    image = image + 0.1 * torch.rand(3, height, width)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    visible, labels = [], []
    for _ in range(num):
        cy, cx = torch.rand(()) * height, torch.rand(()) * width
        ry, rx = (min(height, width) * (0.06 + 0.2 * torch.rand(2))).tolist()
        label = int(torch.randint(1, 3, ()))
        dy, dx = (y - cy) / ry, (x - cx) / rx
        shape = dy**2 + dx**2 <= 1 if label == 1 else torch.maximum(dy.abs(), dx.abs()) <= 1
        visible = [mask & ~shape for mask in visible]
        visible.append(shape)
        labels.append(label)
        color = torch.rand(3, 1)
        image[:, shape] = 0.8 * color + 0.2 * image[:, shape]
    kept = [i for i, mask in enumerate(visible) if mask.sum() >= 20 and min(mask.any(0).sum(), mask.any(1).sum()) > 2]
    masks = torch.stack([visible[i] for i in kept]) if kept else torch.zeros(0, height, width, dtype=torch.bool)
    boxes = torch.zeros(len(kept), 4)
    for i, mask in enumerate(masks):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        boxes[i] = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    target = {"boxes": boxes, "labels": torch.tensor([labels[i] for i in kept], dtype=torch.int64)}
    return image.clamp(0, 1), target | {"masks": masks.to(torch.uint8)}


def draw_image_file(path: Path, height: int = 128, width: int = 170) -> Path:
    """Draw an image and save it to a file."""
    pixels = (draw_image(height, width)[0] * 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path)
    return path


def draw_keypoints(target: dict[str, Tensor], number: int) -> Tensor:
    """Keypoints [n, number, 3] about the boxes of a target: some on edges, some outside, one in three not annotated."""
    low, high = target["boxes"][:, None, :2], target["boxes"][:, None, 2:]
    share = (torch.rand(len(low), number, 2) * 1.4 - 0.2).mul(5).round() / 5
    visibility = torch.randint(3, (len(low), number, 1))
    return torch.cat((low + share * (high - low), visibility), 2) * (visibility > 0)
