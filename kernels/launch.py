"""Where Triton kernels run: on CUDA and ROCm tensors; with TRITON_INTERPRET=1 on CPU tensors, in the interpreter.

``FASTMASK_KERNELS=off`` in the environment takes the eager fallback instead, ``FASTMASK_KERNELS=off:nms_padded,...``
that of some ops; it is read once, at import.
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
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch._library.custom_ops import CustomOpDef

INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"  # must be set before Triton is first imported
HAS_TRITON = importlib.util.find_spec("triton") is not None

OPS = (
    "multilevel_roi_align",
    "multilevel_roi_align_backward",
    "roi_pool",
    "roi_pool_backward",
    "nms_padded",
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
_library = torch.library.Library("fastmask", "IMPL")


class Op(CustomOpDef):
    """A custom op that enters PyTorch's dispatcher below autograd where nothing requires gradients."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or _needs_autograd(args, kwargs):
            return self._opoverload(*args, **kwargs)
        with torch._C._AutoDispatchBelowAutograd():
            return self._opoverload(*args, **kwargs)


def _needs_autograd(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether autograd's kernel, which costs 5 us, may do more than call the next one; transforms decide themselves."""
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return torch.is_grad_enabled() and torch._C._any_requires_grad(*args, **kwargs)


def register(op: Any, kernel: Callable[..., Any], fallback: Callable[..., Any]) -> None:
    """Let an op's tensors of the kernels' device go to ``kernel``; others keep the eager fallback.

    Past ``op.register_kernel``, whose layers of Python cost 3 us and look whether outputs alias inputs: none do here.
    """
    name = op._qualname.partition("::")[2]
    assert name in OPS
    op.__class__ = Op
    KERNELS[op._qualname] = chosen = with_warning(fallback) if name in SWITCHED_OFF else kernel
    _library.impl(name, _unseen(chosen), "CPU" if INTERPRET else "CUDA")


def _unseen(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel whose Python ``torch.compile`` leaves alone, also where it broke its graph around the op."""
    disabled = torch.compiler.disable(kernel)

    @functools.wraps(kernel)
    def call(*args: Any) -> Any:
        return kernel(*args) if get_eval_frame_callback() is None else disabled(*args)

    return call


def with_warning(fallback: Callable[..., Any]) -> Callable[..., Any]:
    """An eager fallback in the place of a kernel, which the first such call in a process is told."""

    @functools.wraps(fallback)
    def call(*args: Any) -> Any:
        _warn_once()
        return fallback(*args)

    return call


@functools.cache
def _warn_once() -> None:
    """Not by the warnings' own filters, which a user may have set to show every one."""
    ops = ", ".join(op for op in OPS if op in SWITCHED_OFF)
    warnings.warn(f"FASTMASK_KERNELS takes slow, eager PyTorch instead of Triton kernels for {ops}", stacklevel=4)


def is_capturable() -> bool:
    """Whether no op waits for the device, so that CUDA graphs can be captured: the eager fallbacks do wait."""
    return HAS_TRITON and not SWITCHED_OFF


def describe() -> str:
    """Which path ops take, for a bug report."""
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
