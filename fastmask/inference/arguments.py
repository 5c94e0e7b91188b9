"""Checks of a Predictor's arguments, and what stands for those that are not given."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch

from fastmask.checks import check_at_least, check_pair
from fastmask.inference.bfloat16 import EMULATED, has_native_bfloat16
from fastmask.models.detection._overrides import check_static
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.models.detection.matterport import MatterportMaskRCNN


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
    """The dtype of weights and feature maps; "auto": bfloat16 on CUDA, else the model's own.

    A bfloat16 that a CPU only emulates is warned of.
    """
    own = next(model.parameters())
    if dtype == "auto":
        dtype = torch.bfloat16 if own.device.type == "cuda" else own.dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be 'auto' or a floating torch.dtype, got {dtype!r}")
    if dtype == torch.bfloat16 and own.device.type == "cpu" and own.dtype != dtype and not has_native_bfloat16():
        warnings.warn(EMULATED.format(dtype), stacklevel=3)
    return dtype


def check_fuse(fuse: str, compile: bool) -> None:
    """ValueError for oneDNN's layers under torch.compile, which does not trace all of them."""
    if fuse == "mkldnn" and compile:
        raise ValueError("fuse must not be 'mkldnn' with compile, which fuses what is left 'off'")


def parse_size(size: Any) -> tuple[int, int] | None:
    """(height, width) that images are padded to; None for "exact"."""
    if size == "exact":
        return None
    if isinstance(size, str) or not isinstance(size, Sequence):
        raise ValueError(f"size must be (height, width) or 'exact', got {size!r}")
    return check_pair("size", size, 1)


def choose_detections(model: GeneralizedRCNN, detections: int | None) -> int:
    """Maximum number of detections of an image; None: the model's."""
    kept: int = model.roi_heads.detections_per_img
    detections = kept if detections is None else detections
    if not isinstance(detections, int) or not 0 <= detections <= kept:
        raise ValueError(
            f"detections must be in [0, {kept}], as box_detections_per_img of the model keeps no more, got {detections}"
        )
    return detections


def check_views(
    model: GeneralizedRCNN, flip_test: bool, test_sizes: Sequence[int] | None, others: dict[str, Any]
) -> bool:
    """Whether there is test-time augmentation; ValueError where that is not possible, such as with ``others`` set."""
    if test_sizes is not None:
        sizes: list[Any] = [None] if isinstance(test_sizes, str | int) else list(test_sizes)
        if not sizes or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
            raise ValueError(f"test_sizes must be positive integers, got {test_sizes!r}")
        if model.transform.fixed_size is not None:
            raise ValueError(f"test_sizes must not be given with a fixed_size, got {model.transform.fixed_size}")
    if not flip_test and test_sizes is None:
        return False
    if model.roi_heads.has_keypoint():
        raise ValueError("flip_test and test_sizes must not be given for a model with a keypoint branch")
    if isinstance(model, MatterportMaskRCNN):  # its candidates end at their last pixels, and its canvas is of one size
        raise ValueError("flip_test and test_sizes must not be given for a maskrcnn_matterport")
    for name, value in others.items():
        if value:
            raise ValueError(f"{name} must not be given with flip_test or test_sizes, got {value}")
    return True
