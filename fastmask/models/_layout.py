"""Memory format: modules of ours run on channels-last tensors, users' on contiguous ones, as torchvision gives them.

Weights stay contiguous, but in prepared models and in those that :func:`fastmask.training.train` builds. For a model in
a user's hands not even the first forward on a GPU lays them out, although cuDNN then copies each of them in each call:
a parameter whose strides change fits neither an optimizer's state nor a flat view of it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._pytree import tree_map

OWN = ("fastmask.", "torch.nn.modules.", "timm.")  # timm trains and tests its models in both formats
# classes that PyTorch derives from a layer's, where it is parametrized or sharded, or puts around it
WRAPPERS = ("torch.nn.utils.parametri", "torch.distributed.", "torch._dynamo.")


def takes_channels_last(*modules: nn.Module) -> bool:
    """Whether there is no code of a user's in the modules and all their children: no class, no forward, no hook."""
    return not _has_any_global_hook() and all(map(_all_own, modules))


def as_read(x: Any, module: nn.Module) -> Any:
    """x as the module reads it: a contiguous copy if it is a tensor, and a user's code may see it, or else x itself."""
    return x if takes_channels_last(module) else _make_contiguous(x)


def lay_out(*modules: nn.Module) -> None:
    """Make the convolutions' weights in modules of ours channels-last, in place.

    Users' modules among them keep their weights. Hooks keep what they see contiguous: the inputs of those that ours
    call, and the outputs of ours that they call.
    """
    visited = {(module, called_by_user) for top in modules for module, called_by_user in _walk(top, False)}
    users = {module for module, by_user in visited if not _is_layout_ours(module, by_user)}
    for module, by_user in visited:
        if module in users and not by_user:
            module.register_forward_pre_hook(_make_inputs_contiguous, with_kwargs=True)
        elif by_user and module not in users:
            module.register_forward_hook(_make_outputs_contiguous)
    for module in {module for module, _ in visited} - users:
        for values in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if values.ndim == 4:
                values.data = values.data.contiguous(memory_format=torch.channels_last)


def is_own(module: nn.Module) -> bool:
    """Whether a module itself, whatever its children are, has no code of a user's."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        if not all(_is_known(hook) for group in hooks for hook in group.values()):
            return False
    return "forward" not in module.__dict__ and _is_own_class(type(module))


def _all_own(module: nn.Module) -> bool:
    """Called in each forward, on 170 modules of a ResNet-50: 0.1 ms."""
    if not is_own(module):
        return False
    for child in module._modules.values():  # noqa: SIM110 -- as fast as it gets
        if child is not None and not _all_own(child):
            return False
    return True


def _is_own_class(kind: type) -> bool:
    name = kind.__module__
    if name.startswith(OWN) or getattr(kind, "forward", None) is nn.Sequential.forward:
        return True
    return name.startswith(WRAPPERS) and _is_own_class(kind.__bases__[-1])


def _is_known(hook: Any) -> bool:
    """Whether a hook is PyTorch's, such as a pruned layer's, or ours."""
    return str(getattr(hook, "__module__", "")).startswith(("torch.", "fastmask."))


def _is_layout_ours(module: nn.Module, by_user: bool) -> bool:
    """Whether weights may be laid out: PyTorch's layers belong to the module that calls them."""
    return is_own(module) and (not by_user or type(module).__module__.startswith("fastmask."))


def _walk(module: nn.Module, by_user: bool) -> Iterator[tuple[nn.Module, bool]]:
    """A module and all its children, each with whether a user's module calls it."""
    yield module, by_user
    ours = _is_layout_ours(module, by_user)
    for child in module.children():
        yield from _walk(child, not ours)


def _make_contiguous(x: Any) -> Any:
    return x.contiguous() if isinstance(x, Tensor) else x


def _make_inputs_contiguous(_: nn.Module, args: Any, kwargs: Any) -> Any:
    return tree_map(_make_contiguous, (args, kwargs))


def _make_outputs_contiguous(_: nn.Module, __: Any, output: Any) -> Any:
    return tree_map(_make_contiguous, output)
