"""Roofline model of the ops: the fewest bytes that each must move, which benchmarks divide by its time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def min_bytes(op: Callable[..., Any], *args: Any) -> int:
    """Bytes of an op's inputs, each read once, and outputs, each written once.

    Args:
        op: one of the ``fastmask::`` ops; only its shapes are computed.
        args: its arguments; tensors of the device "meta" suffice.

    This is a model, not a count: RoIs may leave parts of a map unread, and second reads may come from a cache.
    """
    shapes = pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().to("meta"), args)
    with torch.no_grad():
        outputs = op(*shapes)
    tensors = [leaf for leaf in pytree.tree_leaves((args, outputs)) if isinstance(leaf, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
