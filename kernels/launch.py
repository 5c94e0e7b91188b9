"""Where Triton kernels run: on CUDA and ROCm tensors; with TRITON_INTERPRET=1 on CPU tensors, in the interpreter."""

import contextlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"  # must be set before Triton is first imported
HAS_TRITON = importlib.util.find_spec("triton") is not None


def register(op: Any, kernel: Callable[..., Any]) -> None:
    """Let an op's tensors of the kernels' device go to ``kernel``; others keep the plain-PyTorch path."""
    op.register_kernel("cpu" if INTERPRET else "cuda")(kernel)


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the tensor's device current: Triton launches on the current one, and on its current stream."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
