"""Argument checks of public functions (name, rule, actual; never of values on a device), and helpers of the ops."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch._subclasses import FakeTensor


class ArgumentError(ValueError, RuntimeError, AssertionError):
    """An argument that does not fit. torchvision raises any of the three, and code that catches them keeps working."""


AnyCallable = TypeVar("AnyCallable", bound=Callable[..., Any])


def _refuse_scripting(*_: object) -> NoReturn:
    raise RuntimeError(
        "fastmask does not support torch.jit.script, which PyTorch deprecates: use torch.export.export or torch.compile"
    )


def not_scriptable(function: AnyCallable) -> AnyCallable:
    """Let ``torch.jit.script(function)`` raise an error that names alternatives (also when scripted code calls it)."""
    function.__prepare_scriptable__ = _refuse_scripting  # type: ignore[attr-defined]
    return function


class NotScriptable:
    """A mixin for modules: :func:`not_scriptable`."""

    __prepare_scriptable__ = _refuse_scripting


NOT_PROVIDED = (
    "deform_conv2d",
    "DeformConv2d",
    "ps_roi_align",
    "PSRoIAlign",
    "ps_roi_pool",
    "PSRoIPool",
    "drop_block2d",
    "DropBlock2d",
    "drop_block3d",
    "DropBlock3d",
    "stochastic_depth",
    "StochasticDepth",
    "Conv3dNormActivation",
    "MLP",
    "Permute",
)


def attribute_error(module: str, name: str) -> AttributeError:
    """The error of a module's ``__getattr__``, which explains names of torchvision that are not provided."""
    if name in NOT_PROVIDED:
        return AttributeError(f"{module} does not provide {name}: no R-CNN uses it; it is in torchvision.ops")
    return AttributeError(f"module {module!r} has no attribute {name!r}")


def check_tensor(name: str, tensor: Tensor) -> None:
    """Raise an ArgumentError unless ``tensor`` is a tensor, and not a quantized one."""
    if not isinstance(tensor, Tensor):
        raise ArgumentError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.is_quantized:
        raise ArgumentError(f"{name} must not be quantized, got {tensor.dtype}")


def check_shape(name: str, tensor: Tensor, *shape: int | str) -> None:
    """Raise an ArgumentError unless ``tensor`` has the axes of ``shape``; names in it stand for any size."""
    check_tensor(name, tensor)
    fits = tensor.ndim == len(shape)
    if fits:
        for rule, actual in zip(shape, tensor.shape, strict=True):
            if rule != actual and not isinstance(rule, str):
                fits = False
    if not fits:
        raise ArgumentError(f"{name} must be [{', '.join(map(str, shape))}], got {tuple(tensor.shape)}")


def check_floating(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ArgumentError(f"{name} must be floating point, got {tensor.dtype}")


def check_device(name: str, tensor: Tensor, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ArgumentError(f"{name} must be on {other.device}, got {tensor.device}")


def check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ArgumentError(f"{name} must be at least {least}, got {value}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ArgumentError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_scale(name: str, scale: float) -> None:
    if not 0 < scale < math.inf:
        raise ArgumentError(f"{name} must be positive, got {scale}")


def check_pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """An int or a pair (height, width), each at least ``least`` -> the pair."""
    pair: Any = (value, value) if _is_integer(value) else value
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(_is_integer(side) for side in pair):
        raise ArgumentError(f"{name} must be an int or (height, width), got {value!r}")
    if min(pair) < least:
        raise ArgumentError(f"{name} must be at least {least}, got {pair}")
    return pair[0], pair[1]


def _is_integer(side: Any) -> bool:
    """Whether it is an integer of any kind; older torch.compile cannot read attributes of a symbolic one."""
    return isinstance(side, int | torch.SymInt) or hasattr(side, "__index__")


def rois_from_boxes(boxes: Tensor | Sequence[Tensor], features: Tensor) -> Tensor:
    """RoIs [K, 5] as they are, or boxes [L, 4] of each image as RoIs.

    Args:
        boxes: Tensor[K, 5] (image index, x1, y1, x2, y2), or a list of Tensor[L, 4], at most one for each image.
        features (Tensor[B, ...]): the boxes must fit its B and its device.
    """
    if isinstance(boxes, Tensor):
        check_shape("rois", boxes, "K", 5)
        check_floating("rois", boxes)
        check_device("rois", boxes, features)
        return boxes
    if not isinstance(boxes, list | tuple) or not boxes:
        raise ArgumentError(f"boxes must be a tensor [K, 5] or a list of tensors [L, 4], got {boxes!r}")
    if len(boxes) > features.shape[0]:
        raise ArgumentError(f"boxes must have at most one tensor an image ({features.shape[0]}), got {len(boxes)}")
    for i, box in enumerate(boxes):
        check_shape(f"boxes[{i}]", box, "L", 4)
        check_floating(f"boxes[{i}]", box)
        check_device(f"boxes[{i}]", box, features)
    # half types cannot count images: float16 to 2048, bfloat16 to 256
    full = [box if box.dtype == torch.float64 else box.float() for box in boxes]
    images = [torch.full_like(box[:, :1], i) for i, box in enumerate(full)]
    columns = (images[0], full[0]) if len(full) == 1 else (torch.cat(images), torch.cat(full))
    return torch.cat(columns, dim=1)


def upcast(tensor: Tensor) -> Tensor:
    """Convert half types to float32 and small integers to int32, so that areas do not overflow."""
    if tensor.is_floating_point():
        return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    return tensor if tensor.dtype in (torch.int32, torch.int64) else tensor.int()


def is_readable(tensor: Tensor) -> bool:
    """Whether reading values costs nothing: on the CPU, with values, in a program that is not being compiled."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and not isinstance(tensor, FakeTensor)


def is_autocast(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device; the meta device, where nothing is computed, knows none."""
    return tensor.device.type != "meta" and torch.is_autocast_enabled(tensor.device.type)


def reduce_loss(loss: Tensor, reduction: str, empty_mean: float | None = None) -> Tensor:
    """Apply the reduction 'none', 'mean' or 'sum'; ``empty_mean`` is the mean of an empty loss, in place of NaN."""
    if reduction not in ("none", "mean", "sum"):
        raise ArgumentError(f"Invalid reduction: reduction must be one of none, mean, sum, got {reduction!r}")
    if reduction == "mean":
        return loss.sum() * empty_mean if empty_mean is not None and loss.numel() == 0 else loss.mean()
    return loss.sum() if reduction == "sum" else loss
