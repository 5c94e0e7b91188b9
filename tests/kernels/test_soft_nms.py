"""fastmask::soft_nms_padded against its specification: picks, decayed scores bit by bit, ties, groups, padding."""

import math

import numpy as np
import pytest
import torch
from helpers.inputs import FLOATS, INF, NAN, adversarial_boxes, draw_boxes
from torch import Tensor

from fastmask.kernels import reference
from fastmask.kernels.fallback import soft_nms as soft_nms_fallback
from fastmask.kernels.launch import INTERPRET
from fastmask.kernels.soft_nms import soft_nms_padded_op

KINDS = pytest.mark.parametrize("gaussian", [False, True], ids=["linear", "gaussian"])


def check(
    device: torch.device,
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None = None,
    valid: Tensor | None = None,
    *,
    iou: float = 0.3,
    sigma: float = 0.5,
    gaussian: bool,
    least: float = 0.001,
    limit: int | None = None,
) -> Tensor:
    """Compare one batch with the specification, image by image -> the indices."""
    limit = boxes.shape[1] if limit is None else limit
    inputs = [None if t is None else t.to(device) for t in (boxes, scores, groups, valid)]
    indices, decayed, count = soft_nms_padded_op(*inputs, iou, sigma, gaussian, least, limit)
    assert indices.shape == decayed.shape == (len(boxes), limit)
    assert decayed.dtype == scores.dtype
    for b in range(len(boxes)):
        group, real = (None if t is None else t[b] for t in (groups, valid))
        picks, values = reference.soft_nms(boxes[b], scores[b], group, real, iou, sigma, gaussian, least, limit)
        rest = limit - len(picks)
        assert indices[b].tolist() == picks + [-1] * rest
        expected = torch.tensor([*values, *[0.0] * rest], dtype=torch.float64).to(scores.dtype)
        rounding = 2**-7 if INTERPRET and scores.dtype == torch.bfloat16 else 0  # which Triton's interpreter cuts off
        torch.testing.assert_close(decayed[b].cpu(), expected, rtol=rounding, atol=0)
        assert count[b] == len(picks)
        assert values == sorted(values, reverse=True)
    return indices


@KINDS
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_meets_the_specification(gaussian: bool, dtype: torch.dtype, device: torch.device) -> None:
    """In float64 and float32 every pick and every bit; half types are computed in float32."""
    boxes = torch.stack([draw_boxes(70, largest=60) for _ in range(2)])
    scores, groups, valid = torch.rand(2, 70).to(dtype), torch.randint(-2, 2, (2, 70)), torch.rand(2, 70) < 0.8
    check(device, boxes.to(dtype), scores, gaussian=gaussian)
    check(device, boxes.to(dtype), scores, groups << 40, valid, gaussian=gaussian, least=0.2, limit=30)


@KINDS
@pytest.mark.parametrize("num", [0, 1, 2], ids="N{}".format)
def test_few_boxes_and_more_outputs(gaussian: bool, num: int, device: torch.device) -> None:
    boxes, scores = torch.stack([draw_boxes(num)] * 2), torch.rand(2, num)
    check(device, boxes, scores, gaussian=gaussian, limit=5)
    check(device, boxes, scores, None, torch.zeros(2, num).bool(), gaussian=gaussian, limit=5)
    check(device, boxes, scores, gaussian=gaussian, limit=0)


@KINDS
def test_ties_special_scores_and_adversarial_boxes(gaussian: bool, device: torch.device) -> None:
    """Equal scores go by index; NaN and what is negative takes no part, inf does; a NaN IoU decays nothing."""
    boxes = torch.cat([adversarial_boxes(), draw_boxes(12), adversarial_boxes(), draw_boxes(3)[[0, 1, 2, 0, 1, 2]]])[
        None
    ]
    scores = torch.randint(1, 4, (1, boxes.shape[1])).float() / 4
    check(device, boxes, scores, gaussian=gaussian)
    scores[0, ::7], scores[0, 1::7], scores[0, 2::7], scores[0, 3::7] = NAN, INF, -INF, -0.0
    for iou, sigma, least in ((0.0, 0.5, 0.0), (-1.0, 1e-9, 0.25), (1.0, 1e9, 0.1)):
        check(device, boxes, scores, gaussian=gaussian, iou=iou, sigma=sigma, least=least)


def test_a_score_that_decays_to_zero_is_dropped_for_good(device: torch.device) -> None:
    boxes = torch.tensor([[[0.0, 0, 4, 4]] * 3])
    scores = torch.tensor([[0.5, 0.9, 0.9]])
    assert check(device, boxes, scores, gaussian=False).tolist() == [[1, -1, -1]]
    assert check(device, boxes, scores, gaussian=False, least=0.0).tolist() == [[1, 0, 2]]


