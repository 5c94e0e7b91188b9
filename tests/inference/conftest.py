"""A calibrated model, and images of several sizes."""

import pytest
import torch
from helpers.images import draw_image
from helpers.slim import slim_pair
from torch import Tensor, nn

SIZES = [(128, 160), (100, 130), (170, 120), (128, 160), (60, 200)]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(7)
    return slim_pair()[1]


@pytest.fixture
def images() -> list[Tensor]:
    """uint8 [3, h, w]."""
    return [(draw_image(*size)[0] * 255).to(torch.uint8) for size in SIZES]
