"""Run existing torchvision code on fastmask's ops: torchvision's own are overridden, and restored again.

Two ways lead to them. Through the dispatcher: the kernels of torchvision's ops and, as its autograd formulas stay,
those of their backwards; and its autocast kernels, which would upcast the features first. And by name: what torchvision
does in Python around its ops. Both only for tensors of the patched devices; all others go where they always went.
"""

import contextlib
import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmask import ops
from fastmask.kernels.roi_align import multilevel_roi_align_backward_op
from fastmask.kernels.roi_pool import roi_pool_backward_op, roi_pool_op
from fastmask.ops._utils import rois_from_boxes
from fastmask.ops.roi_align import follow_format

_patched: dict[str, torch.library.Library] = {}  # by dispatch key
_replaced: list[tuple[Any, str, Any]] = []  # (module, name, torchvision's own)


class Patch(contextlib.AbstractContextManager["Patch"]):
    """What one call of :func:`patch_torchvision` has patched; leaving it as a context undoes that."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = tuple(keys)

    def __exit__(self, *_: object) -> None:
        self.undo()

    def undo(self) -> None:
        """Restore torchvision for this call's keys. Harmless when it has been done already."""
        for key in self.keys:
            if key in _patched:
                _patched.pop(key)._destroy()  # torch's only way to take a registration back at once
        if not _patched:
            while _replaced:
                module, name, original = _replaced.pop()
                setattr(module, name, original)


def patch_torchvision(keys: Sequence[str] = ("CUDA",)) -> Patch:
    """Let torchvision's detection ops run on fastmask's, from now on or within a ``with`` block.

    ``torchvision.ops``' nms, batched_nms, roi_align, roi_pool, MultiScaleRoIAlign and the detection models'
    paste_masks_in_image, in models that exist already too. Answers are fastmask's: see README, "Where we differ".

    Args:
        keys: dispatch keys (device types in capitals) to patch. Those that are patched already stay as they are, also
            after this call's ``with`` block.

    Returns:
        Patch: ``with patch_torchvision(): ...`` ends with the block, ``patch.undo()`` at once.

    Raises:
        ImportError: torchvision is not installed.
        ValueError: a key is not the name of a device type in capitals.
    """
    try:
        from torchvision.models import detection  # noqa: F401  # its modules hold names to replace
    except ImportError as error:
        raise ImportError("patch_torchvision needs torchvision: pip install torchvision") from error
    if isinstance(keys, str):
        raise ValueError(f"keys must be a sequence of dispatch keys such as ('CUDA',), got {keys!r}")
    for key in keys:
        if key not in ("CUDA", "CPU", "MPS", "XPU"):
            raise ValueError(f"keys must be of CUDA, CPU, MPS and XPU, got {key!r}")
    new = [key for key in dict.fromkeys(keys) if key not in _patched]
    if new and not _patched:
        _replace_names()
    for key in new:
        _patched[key] = _override(key)
    return Patch(new)


def unpatch_torchvision() -> None:
    """Restore torchvision altogether, whatever has patched it."""
    Patch(list(_patched)).undo()


def _override(key: str) -> torch.library.Library:
    """Register our kernels for torchvision's ops on one dispatch key."""
    library = torch.library.Library("torchvision", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # that one is overridden: it is meant
        for name, kernel in _KERNELS.items():
            library.impl(name, kernel, key, allow_override=True)
            autocast = f"Autocast{key}"
            if torch._C._dispatch_has_kernel_for_dispatch_key(f"torchvision::{name}", autocast):
                op = getattr(torch.ops.torchvision, name)
                library.impl(name, _without_autocast(op, key.lower()), autocast, allow_override=True)
    return library


def _without_autocast(op: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    """The op on its inputs as they are: features may be half, boxes stay float32."""

    def run(*args: Any) -> Any:
        with torch.autocast(device_type, enabled=False):
            return op(*args)

    return run


def _nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return ops.nms(dets, scores, iou_threshold)


def _roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    pooled = ops.roi_align(input, rois, (pooled_height, pooled_width), spatial_scale, sampling_ratio, aligned)
    return pooled.contiguous()  # what torchvision's shape functions promise to torch.compile, here and below


def _roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    scales, limits = [spatial_scale], [float("inf")]
    sizes = (batch_size, [height], [width])
    features: Tensor
    (features,) = multilevel_roi_align_backward_op(grad, rois, *sizes, scales, limits, sampling_ratio, aligned)
    return features.contiguous()


def _roi_pool(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Tensor, Tensor]:
    pooled, argmax = roi_pool_op(input, rois, spatial_scale, pooled_height, pooled_width)
    return pooled.contiguous(), argmax.to(torch.int32).contiguous()


def _roi_pool_backward(
    grad: Tensor,
    rois: Tensor,
    argmax: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    height: int,
    width: int,
) -> Tensor:
    features: Tensor = roi_pool_backward_op(grad, rois, argmax, spatial_scale, batch_size, height, width)
    return features.contiguous()


_KERNELS: dict[str, Callable[..., Any]] = {
    "nms": _nms,
    "roi_align": _roi_align,
    "_roi_align_backward": _roi_align_backward,
    "roi_pool": _roi_pool,
    "_roi_pool_backward": _roi_pool_backward,
}


def _replace_names() -> None:
    """Put our functions in the place of torchvision's, wherever its modules hold them."""
    from torchvision.models.detection import roi_heads
    from torchvision.ops import boxes, poolers, roi_align

    replacements: list[tuple[Callable[..., Any], Callable[..., Any]]] = [
        (boxes.batched_nms, ops.batched_nms),
        (roi_align, ops.roi_align),  # in deterministic mode torchvision's never reaches its op
        (poolers._multiscale_roi_align, _multiscale_roi_align),  # MultiScaleRoIAlign's forward, its scales known
        (roi_heads.paste_masks_in_image, ops.paste_masks_in_image),
    ]
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "torchvision" and module]
    for original, ours in replacements:
        routed = _route(original, ours)
        for module in modules:
            for name, value in list(vars(module).items()):
                if value is original:
                    _replaced.append((module, name, original))
                    setattr(module, name, routed)


def _route(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """A function of torchvision's that goes to ours for tensors of a patched device."""

    @functools.wraps(original)
    def routed(*args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else next(iter(kwargs.values()), None)
        tensor = first[0] if isinstance(first, list) and first else first
        mine = isinstance(tensor, Tensor) and tensor.device.type.upper() in _patched and not tensor.is_quantized
        return ours(*args, **kwargs) if mine else original(*args, **kwargs)

    routed.__prepare_scriptable__ = lambda: original  # type: ignore[attr-defined]  # TorchScript takes torchvision's
    return routed


def _multiscale_roi_align(
    features: list[Tensor], boxes: list[Tensor], output_size: Any, sampling_ratio: int, scales: Any, mapper: Any
) -> Tensor:
    """torchvision.ops.poolers._multiscale_roi_align in one op."""
    features = [feature.to(features[0].dtype) for feature in features]  # autocast may have mixed them
    pooled = ops.multilevel_roi_align(
        features,
        rois_from_boxes(boxes, features[0]),
        output_size,
        scales,
        sampling_ratio,
        canonical_scale=mapper.s0,
        canonical_level=mapper.lvl0,
    )
    return follow_format(pooled, features[0])
