"""How much two sets of detections agree: the float32 rule of the model's tests."""

import torch
from torch import Tensor

Detections = dict[str, Tensor]


def matched_share(actual: Detections, expected: Detections) -> float:
    """The share of detections that have a twin on the other side: label, 1 pixel, score 1e-3, mask IoU above 0.99."""
    total = len(actual["boxes"]) + len(expected["boxes"])
    if total == 0:
        return 1.0
    twin = actual["labels"][:, None] == expected["labels"]
    twin &= ((actual["boxes"][:, None] - expected["boxes"]).abs() <= 1).all(2)
    twin &= (actual["scores"][:, None] - expected["scores"]).abs() <= 1e-3
    if "masks" in expected:
        a, b = ((d["masks"] > 0.5).flatten(1).double() for d in (actual, expected))
        inter = a @ b.T
        union = a.sum(1)[:, None] + b.sum(1) - inter
        twin &= inter > 0.99 * union - 1e-9
    return float(twin.any(1).sum() + twin.any(0).sum()) / total


def assert_exact(actual: Detections, expected: Detections) -> None:
    """float64: same count, labels and order; boxes to 1e-6 pixels, scores and mask probabilities to 1e-9."""
    assert torch.equal(actual["labels"], expected["labels"])
    torch.testing.assert_close(actual["boxes"], expected["boxes"], rtol=0, atol=1e-6)
    torch.testing.assert_close(actual["scores"], expected["scores"], rtol=0, atol=1e-9)
    assert actual.keys() == expected.keys()


def assert_exact_masks(actual: Tensor, expected: Tensor) -> None:
    """The 28 x 28 probabilities (pasted ones jump where a box corner crosses a whole pixel)."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)
