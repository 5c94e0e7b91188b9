"""Whether a module may be replaced by a sum over its weights: reading them skips all that a call of it may do."""

from typing import TypeGuard, TypeVar

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

Layer = TypeVar("Layer", bound=nn.Module)


def is_plain(module: nn.Module, *kinds: type[Layer]) -> TypeGuard[Layer]:
    """Whether a call of the module is its type's ``forward`` and nothing else.

    A subclass is not plain, and parametrizations (``torch.nn.utils.parametrizations``) make one. Neither is a module
    with hooks, as the older ``weight_norm`` and ``spectral_norm`` and pruning leave them, or with a ``forward`` of its
    own.

    Args:
        kinds: the types that are known.
    """
    return type(module) in kinds and is_untouched(module)


def is_untouched(module: nn.Module) -> bool:
    """:func:`is_plain` of a module of any type."""
    return not has_hooks(module) and "forward" not in module.__dict__ and not _has_any_global_hook()


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks of its own."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
