"""Checks of the ground truth that users pass in."""

import torch
from torch import Tensor

from fastmask.checks import ArgumentError, check_shape


def check_targets(targets: list[dict[str, Tensor]] | None, images: list[Tensor], masks: bool) -> None:
    """Raise an ArgumentError unless each image has a target that fits. Boxes on the CPU must have an area."""
    if targets is None or len(targets) != len(images):
        raise ArgumentError(f"targets must be one dict an image ({len(images)}), got {targets and len(targets)}")
    wanted = ("boxes", "labels", "masks") if masks else ("boxes", "labels")
    for i, (target, image) in enumerate(zip(targets, images, strict=True)):
        for key in wanted:
            if key not in target:
                raise ArgumentError(f"targets[{i}] must have {', '.join(wanted)}, got {', '.join(target) or 'nothing'}")
        boxes, labels = target["boxes"], target["labels"]
        check_shape(f"targets[{i}]['boxes']", boxes, "N", 4)
        if not boxes.is_floating_point():
            raise ArgumentError(f"targets[{i}]['boxes'] must be floating point, got {boxes.dtype}")
        check_shape(f"targets[{i}]['labels']", labels, boxes.shape[0])
        if labels.dtype != torch.int64:
            raise ArgumentError(f"targets[{i}]['labels'] must be int64, got {labels.dtype}")
        if masks:
            check_shape(f"targets[{i}]['masks']", target["masks"], boxes.shape[0], *image.shape[-2:])
        # on other devices reading values would be a host sync
        if boxes.device.type == "cpu" and not torch.compiler.is_compiling():
            flat = ~(boxes[:, 2:] > boxes[:, :2]).all(1)
            if bool(flat.any()):
                first = boxes[flat][0].tolist()
                raise ArgumentError(f"targets[{i}]['boxes'] must have positive width and height, got {first}")
