"""What tests of fused layers share."""

import pytest
import torch
from torch import Tensor, nn

from fastmask.models import fused

FORMS = pytest.mark.parametrize("form", ["kernel", "cudnn"])
NEW = {kind for kind in vars(fused).values() if isinstance(kind, type) and kind.__module__ == fused.__name__}


def unsettle(model: nn.Module) -> None:
    """Norms and biases that do something."""
    for name, values in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("bias"):
            values.data.uniform_(-0.5, 0.5)
        elif values.is_floating_point() and ("running" in name or "bn" in name):
            values.data.uniform_(0.5, 1.5)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    scale = expected.abs().amax().clamp(min=1)
    torch.testing.assert_close(actual / scale, expected / scale, rtol=0, atol=tolerance)


def kinds(model: nn.Module) -> set[type[nn.Module]]:
    return {type(module) for module in model.modules()}
