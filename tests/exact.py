"""When two sets of detections in float64 are the same."""

import torch
from torch import Tensor

Detections = dict[str, Tensor]


def assert_exact(actual: Detections, expected: Detections) -> None:
    """float64: same count, labels and order; boxes to 1e-6 pixels, scores and mask probabilities to 1e-9."""
    assert torch.equal(actual["labels"], expected["labels"])
    torch.testing.assert_close(actual["boxes"], expected["boxes"], rtol=0, atol=1e-6)
    torch.testing.assert_close(actual["scores"], expected["scores"], rtol=0, atol=1e-9)
    assert actual.keys() == expected.keys()


def assert_exact_masks(actual: Tensor, expected: Tensor) -> None:
    """The 28 x 28 probabilities (pasted ones jump where a box corner crosses a whole pixel)."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)
