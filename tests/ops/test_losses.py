"""Losses against torchvision: values, gradients, reductions, half types."""

import pytest
import torch
import torchvision.ops as tv
from helpers.inputs import draw_boxes

from fastmask import ops

IOU_LOSSES = ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss")
REDUCTIONS = ("none", "mean", "sum")


@pytest.mark.parametrize("name", IOU_LOSSES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(30, 4), (0, 4), (4,), (5, 6, 4)], ids=str)
def test_iou_losses(name: str, reduction: str, shape: tuple[int, ...]) -> None:
    results = []
    num = torch.Size(shape).numel() // 4
    pair = [draw_boxes(num, largest=100).double().view(shape) for _ in range(2)]
    for module in (ops, tv):
        leaves = [boxes.clone().requires_grad_() for boxes in pair]
        loss = getattr(module, name)(*leaves, reduction=reduction, eps=1e-6)
        loss.sum().backward()
        results.append((loss.detach(), *(leaf.grad for leaf in leaves)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", IOU_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64], ids=str)
def test_iou_losses_widen(name: str, dtype: torch.dtype) -> None:
    pair = [draw_boxes(30).round().to(dtype) for _ in range(2)]
    actual, expected = (getattr(module, name)(*pair) for module in (ops, tv))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", IOU_LOSSES)
def test_iou_losses_have_gradients_apart(name: str) -> None:
    """Boxes that do not overlap have gradients, which is the point of these losses."""
    near = torch.tensor([[0.0, 0, 10, 10]], dtype=torch.float64, requires_grad=True)
    far = torch.tensor([[50.0, 60, 62, 75]], dtype=torch.float64)
    getattr(ops, name)(near, far, reduction="sum").backward()
    assert (near.grad[0, 2:] < 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("alpha", [-1, 0, 0.25, 1], ids="alpha{}".format)
@pytest.mark.parametrize("gamma", [0, 2, 1.5], ids="gamma{}".format)
def test_focal_loss(reduction: str, alpha: float, gamma: float) -> None:
    results = []
    inputs, targets = torch.randn(7, 9, dtype=torch.float64) * 4, (torch.rand(7, 9) < 0.3).double()
    for module in (ops, tv):
        leaf = inputs.clone().requires_grad_()
        loss = module.sigmoid_focal_loss(leaf, targets, alpha, gamma, reduction)
        loss.sum().backward()
        results.append((loss.detach(), leaf.grad))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", IOU_LOSSES)
def test_iou_losses_broadcast(name: str) -> None:
    many, one = draw_boxes(5).double(), draw_boxes(1).double()
    for pair in ((many, one), (many, one[0])):  # the other way round torchvision fails
        torch.testing.assert_close(getattr(ops, name)(*pair), getattr(tv, name)(*pair), rtol=1e-10, atol=1e-12)
