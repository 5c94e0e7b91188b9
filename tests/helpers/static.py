"""A check that a program is static: nothing in it depends on the values of tensors."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoDataDependence(TorchDispatchMode):
    """Fails on every op whose output's shape or host value depends on tensors' values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert torch.Tag.data_dependent_output not in func.tags, func
        if func.overloadpacket is torch.ops.aten.index:  # tagged for its boolean masks alone
            assert not any(index is not None and index.dtype == torch.bool for index in args[1]), "boolean index"
        else:
            assert torch.Tag.dynamic_output_shape not in func.tags, func
        return func(*args, **(kwargs or {}))
