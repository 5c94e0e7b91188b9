"""Checks of the ground truth that users pass in."""

import math

import torch
from torch import Tensor

from fastmask.checks import ArgumentError, check_shape, is_readable


def check_targets(
    targets: list[dict[str, Tensor]] | None,
    images: list[Tensor],
    masks: bool,
    num_classes: int | None = None,
    num_keypoints: int | None = 0,
) -> None:
    """Raise an ArgumentError unless each image has a target that fits.

    Values are checked where targets are on the CPU, whatever the model's device: on another one reading them would be
    a host sync. Boxes must be finite and have an area, labels be classes, masks in [0, 1], keypoints finite.

    Args:
        targets, images: as the model gets them.
        masks: whether targets must have masks.
        num_classes: number of classes with background; None if it is not known.
        num_keypoints: keypoints that targets must have; 0 for none, None for any number.
    """
    check_boxes(targets, images)
    assert targets is not None
    keypoints = num_keypoints != 0
    wanted = ("boxes", "labels", *["masks"] * masks, *["keypoints"] * keypoints)
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
        if keypoints:
            number = targets[0]["keypoints"].shape[1:2].numel() if num_keypoints is None else num_keypoints
            check_shape(f"targets[{i}]['keypoints']", target["keypoints"], boxes.shape[0], number, 3)
            _check_keypoints(f"targets[{i}]['keypoints']", target["keypoints"])
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


def _check_keypoints(name: str, keypoints: Tensor) -> None:
    if not keypoints.is_floating_point():
        raise ArgumentError(f"{name} must be floating point, got {keypoints.dtype}")
    if is_readable(keypoints) and not bool(keypoints.isfinite().all()):
        raise ArgumentError(f"{name} must be finite, got {keypoints[~keypoints.isfinite().all(2)][0].tolist()}")


def _check_range(name: str, values: Tensor, least: int, most: float) -> None:
    """NaN is out of any range."""
    if not is_readable(values) or values.numel() == 0:
        return
    for extreme in (float(values.amin()), float(values.amax())):
        if not least <= extreme <= most:
            rule = f"be at least {least}" if most == math.inf else f"be in [{least}, {most}]"
            raise ArgumentError(f"{name} must {rule}, got {extreme:g}")
