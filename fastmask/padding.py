"""Objects of several images as tensors of one shape."""

import torch
from torch import Tensor

from fastmask.structures import Targets


def padded_targets(targets: list[dict[str, Tensor]], pixels: Tensor, masks: bool) -> Targets:
    """Targets in pixels of the batch [B, 3, H, W], padded to the longest (at least one object)."""
    batch, _, height, width = pixels.shape
    most = max(1, *(len(target["labels"]) for target in targets))
    dtype = pixels.dtype if pixels.is_floating_point() else torch.float32
    boxes = torch.zeros(batch, most, 4, dtype=dtype, device=pixels.device)
    labels = torch.zeros(batch, most, dtype=torch.int64, device=pixels.device)
    painted = torch.zeros(batch, most, height, width, dtype=torch.uint8, device=pixels.device) if masks else None
    for i, target in enumerate(targets):
        num = len(target["labels"])
        boxes[i, :num] = target["boxes"]
        labels[i, :num] = target["labels"]
        if painted is not None:
            mask = with_border(target["masks"], height, width)
            painted[i, :num, : mask.shape[1], : mask.shape[2]] = mask
    count = torch.tensor([len(target["labels"]) for target in targets], device=pixels.device)
    return Targets(boxes, labels, painted, count)


def with_border(masks: Tensor, height: int, width: int) -> Tensor:
    """Masks [N, h, w] with their last row and column repeated once, where the padded (height, width) has room for it.

    RoIAlign at the image's border then reads what it reads at the border of an unpadded mask.
    """
    rows, columns = (
        torch.arange(min(size + 1, room), device=masks.device).clamp(max=size - 1)
        for size, room in ((masks.shape[1], height), (masks.shape[2], width))
    )
    return masks[:, rows][:, :, columns]
