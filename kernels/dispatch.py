"""Dispatch of ops into PyTorch with less of its Python, through private names of PyTorch.

A PyTorch that lacks one of them cannot import this module; ops are then plain custom ops (launch.register).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch._C import _any_requires_grad, _AutoDispatchBelowAutograd, _len_torch_dispatch_stack
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch._C._functorch import peek_interpreter_stack
from torch._library.custom_ops import CustomOpDef

_library = torch.library.Library("fastmask", "IMPL")


class Op(CustomOpDef):
    """A custom op that enters PyTorch's dispatcher below autograd where nothing requires gradients."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or needs_autograd(args, kwargs):
            return self._opoverload(*args, **kwargs)
        with _AutoDispatchBelowAutograd():
            return self._opoverload(*args, **kwargs)


def needs_autograd(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether autograd's kernel, which costs 5 us, may do more than call the next one; transforms decide themselves."""
    if _len_torch_dispatch_stack() or peek_interpreter_stack() is not None:
        return True
    return torch.is_grad_enabled() and _any_requires_grad(*args, **kwargs)


def shorten(op: Any, kernel: Callable[..., Any], key: str) -> None:
    """Make a custom op an :class:`Op` whose tensors of a dispatch key go to ``kernel``.

    This bypasses ``op.register_kernel``, which costs 3 us and checks whether outputs alias inputs: none do here.
    """
    op.__class__ = Op
    _library.impl(op._qualname.partition("::")[2], _hide_from_dynamo(kernel), key)


def _hide_from_dynamo(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a kernel so that ``torch.compile`` does not trace its Python, also where the graph breaks around the op."""
    disabled = torch.compiler.disable(kernel)

    @functools.wraps(kernel)
    def call(*args: Any) -> Any:
        return kernel(*args) if get_eval_frame_callback() is None else disabled(*args)

    return call
