"""Registration of Triton kernels: for CUDA and ROCm tensors; with TRITON_INTERPRET=1 for CPU tensors, interpreted.

``FASTMASK_KERNELS=off`` in the environment selects the eager fallback of every op, and
``FASTMASK_KERNELS=off:nms_padded,...`` that of some ops. It is read once, at import.
"""

import contextlib
import functools
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

try:
    from fastmask.kernels import dispatch
except (ImportError, AttributeError):  # of a PyTorch that it does not know
    dispatch = None  # type: ignore[assignment]

INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"  # must be set before Triton is first imported
HAS_TRITON = importlib.util.find_spec("triton") is not None

OPS = (
    "multilevel_roi_align",
    "multilevel_roi_align_backward",
    "roi_pool",
    "roi_pool_backward",
    "nms_padded",
    "soft_nms_padded",
    "paste_masks",
    "paste_masks_backward",
    "encode_masks",
    "bias_act_",
    "linear_add_relu",
    "predict_anchors",
    "top_anchors",
    "decode_boxes",
    "decode_levels",
    "select_candidates",
    "take_kept",
    "scale_boxes",
    "class_masks",
    "decode_keypoints",
    "preprocess",
    "stem_conv",
    "max_pool2d",
)


def parse_switch(text: str) -> frozenset[str]:
    """The ops that ``FASTMASK_KERNELS`` switches off.

    Raises:
        ValueError: it is neither "on", "off" nor "off:" and names of ops.
    """
    switch, colon, names = text.partition(":")
    ops = frozenset(names.split(",")) if colon else frozenset(OPS)
    if text in ("", "on"):
        return frozenset()
    if switch != "off" or not ops <= set(OPS):
        raise ValueError(f"FASTMASK_KERNELS must be on, off, or off: and some of {','.join(OPS)}, got {text!r}")
    return ops


SWITCHED_OFF = parse_switch(os.environ.get("FASTMASK_KERNELS", ""))


KERNELS: dict[str, Callable[..., Any]] = {}  # by the ops' qualified names


def register(op: Any, kernel: Callable[..., Any], fallback: Callable[..., Any]) -> None:
    """Register ``kernel`` for an op's tensors on the kernels' device; others keep the eager fallback."""
    name = op._qualname.partition("::")[2]
    assert name in OPS
    KERNELS[op._qualname] = chosen = with_warning(fallback) if name in SWITCHED_OFF else kernel
    if dispatch is None:
        op.register_kernel("cpu" if INTERPRET else "cuda")(chosen)
    else:
        dispatch.shorten(op, chosen, "CPU" if INTERPRET else "CUDA")


def with_warning(fallback: Callable[..., Any]) -> Callable[..., Any]:
    """An eager fallback in place of a kernel; the first such call in a process warns."""

    @functools.wraps(fallback)
    def call(*args: Any) -> Any:
        _warn_once()
        return fallback(*args)

    return call


@functools.cache
def _warn_once() -> None:
    """Warn once even where the user's filters show every warning."""
    ops = ", ".join(op for op in OPS if op in SWITCHED_OFF)
    warnings.warn(f"FASTMASK_KERNELS takes slow, eager PyTorch instead of Triton kernels for {ops}", stacklevel=4)


def is_capturable() -> bool:
    """Whether no op has a host sync, so that CUDA graphs can be captured: eager fallbacks have some."""
    return HAS_TRITON and not SWITCHED_OFF


def describe() -> str:
    """Describe the path that ops take, for a bug report."""
    if not HAS_TRITON:
        return "eager PyTorch for all ops: Triton is not installed"
    on, off = (", ".join(op for op in OPS if (op in SWITCHED_OFF) == switched) for switched in (False, True))
    if not on:
        return "eager PyTorch for all ops (FASTMASK_KERNELS)"
    where = "CPU tensors, in Triton's interpreter" if INTERPRET else "CUDA tensors"
    if not off:
        return f"Triton for all ops on {where}"
    return f"Triton for {on} on {where}; eager PyTorch for {off} (FASTMASK_KERNELS)"


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the tensor's device current: Triton launches on the current one, and on its current stream."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)