def test_closed_forms(device: torch.device) -> None:
    """Halves that overlap by a third: 1 - 1/3 and exp(-1/9 / 0.5); others of another group keep their scores."""
    boxes = torch.tensor([[[0.0, 0, 4, 4], [2, 0, 6, 4], [2, 0, 6, 4]]], dtype=torch.float64, device=device)
    scores = torch.tensor([[0.9, 0.6, 0.3]], dtype=torch.float64, device=device)
    groups = torch.tensor([[1, 1, 2]], device=device)
    for gaussian, decay in ((False, 2 / 3), (True, math.exp(-2 / 9))):
        _, decayed, _ = soft_nms_padded_op(boxes, scores, groups, None, 0.3, 0.5, gaussian, 0.001, 3)
        torch.testing.assert_close(decayed[0].cpu(), torch.tensor([0.9, 0.6 * decay, 0.3]).double(), rtol=1e-7, atol=0)


@pytest.mark.parametrize(("threshold", "decays"), [(0.6, False), (math.nextafter(0.6, 0), True)], ids=str)
def test_the_threshold_counts_as_double(threshold: float, decays: bool, device: torch.device) -> None:
    boxes = torch.tensor([[[0, 0, 10, 10], [0, 0, 10, 6]]], dtype=torch.float64, device=device)
    scores = torch.tensor([[0.9, 0.8]], dtype=torch.float64, device=device)
    _, decayed, _ = soft_nms_padded_op(boxes, scores, None, None, threshold, 0.5, False, 0.001, 2)
    assert (decayed[0, 1] != 0.8) == decays
    check(device, boxes.cpu().float(), scores.cpu().float(), iou=threshold, gaussian=False)


def test_exp_of_float32() -> None:
    """The polynomial, in both of its forms, within 1.25 ulp of exp; exactly 1 at 0, and 0 beyond its limit."""
    x = np.concatenate([np.linspace(0, 90, 40_001), np.geomspace(1e-30, 2, 10_000)]).astype(np.float32)
    ours, exact = soft_nms_fallback._exp_of_negative(x), np.exp(-x.astype(np.float64))
    inside = x <= reference.EXP_LIMIT
    assert (np.abs(ours - exact)[inside] <= 1.25 * np.spacing(exact.astype(np.float32))[inside]).all()
    assert (ours[~inside] == 0).all()
    assert ours[0] == 1
    for place in (0, 77, 20_000, 39_000, 45_000):
        assert reference.exp_of_negative(x[place]) == ours[place]


def test_strides(device: torch.device) -> None:
    boxes, scores = draw_boxes(40, largest=60)[None].to(device), torch.rand(1, 40, device=device)
    groups, valid = torch.randint(2, (40, 1), device=device).t(), (torch.rand(40, 1, device=device) < 0.8).t()
    wide = boxes.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    args = (0.3, 0.5, True, 0.001, 20)
    for actual, wanted in zip(
        soft_nms_padded_op(wide, torch.stack([scores, scores], 2)[..., 0], groups, valid, *args),
        soft_nms_padded_op(boxes, scores, groups.contiguous(), valid.contiguous(), *args),
        strict=True,
    ):
        assert torch.equal(actual, wanted)


@KINDS
def test_gradients_count_decays_as_constants(gaussian: bool, device: torch.device) -> None:
    boxes = draw_boxes(20, largest=60).to(device, torch.float64)[None]
    scores = torch.rand(1, 20, device=device, dtype=torch.float64, requires_grad=True)
    indices, decayed, _ = soft_nms_padded_op(boxes, scores, None, None, 0.3, 0.5, gaussian, 0.001, 25)
    weights = torch.rand_like(decayed)
    (grad,) = torch.autograd.grad((decayed * weights).sum(), scores)
    expected = torch.zeros_like(scores)
    for k, i in enumerate(indices[0].tolist()):
        if i >= 0:
            expected[0, i] = weights[0, k] * decayed[0, k] / scores[0, i]
    torch.testing.assert_close(grad, expected.detach())


def test_opcheck(device: torch.device) -> None:
    boxes, scores = draw_boxes(9)[None].to(device), torch.rand(1, 9, device=device)
    args = (torch.zeros(1, 9, dtype=torch.int64, device=device), None, 0.3, 0.5, True, 0.001, 12)
    torch.library.opcheck(soft_nms_padded_op, (boxes, scores, *args))
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")  # others add outputs up, integers as well
    torch.library.opcheck(soft_nms_padded_op, (boxes, scores.requires_grad_(), *args), test_utils=utils)
