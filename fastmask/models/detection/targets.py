"""Ground truth as users give it, checked and padded."""

import torch
from torch import Tensor

from fastmask.ops._utils import check_shape
from fastmask.structures import Targets


def check_targets(targets: list[dict[str, Tensor]] | None, images: list[Tensor], masks: bool) -> None:
    """Raise a ValueError unless there is a fitting target for each image. Boxes on the CPU must have an area."""
    if targets is None or len(targets) != len(images):
        raise ValueError(f"targets must be one dict an image ({len(images)}), got {targets and len(targets)}")
    wanted = ("boxes", "labels", "masks") if masks else ("boxes", "labels")
    for i, (target, image) in enumerate(zip(targets, images, strict=True)):
        for key in wanted:
            if key not in target:
                raise ValueError(f"targets[{i}] must have {', '.join(wanted)}, got {', '.join(target) or 'nothing'}")
        boxes, labels = target["boxes"], target["labels"]
        check_shape(f"targets[{i}]['boxes']", boxes, "N", 4)
        if not boxes.is_floating_point():
            raise ValueError(f"targets[{i}]['boxes'] must be floating point, got {boxes.dtype}")
        check_shape(f"targets[{i}]['labels']", labels, boxes.shape[0])
        if labels.dtype != torch.int64:
            raise ValueError(f"targets[{i}]['labels'] must be int64, got {labels.dtype}")
        if masks:
            check_shape(f"targets[{i}]['masks']", target["masks"], boxes.shape[0], *image.shape[-2:])
        # elsewhere a look would wait for the device
        if boxes.device.type == "cpu" and not torch.compiler.is_compiling():
            flat = ~(boxes[:, 2:] > boxes[:, :2]).all(1)
            if bool(flat.any()):
                first = boxes[flat][0].tolist()
                raise ValueError(f"targets[{i}]['boxes'] must have positive width and height, got {first}")


def padded_targets(targets: list[dict[str, Tensor]], pixels: Tensor, masks: bool) -> Targets:
    """Targets in pixels of the batch [B, 3, H, W], padded to the longest (at least one object)."""
    batch, _, height, width = pixels.shape
    most = max(1, *(len(target["labels"]) for target in targets))
    boxes = pixels.new_zeros(batch, most, 4)
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
