"""What public ops share: checks (name, rule, actual; never of values), refusals, RoIs from boxes, wider dtypes."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

AnyCallable = TypeVar("AnyCallable", bound=Callable[..., Any])


def _refuse_scripting(*_: object) -> NoReturn:
    raise RuntimeError(
        "fastmask does not support torch.jit.script, which PyTorch deprecates: use torch.export.export or torch.compile"
    )


def not_scriptable(function: AnyCallable) -> AnyCallable:
    """Make ``torch.jit.script(function)`` say what to use instead (also when it is called by scripted code)."""
    function.__prepare_scriptable__ = _refuse_scripting  # type: ignore[attr-defined]
    return function


class NotScriptable:
    """The same for modules: a mixin."""

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
    "SqueezeExcitation",
    "MLP",
    "Permute",
)


def no_attribute(module: str, name: str) -> AttributeError:
    """The error of a module's ``__getattr__``, which knows torchvision's names."""
    if name in NOT_PROVIDED:
        return AttributeError(f"{module} does not provide {name}: no R-CNN uses it; it is in torchvision.ops")
    return AttributeError(f"module {module!r} has no attribute {name!r}")


def check_shape(name: str, tensor: Tensor, *shape: int | str) -> None:
    """Raise unless ``tensor`` has as many axes as ``shape`` and agrees with its integers (names stand for any size)."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}")
    fits = tensor.ndim == len(shape)
    if fits:
        for rule, actual in zip(shape, tensor.shape, strict=True):
            if rule != actual and not isinstance(rule, str):
                fits = False
    if not fits:
        raise ValueError(f"{name} must be [{', '.join(map(str, shape))}], got {tuple(tensor.shape)}")


def check_floating(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {tensor.dtype}")


def check_device(name: str, tensor: Tensor, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{name} must be on {other.device}, got {tensor.device}")


def check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_scale(name: str, scale: float) -> None:
    if not 0 < scale < math.inf:
        raise ValueError(f"{name} must be positive, got {scale}")


def check_pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """An int or a pair (height, width), each at least ``least`` -> the pair."""
    pair: Any = (value, value) if _whole(value) else value
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(_whole(side) for side in pair):
        raise ValueError(f"{name} must be an int or (height, width), got {value!r}")
    if min(pair) < least:
        raise ValueError(f"{name} must be at least {least}, got {pair}")
    return pair[0], pair[1]


def _whole(side: Any) -> bool:
    """Whether it is an integer of any kind; older torch.compile cannot ask a symbolic one for its attributes."""
    return isinstance(side, int | torch.SymInt) or hasattr(side, "__index__")


def rois_from_boxes(boxes: Tensor | Sequence[Tensor], features: Tensor) -> Tensor:
    """RoIs [K, 5] as they are, or boxes [L, 4] of each image with their image's index put before them.

    Args:
        boxes: Tensor[K, 5] (image index, x1, y1, x2, y2), or a list of Tensor[L, 4], at most one for each image.
        features (Tensor[B, ...]): of which B and the device are checked.
    """
    if isinstance(boxes, Tensor):
        check_shape("rois", boxes, "K", 5)
        check_floating("rois", boxes)
        check_device("rois", boxes, features)
        return boxes
    if not isinstance(boxes, list | tuple) or not boxes:
        raise ValueError(f"boxes must be a tensor [K, 5] or a list of tensors [L, 4], got {boxes!r}")
    if len(boxes) > features.shape[0]:
        raise ValueError(f"boxes must have at most one tensor an image ({features.shape[0]}), got {len(boxes)}")
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
    """The wider type of the same kind, so that areas do not overflow: half -> float32, small integers -> int32."""
    if tensor.is_floating_point():
        return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    return tensor if tensor.dtype in (torch.int32, torch.int64) else tensor.int()


def reduce_loss(loss: Tensor, reduction: str, empty_mean: float | None = None) -> Tensor:
    """'none', 'mean' or 'sum' of a loss; with ``empty_mean``, the mean of nothing is that rather than NaN."""
    check_choice("reduction", reduction, ("none", "mean", "sum"))
    if reduction == "mean":
        return loss.sum() * empty_mean if empty_mean is not None and loss.numel() == 0 else loss.mean()
    return loss.sum() if reduction == "sum" else loss
