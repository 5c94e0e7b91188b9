"""Checks of the ground truth that users pass in."""

import math

import torch
from torch import Tensor

from fastmask.checks import ArgumentError, check_shape, is_readable


def check_targets(
    targets: list[dict[str, Tensor]] | None, images: list[Tensor], masks: bool, num_classes: int | None = None
) -> None:
    """Raise an ArgumentError unless each image has a target that fits.

    Values are checked where targets are on the CPU, whatever the model's device: on another one reading them would be
    a host sync. Boxes must be finite and have an area, labels be classes, masks in [0, 1].

    Args:
        targets, images: as the model gets them.
        masks: whether targets must have masks.
        num_classes: number of classes with background; None if it is not known.
    """
    check_boxes(targets, images)
    assert targets is not None
    wanted = ("boxes", "labels", "masks") if masks else ("boxes", "labels")
    for i, (target, image) in enumerate(zip(targets, images, strict=True)):
        for key in wanted:
            if key not in target:
                raise ArgumentError(f"targets[{i}] must have {', '.join(wanted)}, got {', '.join(target) or 'nothing'}")
        boxes, labels = target["boxes"], target["labels"]
        check_shape(f"targets[{i}]['labels']", labels, boxes.shape[0])
        if labels.dtype != torch.int64:
            raise ArgumentError(f"targets[{i}]['labels'] must be int64, got {labels.dtype}")
        if masks:
            check_shape(f"targets[{i}]['masks']", target["masks"], boxes.shape[0], *image.shape[-2:])
        _check_range(f"targets[{i}]['labels']", labels, 1, math.inf if num_classes is None else num_classes - 1)
        if masks and target["masks"].dtype != torch.bool:
            _check_range(f"targets[{i}]['masks']", target["masks"], 0, 1)


def check_boxes(targets: list[dict[str, Tensor]] | None, images: list[Tensor]) -> None:
    """:func:`check_targets` of boxes alone, where what else a target has is a user's own."""
    if targets is None or len(targets) != len(images):
        raise ArgumentError(f"targets must be one dict an image ({len(images)}), got {targets and len(targets)}")
    for i, target in enumerate(targets):
        if "boxes" not in target:
            raise ArgumentError(f"targets[{i}] must have boxes, got {', '.join(target) or 'nothing'}")
        check_shape(f"targets[{i}]['boxes']", target["boxes"], "N", 4)
        _check_boxes(f"targets[{i}]['boxes']", target["boxes"])


def _check_boxes(name: str, boxes: Tensor) -> None:
    if not is_readable(boxes):
        return
    finite, positive = boxes.isfinite().all(1), (boxes[:, 2:] > boxes[:, :2]).all(1)
    for good, rule in ((finite, "be finite"), (positive, "have positive width and height")):
        if not bool(good.all()):
            raise ArgumentError(f"{name} must {rule}, got {boxes[~good][0].tolist()}")


def _check_range(name: str, values: Tensor, least: int, most: float) -> None:
    """NaN is out of any range."""
    if not is_readable(values) or values.numel() == 0:
        return
    for extreme in (float(values.amin()), float(values.amax())):
        if not least <= extreme <= most:
            rule = f"be at least {least}" if most == math.inf else f"be in [{least}, {most}]"
            raise ArgumentError(f"{name} must {rule}, got {extreme:g}")
