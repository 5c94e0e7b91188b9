"""Checks of a Predictor's arguments, and what stands for those that are not given."""

from typing import Literal

import torch

from fastmask.checks import check_at_least
from fastmask.models.detection._overrides import check_static
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN


def check_number(name: str, number: int) -> None:
    """Raise a ValueError for anything but a positive int."""
    if not isinstance(number, int):
        raise ValueError(f"{name} must be an int, got {number!r}")
    check_at_least(name, number, 1)


def check_model(model: GeneralizedRCNN) -> None:
    """Raise a ValueError for anything but a model whose static program is what it does."""
    if not isinstance(model, GeneralizedRCNN):
        kind = type(model).__name__
        raise ValueError(f"model must be one of fastmask.models.detection, not compiled or wrapped, got {kind}")
    check_static(model, training=False, transform=True)


def choose_dtype(model: GeneralizedRCNN, dtype: torch.dtype | Literal["auto"]) -> torch.dtype:
    """The dtype of weights and feature maps; "auto": bfloat16 on CUDA, else the model's own."""
    own = next(model.parameters())
    if dtype == "auto":
        dtype = torch.bfloat16 if own.device.type == "cuda" else own.dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be 'auto' or a floating torch.dtype, got {dtype!r}")
    return dtype


def choose_detections(model: GeneralizedRCNN, detections: int | None) -> int:
    """Maximum number of detections of an image; None: the model's."""
    kept: int = model.roi_heads.detections_per_img
    detections = kept if detections is None else detections
    if not isinstance(detections, int) or not 0 <= detections <= kept:
        raise ValueError(
            f"detections must be in [0, {kept}], as box_detections_per_img of the model keeps no more, got {detections}"
        )
    return detections
