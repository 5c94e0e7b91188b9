"""A user's own function on training samples: called reproducibly, and checked in what it returns."""

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmask.data.augment import MIN_SIDE, Sample, Transform

FIELDS = ("boxes", "labels", "masks", "has_mask", "keypoints")


class TransformError(ValueError):
    """What a user's function returns is no sample."""


def apply_transform(sample: Sample, transform: Transform, seed: int, num_classes: int) -> Sample:
    """A sample with what the function makes of its image and target, see :class:`fastmask.data.augment.Augmentation`.

    Boxes are clipped to the image; instances whose box has a side below a pixel then, or whose mask is empty, are
    dropped.

    Args:
        sample: an augmented image and its instances.
        transform: the function.
        seed: of what it draws from torch, NumPy or random, whose states are as before afterwards.
        num_classes: labels are from 1 to this.

    Raises:
        TransformError: it returns something else than an image and target of the rules there.
    """
    image = torch.tensor(sample.pixels).permute(2, 0, 1).contiguous()
    given = {name: getattr(sample, name) for name in FIELDS}
    target = {name: torch.tensor(value) for name, value in given.items() if value is not None}
    with _seeded(seed):
        returned = transform(image, dict(target))
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise TransformError(f"transform must return an image and a target, got {_describe(returned)}")
    pixels, found = returned
    _check_image(pixels, image.shape)
    _check_target(found, target, pixels.shape[1:], num_classes)
    height, width = pixels.shape[1:]
    boxes = torch.as_tensor(found["boxes"], dtype=torch.float32).numpy().clip(0, [width, height, width, height])
    kept = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(1)
    values = {name: torch.as_tensor(found[name]).numpy() for name in target if name != "boxes"}
    if "masks" in values:
        known = values.get("has_mask", np.ones(len(boxes), bool))
        kept &= values["masks"].any((1, 2)) | ~known
    own: dict[str, Any] = {name: value[kept].astype(given[name].dtype, copy=False) for name, value in values.items()}
    channels_last = np.ascontiguousarray(torch.as_tensor(pixels).permute(1, 2, 0).numpy())
    return sample._replace(pixels=channels_last, boxes=boxes[kept].astype(np.float32), **own)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs, too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _check_image(image: Any, given: torch.Size) -> None:
    channels, height, width = given
    fits = isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == channels
    if not fits or not (1 <= image.shape[1] <= height and 1 <= image.shape[2] <= width):
        rule = f"an image [{channels}, h, w] of uint8, with h up to {height} and w up to {width}"
        raise TransformError(f"transform must return {rule}, got {_describe(image)}")


def _check_target(target: Any, given: Mapping[str, Tensor], size: torch.Size, num_classes: int) -> None:
    if not isinstance(target, Mapping) or set(target) != set(given):
        got = ", ".join(map(str, target)) if isinstance(target, Mapping) else _describe(target)
        raise TransformError(f"transform must return a target of {', '.join(given)}, got {got or 'nothing'}")
    number = len(target["boxes"]) if isinstance(target["boxes"], Tensor) and target["boxes"].ndim else 0
    shapes = {"boxes": (number, 4), "masks": (number, *size)}
    for name, before in given.items():
        value, shape = target[name], shapes.get(name, (number, *before.shape[1:]))
        if not isinstance(value, Tensor) or tuple(value.shape) != shape or not _is_alike(value, before):
            kind = str(before.dtype).removeprefix("torch.")
            raise TransformError(f"transform must return {name} {list(shape)} of {kind}, got {_describe(value)}")
    if not torch.as_tensor(target["boxes"]).isfinite().all():
        raise TransformError("transform must return finite boxes, got NaN or infinity")
    labels = torch.as_tensor(target["labels"])
    if number and not (labels.min() >= 1 and labels.max() <= num_classes):
        raise TransformError(f"transform must return labels in [1, {num_classes}], got {labels.tolist()}")


def _is_alike(value: Tensor, before: Tensor) -> bool:
    """Of a dtype that stands for the other without loss of meaning."""
    if before.dtype == torch.bool:
        return value.dtype in (torch.bool, torch.uint8)
    return value.is_floating_point() == before.is_floating_point() and value.dtype != torch.bool


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__
