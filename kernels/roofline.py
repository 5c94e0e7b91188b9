"""The byte model of every op: what it must move at least, which its benchmarks divide by the time it takes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def min_bytes(op: Callable[..., Any], *args: Any) -> int:
    """Each tensor that goes in read once and each that comes out written once, in bytes.

    Args:
        op: one of the ``fastmask::`` ops; only its shapes are worked out.
        args: what it is called with; tensors of the device "meta" will do.

    RoIs may leave parts of a map untouched, and what is read twice comes from a cache at best: a model, not a count.
    """
    shapes = pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().to("meta"), args)
    with torch.no_grad():
        outputs = op(*shapes)
    tensors = [leaf for leaf in pytree.tree_leaves((args, outputs)) if isinstance(leaf, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
